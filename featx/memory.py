"""How much memory there is, and what it looks like when it was too little."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["available_bytes", "is_out_of_memory", "reused_memory"]

# Of `mallopt` of the GNU C library: the number of an option, and its value.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: (1 << 31) - 1}
_GIVE_BACK = {_MMAP_MAX: 1 << 16, _TRIM_THRESHOLD: 64 << 20}
_counting = threading.Lock()
_n_users = 0

# What torch, and NVIDIA's libraries below it, say where they could not allocate. cuDNN without
# room for any of its kernels finds none, or none that is supported; handles of both libraries
# that cannot be made are "not initialized".
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "failed to allocate memory",
    "cudaErrorMemoryAllocation",
    "was unable to find an engine to execute this computation",
    "No valid execution plans built",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_NOT_SUPPORTED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)


def available_bytes() -> int:
    """Memory that could be taken now without swapping, in bytes."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        found = [int(line.split()[1]) << 10]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        with suppress(OSError, ValueError):
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(0, min(found))


@contextmanager
def reused_memory() -> Iterator[None]:
    """Let the next batch take the memory that the last one freed.

    The GNU C library gives each block of 32 MB and more back to the system, which fills the next
    one with zeros: with SqueezeNet on 224 pixels this took a third of the time. Nothing happens
    with another C library.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        yield
        return
    _count(library, 1)
    try:
        yield
    finally:
        _count(library, -1)


def _count(library: ctypes.CDLL, change: int) -> None:
    """Set the options for the first of several users, and back after the last."""
    global _n_users  # noqa: PLW0603 - the options are the process's too
    with _counting:
        _n_users += change
        for option, value in (_KEEP if _n_users else _GIVE_BACK).items():
            library.mallopt(option, value)
        if not _n_users:
            library.malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says, in any of its forms, that a device or the machine lacks memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(form.lower() in text for form in _OUT_OF_MEMORY)
