"""Locks of open files (flock): the kernel's, so that a killed process leaves none behind."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["is_flocked", "is_open_as", "try_flock", "unlock"]

_NOT_SUPPORTED: Final = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
_BUSY: Final = (errno.EAGAIN, errno.EACCES)


# Descriptors that were locked, with what they led to: numbers of closed ones may be reused.
_held: dict[int, os.stat_result] = {}


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


def try_flock(fd: int) -> bool | None:
    """Lock an open file without waiting."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        if error.errno in _NOT_SUPPORTED:
            return None
        raise
    _held[fd] = os.fstat(fd)
    return True


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
