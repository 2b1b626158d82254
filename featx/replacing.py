"""Files that appear whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

__all__ = ["replace_file", "replace_text"]


def replace_file(path: Path, write: Callable[[str], object]) -> None:
    """Write a file beside its place, make it durable, then give it its name.

    Parameters
    ----------
    path : Path
        The file; its folder is made. A file that is there is replaced.
    write : callable
        Is given the name of an empty file to fill.

    Raises
    ------
    OSError
        If that cannot be done; what was there is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    number, part = tempfile.mkstemp(".part", f".{path.name}.", path.parent)
    os.close(number)
    try:
        write(part)
        mask = os.umask(0)
        os.umask(mask)
        Path(part).chmod(0o666 & ~mask)
        _sync(part, os.O_RDWR)
        Path(part).replace(path)
        if os.name == "posix":
            _sync(path.parent, os.O_RDONLY)
    finally:
        with suppress(OSError):
            Path(part).unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a file of UTF-8 text as `replace_file` does.

    Parameters
    ----------
    path : Path
        The file.
    text : str
        All of it.
    """
    replace_file(path, lambda part: Path(part).write_text(text, encoding="utf-8"))


def _sync(path: str | Path, flags: int) -> None:
    number = os.open(path, flags)
    try:
        os.fsync(number)
    finally:
        os.close(number)
