"""Pixels in memory that this process and its workers share, so that no batch is sent or copied."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import reduction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Ring", "page_locked"]


class Ring:
    """Places for some batches, used in turns; the workers write into them.

    It is not in ``/dev/shm``, of which containers have 64 MB: whoever writes behind its end is
    killed. A file without a name is as large as the memory.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._open(shape, _unnamed_file(math.prod(shape)))

    def _open(self, shape: tuple[int, ...], descriptor: int) -> None:
        self._descriptor = descriptor
        memory = mmap.mmap(descriptor, math.prod(shape))
        self.pixels: NDArray[np.uint8] = np.frombuffer(memory, np.uint8).reshape(shape)

    def __getstate__(self) -> tuple[tuple[int, ...], Any]:
        return self.pixels.shape, reduction.DupFd(self._descriptor)

    def __setstate__(self, state: tuple[tuple[int, ...], Any]) -> None:
        self._open(state[0], state[1].detach())

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self._descriptor)


def _unnamed_file(n_bytes: int) -> int:
    try:
        descriptor = os.memfd_create("featx")
    except (AttributeError, OSError):  # not on Linux
        with tempfile.TemporaryFile() as stream:
            descriptor = os.dup(stream.fileno())
    os.truncate(descriptor, n_bytes)
    return descriptor


@contextmanager
def page_locked(ring: Ring, device: torch.device | None) -> Iterator[bool]:
    """Lock a ring's pages, so that a GPU fetches from them beside its work."""
    if device is None:
        yield False
        return
    driver = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = ring.pixels.ctypes.data
    with torch.cuda.device(device):
        is_locked = int(driver.cudaHostRegister(address, ring.pixels.nbytes, 1)) == 0
        if not is_locked:
            with suppress(RuntimeError):  # the next launch would report this refusal
                torch.zeros(1, device=device)
    try:
        yield is_locked
    finally:
        if is_locked:
            with torch.cuda.device(device), suppress(RuntimeError):  # that of the run is told
                torch.cuda.synchronize()
            driver.cudaHostUnregister(address)
