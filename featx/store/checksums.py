"""Checksums of rows, computed in threads of their own while the rows go to the disk."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from featx.store import disk
from featx.store.journal import Range
from featx.store.layout import DIGEST_BYTES, n_blocks
from featx.store.threads import give_way, in_threads

__all__ = ["Checksums", "hash_span"]


def hash_span(fd: int, offset: int, n_bytes: int) -> bytes:
    """SHA-256 of `n_bytes` of an open file from `offset`."""
    state = hashlib.sha256()
    for piece in disk.read_pieces(fd, offset, n_bytes):
        state.update(piece)
    return state.digest()


class Checksums:
    """SHA-256 of the blocks and CRC-32 of the ranges of written rows.

    Hashing is slower than a fast disk and writing waits for the disk, so the two
    overlap: CRC-32 has a thread, and SHA-256 has two, since blocks are independent.
    """

    def __init__(self, n_rows: int, block_rows: int, row_bytes: int) -> None:
        self._hasher = _BlockHasher(n_rows, block_rows, row_bytes)
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

    def digests(self, fd: int, features_offset: int) -> np.ndarray:
        """Digests of all blocks, after what `take` gave; shape (n_blocks, 32), uint8."""
        return self._hasher.finish(fd, features_offset)

    def close(self) -> None:
        """End the threads; what was not summed yet never will be."""
        for pool in (*self._sha256, self._crc):
            pool.shutdown(cancel_futures=True)


class _BlockHasher:
    """Digests of blocks whose rows come in order; the others are read back."""

    def __init__(self, n_rows: int, block_rows: int, row_bytes: int) -> None:
        self._n_rows, self._block_rows, self._row_bytes = n_rows, block_rows, row_bytes
        self._digests = np.zeros((n_blocks(n_rows, block_rows), DIGEST_BYTES), "u1")
        self._has_digest = np.zeros(len(self._digests), bool)
        self._open: dict[int, tuple[Any, int]] = {}

    def parts(self, start: int, data: memoryview) -> Iterator[tuple[int, int, memoryview]]:
        """Split rows into their blocks."""
        stop = start + len(data) // self._row_bytes
        for block in range(start // self._block_rows, n_blocks(stop, self._block_rows)):
            first, last = self._span(block)
            low, high = max(first, start), min(last, stop)
            yield (
                block,
                low,
                data[(low - start) * self._row_bytes : (high - start) * self._row_bytes],
            )

    def _span(self, block: int) -> tuple[int, int]:
        first = block * self._block_rows
        return first, min(first + self._block_rows, self._n_rows)

    def add(self, block: int, low: int, part: memoryview) -> None:
        """Count rows from `low` on, whose bytes are `part`; each block may have its own thread."""
        first, last = self._span(block)
        high = low + len(part) // self._row_bytes
        state, expected = self._open.pop(block, (None, first))
        if low != expected or self._has_digest[block]:
            self._has_digest[block] = False
            return  # out of order: this block is read back at the end
        state = hashlib.sha256() if state is None else state
        state.update(part)
        if high < last:
            self._open[block] = (state, high)
        else:
            self._digests[block] = np.frombuffer(state.digest(), "u1")
            self._has_digest[block] = True

    def finish(self, fd: int, offset: int) -> np.ndarray:
        """All digests; those not known are computed from the file."""

        def read_back(block: int) -> bytes:
            first, last = self._span(block)
            return hash_span(fd, offset + first * self._row_bytes, (last - first) * self._row_bytes)

        unknown = np.flatnonzero(~self._has_digest).tolist()
        for block, digest in zip(unknown, in_threads(read_back, unknown), strict=True):
            self._digests[block] = np.frombuffer(digest, "u1")
        self._has_digest[:] = True
        return self._digests


def _extend(item: Range, data: memoryview) -> None:
    item.crc = zlib.crc32(data, item.crc)
