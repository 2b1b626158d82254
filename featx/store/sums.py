"""Checksums of rows, computed in threads of their own while the rows go to the disk."""

from __future__ import annotations

import zlib
from concurrent.futures import Future, ThreadPoolExecutor

from featx.store.digest import BlockHasher
from featx.store.journal import Range
from featx.store.threads import give_way

__all__ = ["Sums"]


class Sums:
    """SHA-256 of the blocks and CRC-32 of the ranges of written rows.

    Hashing is slower than a fast disk and writing waits for the disk, so the two
    overlap: CRC-32 has a thread, and SHA-256 has two, since blocks are independent.
    """

    def __init__(self, hasher: BlockHasher) -> None:
        self._hasher = hasher
        self._sha256 = [ThreadPoolExecutor(1, "featx-sha256", give_way) for _ in range(2)]
        self._crc = ThreadPoolExecutor(1, "featx-crc", give_way)
        self._jobs: list[Future[None]] = []

    def add(self, start: int, data: memoryview, item: Range) -> None:
        """Begin to sum rows."""
        for block, low, part in self._hasher.parts(start, data):
            lane = self._sha256[block % len(self._sha256)]  # a block's rows stay in order
            self._jobs.append(lane.submit(self._hasher.add, block, low, part))
        self._jobs.append(self._crc.submit(_extend, item, data))

    def take(self) -> list[Future[None]]:
        """Give what is being summed since the last call; wait for it before using a sum."""
        jobs, self._jobs = self._jobs, []
        return jobs

    def close(self) -> None:
        """End the threads; what was not summed yet never will be."""
        for pool in (*self._sha256, self._crc):
            pool.shutdown(cancel_futures=True)


def _extend(item: Range, data: memoryview) -> None:
    item.crc = zlib.crc32(data, item.crc)
