"""Whether every byte of a cache is as it was written."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from featx.errors import CacheError
from featx.progress import Reporter
from featx.store import disk
from featx.store.check import Header
from featx.store.digest import hash_span
from featx.store.seal import Seal, hash_file, read_block
from featx.store.threads import in_threads

__all__ = ["Damage", "verify_blocks", "verify_seal"]


@dataclass(frozen=True)
class Damage:
    """A part of a cache that is not as it was written."""

    dataset: str
    start: int
    stop: int
    reason: str

    def __str__(self) -> str:
        rows = f" rows {self.start}-{self.stop - 1}" if self.stop > self.start else ""
        return f"{self.dataset}{rows}: {self.reason}"


def verify_seal(fd: int, seal: Seal) -> list[Damage]:
    """Compare all but the features with the seal."""
    try:
        with disk.translated("cannot read it"):
            if read_block(fd) != seal.render():
                return [Damage("header", 0, 0, "its first 4,096 bytes changed")]
            if os.fstat(fd).st_size != seal.file_bytes:
                return [Damage("header", 0, 0, "its size changed")]
            if hash_file(fd, seal) != seal.digest:
                return [Damage("header", 0, 0, "labels, names, status or structure changed")]
    except CacheError as error:
        return [Damage("header", 0, 0, str(error))]
    return []


def verify_blocks(
    fd: int, header: Header, digests: np.ndarray, reporter: Reporter, label: str
) -> list[Damage]:
    """Compare the features with their digests, a block of rows at a time."""
    n_rows = header.features.shape[0]
    row_bytes = header.features.n_bytes // n_rows

    def problem(block: int) -> str:
        first, last = _span(block, header)
        offset = header.features.offset + first * row_bytes
        try:
            with disk.translated("cannot be read"):
                digest = hash_span(fd, offset, (last - first) * row_bytes)
        except CacheError as error:
            return str(error)
        return "" if digest == digests[block].tobytes() else "changed since they were written"

    found: list[Damage] = []
    blocks = range(len(digests))
    with reporter.bar(n_rows, label, "row") as bar:
        for block, reason in zip(blocks, in_threads(problem, blocks), strict=True):
            first, last = _span(block, header)
            bar.update(last - first)
            if reason and found and (found[-1].stop, found[-1].reason) == (first, reason):
                first = found.pop().start
            if reason:
                found.append(Damage("features", first, last, reason))
    return found


def _span(block: int, header: Header) -> tuple[int, int]:
    first = block * header.block_rows
    return first, min(first + header.block_rows, header.features.shape[0])
