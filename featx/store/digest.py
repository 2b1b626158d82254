"""SHA-256 of blocks of rows, while they are written and when they are read back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from featx.store import disk
from featx.store.image import n_blocks
from featx.store.layout import DIGEST_BYTES
from featx.store.threads import in_threads

__all__ = ["BlockHasher", "hash_span"]

_READ_BYTES: Final = 1 << 20


def hash_span(fd: int, offset: int, n_bytes: int) -> bytes:
    """SHA-256 of `n_bytes` of an open file from `offset`."""
    state = hashlib.sha256()
    buffer = memoryview(bytearray(min(_READ_BYTES, n_bytes)))
    for start in range(0, n_bytes, _READ_BYTES):
        view = buffer[: min(_READ_BYTES, n_bytes - start)]
        disk.pread_into(fd, view, offset + start)
        state.update(view)
    return state.digest()


class BlockHasher:
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
