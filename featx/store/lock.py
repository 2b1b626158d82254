"""One writer a cache file: a lock beside it that says who holds it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from featx.errors import CacheBusyError

__all__ = ["Lock", "try_flock", "unlock"]

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
    """Lock an open file without waiting.

    Returns
    -------
    bool or None
        True: locked. False: another process holds it. None: this file system
        has no locks.
    """
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


class Lock:
    """The lock of one cache file, held until `release`.

    The lock is the kernel's (flock), so a killed process leaves none behind. The
    file is removed on release while the lock is still held; whoever opened it
    before sees that the name is gone or means another file, and tries again.

    Parameters
    ----------
    target : pathlib.Path
        The cache file.
    """

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(target.name + ".lock")
        self.is_supported = True
        self._target = target
        self._fd = -1

    def acquire(self) -> None:
        """Take the lock, and write into it who has it.

        Raises
        ------
        CacheBusyError
            If another process has it.
        OSError
            If the lock's file cannot be made.
        """
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                is_locked = try_flock(fd)
                if is_locked is False:
                    raise CacheBusyError(self._busy(fd))
                if self._is_current(fd):
                    self._sign(fd)
                    self.is_supported = is_locked is True
                    self._fd, fd = fd, -1
                    return
            finally:
                if fd >= 0:
                    os.close(fd)

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self.path.stat())
        except FileNotFoundError:
            return False

    def _sign(self, fd: int) -> None:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        os.ftruncate(fd, 0)
        try:
            os.pwrite(fd, json.dumps(owner).encode(), 0)
        except OSError as error:  # the name is a courtesy: a full disk is reported better later
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise

    def _busy(self, fd: int) -> str:
        try:
            owner = json.loads(os.pread(fd, 4096, 0))
            who = f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
        except (ValueError, KeyError, TypeError):
            who = "another process"
        return f"{self._target} is being written by {who}: wait for it, or stop it"

    def release(self) -> None:
        """Give the lock back, also if a forked child still has its descriptor."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            if self._is_current(fd):
                self.path.unlink(missing_ok=True)
        except OSError:  # a stale lock file stops nobody
            pass
        finally:
            unlock(fd)
            os.close(fd)
