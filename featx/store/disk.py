"""The few calls that change a disk, in one place, and their errors in plain words.

Writing goes through these functions and through nothing else, so that a test can
make call number N fail, or record the order of calls and replay it with losses.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from featx.errors import CacheError, reason_of
from featx.store.layout import Extent

__all__ = [
    "OpenFile",
    "allocate",
    "bytes_of",
    "fdatasync",
    "fsync",
    "fsync_folder",
    "no_space",
    "pread_into",
    "pwrite",
    "read_pieces",
    "readable_bytes",
    "replace",
    "require_space",
    "translated",
    "truncate",
    "unlink",
]

_PIECE_BYTES: Final = 1 << 20
_NO_FALLOCATE: Final = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


def pwrite(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`, however often the system stops short."""
    view = memoryview(data).cast("B")
    while view:
        n_written = os.pwrite(fd, view, offset)
        view, offset = view[n_written:], offset + n_written


def bytes_of(array: np.ndarray) -> memoryview:
    """View a contiguous array as bytes."""
    return memoryview(array.reshape(-1).view(np.uint8).data)


def fsync(fd: int) -> None:
    """Make a file's bytes and size durable."""
    os.fsync(fd)


def fdatasync(fd: int) -> None:
    """Make a file's bytes durable (`os.fsync` where the system has no fdatasync)."""
    getattr(os, "fdatasync", os.fsync)(fd)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot
            raise
    finally:
        os.close(fd)


def replace(source: Path, target: Path) -> None:
    """Give `source` the name `target` in one step; open handles keep the old file."""
    source.replace(target)


def unlink(path: Path) -> None:
    """Remove a file if it is there."""
    path.unlink(missing_ok=True)


def truncate(fd: int, n_bytes: int) -> None:
    """Set a file's size."""
    os.ftruncate(fd, n_bytes)


def allocate(fd: int, n_bytes: int) -> None:
    """Make the blocks of a file's first `n_bytes` exist, so that writing them cannot fail."""
    try:
        os.posix_fallocate(fd, 0, n_bytes)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_FALLOCATE:
            raise
        if os.fstat(fd).st_size < n_bytes:
            os.ftruncate(fd, n_bytes)


def pread_into(fd: int, view: memoryview, offset: int) -> None:
    """Fill `view` from `offset`."""
    while view:
        n_read = os.preadv(fd, [view], offset)
        if n_read == 0:
            raise CacheError(f"the file ends at byte {offset:,}, {len(view):,} bytes early")
        view, offset = view[n_read:], offset + n_read


def read_pieces(fd: int, offset: int, n_bytes: int) -> Iterator[memoryview]:
    """Read a part of an open file; each piece is overwritten by the next one."""
    buffer = memoryview(bytearray(min(_PIECE_BYTES, n_bytes)))
    for start in range(0, n_bytes, _PIECE_BYTES):
        piece = buffer[: n_bytes - start]
        pread_into(fd, piece, offset + start)
        yield piece


def readable_bytes(n_bytes: int) -> str:
    """Write a size for people, with the exact figure behind it.

    Examples
    --------
    >>> readable_bytes(2_508_800_000)
    '2.51 GB (2,508,800,000 bytes)'
    >>> readable_bytes(12)
    '12 bytes'
    """
    for power, unit in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        if n_bytes >= 10**power:
            return f"{n_bytes / 10**power:.2f} {unit} ({n_bytes:,} bytes)"
    return f"{n_bytes} bytes"


def require_space(folder: Path, n_bytes: int, name: str) -> None:
    """Refuse a file that cannot fit, before anything is written."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and n_bytes > limit:
        raise CacheError(
            f"{name} needs {readable_bytes(n_bytes)}, but this process may write files of at "
            f"most {readable_bytes(limit)}: raise the limit (ulimit -f)"
        )
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise no_space(folder, n_bytes, free, name)


def no_space(folder: Path, n_bytes: int, free: int, name: str) -> CacheError:
    """Make the error for a disk that is too full, with its figures and the mends."""
    return CacheError(
        f"{name} needs {readable_bytes(n_bytes)}, but {folder} has {readable_bytes(free)} free: "
        "free some space, choose another folder, or make the features smaller "
        "(--pool avg, a smaller --input-size, --cache-per-class N, --store-dtype float16)"
    )


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Turn an `OSError` into a `CacheError` that says what failed and what to do."""
    try:
        yield
    except OSError as error:
        raise CacheError(f"{action}: {reason_of(error)}") from error


class OpenFile:
    """A file that is open for reading, closed with the last object that uses it."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self.close = weakref.finalize(self, os.close, self._fd)
        self.path = path

    @property
    def fd(self) -> int:
        """The descriptor."""
        if not self.close.alive:
            raise CacheError(f"{self.path} was closed: open it again")
        return self._fd

    def read(self, extent: Extent) -> np.ndarray:
        """Read an array whole."""
        out = np.empty(extent.shape, extent.dtype)
        self.read_into(out, extent.offset)
        return out

    def read_into(self, out: np.ndarray, offset: int) -> None:
        """Fill a contiguous array with the bytes at `offset`."""
        if out.nbytes:
            with translated(f"cannot read {self.path}"):
                pread_into(self.fd, bytes_of(out), offset)
