"""One writer a cache file: a lock beside it that says who holds it."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from pathlib import Path

from featx.atomic import is_open_as, try_flock, unlock
from featx.errors import CacheBusyError
from featx.records import parse_json

__all__ = ["Lock"]


class Lock:
    """The lock of one cache file, held until `release`.

    The lock is the kernel's (flock), so a killed process leaves none behind. The
    file is removed on release while the lock is still held; whoever opened it
    before sees that the name is gone or means another file, and tries again.
    """

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(target.name + ".lock")
        self.is_supported = True
        self._target = target
        self._fd = -1

    def acquire(self) -> None:
        """Take the lock, and write into it who has it."""
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                is_locked = try_flock(fd)
                if is_locked is False:
                    raise CacheBusyError(self._busy(fd))
                if is_open_as(fd, self.path):
                    self._sign(fd)
                    self.is_supported = is_locked is True
                    self._fd, fd = fd, -1
                    return
            finally:
                if fd >= 0:
                    os.close(fd)

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
            owner = parse_json(os.pread(fd, 4096, 0))
            pid, host = int(owner["pid"]), str(owner["host"])
            who = f"process {pid} on {host}, since {owner['since']}"
        except (ValueError, KeyError, TypeError):
            pid, host, who = 0, "", "another process"
        if host == socket.gethostname() and _is_suspended(pid):
            return (
                f"{self._target} is held by {who}, which is suspended and writes nothing: let it "
                f"go on with  kill -CONT {pid}  , or end it with  kill -CONT {pid}; kill {pid}"
            )
        return f"{self._target} is being written by {who}: wait for it, or end it"

    def release(self) -> None:
        """Give the lock back, also if a forked child still has its descriptor."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            if is_open_as(fd, self.path):
                self.path.unlink(missing_ok=True)
        except OSError:  # a stale lock file stops nobody
            pass
        finally:
            unlock(fd)
            os.close(fd)


def _is_suspended(pid: int) -> bool:
    """Whether a process was stopped, as by Ctrl-Z."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False  # a system without /proc, or the process has ended
    return state.rpartition(")")[2].split()[0] in ("T", "t")
