"""Files that appear whole or not at all, and locks of open files.

The locks are the kernel's (flock), so that a killed process leaves none behind.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

__all__ = [
    "is_flocked",
    "is_open_as",
    "locked",
    "part_of",
    "replace_file",
    "replace_text",
    "set_aside",
    "try_flock",
    "unlock",
]

_NOT_SUPPORTED: Final = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
_BUSY: Final = (errno.EAGAIN, errno.EACCES)


# Descriptors that were locked, with what they led to: numbers of closed ones may be reused.
_held: dict[int, os.stat_result] = {}
_told: set[Path] = set()


def _let_go_in_child() -> None:
    """Take the locks from a forked child, such as a worker that decodes images.

    A lock belongs to the open file, which parent and child share: a worker that
    outlives a killed writer would hold the lock on. The descriptors lead to the
    null device from now on, so that closing them hits nothing else.
    """
    if not _held:
        return
    null = os.open(os.devnull, os.O_RDWR)
    for fd, locked in _held.items():
        with suppress(OSError):
            if os.path.samestat(os.fstat(fd), locked):
                os.dup2(null, fd, inheritable=False)
    os.close(null)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


def try_flock(fd: int, *, waits: bool = False) -> bool | None:
    """Lock an open file; None where the file system has no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in _BUSY:
            return False
        if error.errno in _NOT_SUPPORTED:
            return None
        raise
    _held[fd] = os.fstat(fd)
    return True


@contextmanager
def locked(path: Path, tell: Callable[[str], object]) -> Iterator[None]:
    """Wait for the lock of a file, and hold it; where there are no locks, say so once."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        if try_flock(fd, waits=True) is None and path.absolute() not in _told:
            _told.add(path.absolute())
            tell(f"{path.parent} has no file locks: let one process at a time write there")
        yield
    finally:
        unlock(fd)
        os.close(fd)


def unlock(fd: int) -> None:
    """Give up the lock of an open file, also for other processes that share it."""
    _held.pop(fd, None)
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)


def is_flocked(path: Path) -> bool:
    """Say whether a process holds the lock of a file or folder."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        return try_flock(fd) is False
    finally:
        os.close(fd)


def is_open_as(fd: int, path: Path) -> bool:
    """Say whether a name still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


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
    """Write a file of UTF-8 text as `part_of` does; names in it need not be text."""
    with part_of(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


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
