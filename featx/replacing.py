"""Files that appear whole, or not at all."""

from __future__ import annotations

import glob
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from featx.flock import is_open_as, try_flock, unlock

__all__ = ["part_of", "replace_file", "replace_text", "set_aside"]


@contextmanager
def part_of(path: Path) -> Iterator[Path]:
    """Write a file beside its place, make it durable, then give it its name.

    What processes that were killed left of the same file goes first; what others write stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    number, part = _make(path)
    try:
        yield part
        mask = os.umask(0)
        os.umask(mask)
        part.chmod(0o666 & ~mask)
        _sync(part, os.O_RDWR)
        part.replace(path)
        if os.name == "posix":
            _sync(path.parent, os.O_RDONLY)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        unlock(number)
        os.close(number)


def replace_file(path: Path, write: Callable[[str], object]) -> None:
    """Write a file as `part_of` does."""
    with part_of(path) as part:
        write(str(part))


def replace_text(path: Path, text: str) -> None:
    """Write a file of UTF-8 text as `part_of` does."""
    with part_of(path) as part:
        part.write_text(text, encoding="utf-8")


def set_aside(path: Path) -> Path:
    """Give a file that cannot be used another name, under which nothing replaces it."""
    names = (path.with_name(f"{path.name}.unused-{n}") for n in itertools.count(1))
    return path.rename(next(name for name in names if not name.exists()))


def _sync(path: str | Path, flags: int) -> None:
    number = os.open(path, flags)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _make(path: Path) -> tuple[int, Path]:
    """Make a part that is locked as long as its descriptor is open."""
    while True:
        number, name = tempfile.mkstemp(".part", f".{path.name}.", path.parent)
        part = Path(name)
        if try_flock(number) is not False and is_open_as(number, part):
            return number, part
        unlock(number)
        os.close(number)  # another process took it for one that was left


def _sweep(path: Path) -> None:
    """Remove the parts that nobody writes any more; none where there are no locks."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.{'[a-z0-9_]' * 8}.part"):
        with suppress(OSError):
            number = os.open(part, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if try_flock(number):
                    part.unlink()
            finally:
                unlock(number)
                os.close(number)
