"""Rows of features as short vectors that keep their cosines, and as digests, in one pass."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.halves import convert
from featx.heads.base import Rows, RowsView, check_finite, row_blocks
from featx.heads.scaling import N_CORES

__all__ = ["WIDTH", "Sketch", "mean_row", "sketch_rows", "unit_length"]

WIDTH = 1024
"""Values of a sketch; rows that are not longer are their own sketch."""

_DIGEST_BYTES = 16
_MOST_AVERAGED = 512
_MOST_PARTS = 4


@dataclass(frozen=True)
class Sketch:
    """What is kept of rows that are compared."""

    unit: NDArray[np.float32]
    digests: list[bytes]
    is_exact: bool
    centre: NDArray[np.float32]

    @property
    def error(self) -> float:
        """Standard deviation of a sketched cosine c, over 1 - c^2; see `sketch_rows`."""
        return 0.0 if self.is_exact else 1.0 / np.sqrt(max(self.unit.shape[1], 1))


def mean_row(*parts: Rows) -> NDArray[np.float32]:
    """Average finite rows of all parts, up to 512 of each, which lie evenly: (n_features,)."""
    n_features = int(parts[0].shape[1])
    total, n = np.zeros(n_features), 0
    for X in parts:
        n_rows = int(X.shape[0])
        chosen = np.unique(np.linspace(0, n_rows - 1, min(n_rows, _MOST_AVERAGED)).astype(np.int64))
        for some in row_blocks(len(chosen), n_features):
            block = np.asarray(X[chosen[some]]).astype(np.float64)
            block = block[np.isfinite(block).all(axis=1)]
            total, n = total + block.sum(axis=0), n + len(block)
    mean: NDArray[np.float32] = (total / max(n, 1)).astype(np.float32)
    return mean


def sketch_rows(
    X: Rows,
    dtype: np.dtype[Any],
    centre: NDArray[np.float32],
    *,
    with_sketch: bool = True,
    must_be_finite: bool = False,
) -> Sketch:
    r"""Sketch and hash rows, which are read once, in order.

    The values x_1 ... x_D of a row less the centre are cut into `WIDTH` runs of equal length, and
    each run is summed with random signs: s_i = sum over run i of e_j x_j. So s = R x with a fixed R
    whose expected R^T R is the identity, and sketches keep inner products on average (Weinberger,
    Dasgupta, Langford, Smola and Attenberg, "Feature hashing for large scale multitask
    learning", ICML 2009, lemma 2). The cosine of two sketches of m values is that of the rows
    with a standard deviation of about (1 - c^2) / sqrt(m), like a correlation of m samples: for
    twins, where c is near 1, that is little.
    """
    n_rows, n_features = (int(n) for n in X.shape)
    is_exact = n_features <= WIDTH
    width = (n_features if is_exact else WIDTH) if with_sketch else 0
    unit = np.zeros((n_rows, width), np.float32)
    signs = _signs(n_features) if width and not is_exact else None

    def one(rows: slice) -> list[bytes]:
        block = np.asarray(X[rows])
        if width:
            sums = _summed(block, centre, signs)
            unit[rows] = unit_length(sums)
            if must_be_finite and not np.isfinite(sums).all():
                check_finite(block, rows.start, X.rows if isinstance(X, RowsView) else None)
        block = np.ascontiguousarray(block, dtype)
        return [hashlib.sha256(row).digest()[:_DIGEST_BYTES] for row in block]

    # Blocks that are small together, one a thread.
    blocks = row_blocks(n_rows, n_features * min(N_CORES, _MOST_PARTS))
    with ThreadPoolExecutor(N_CORES) as pool:
        parts = list(pool.map(one, blocks))
    return Sketch(unit, [digest for part in parts for digest in part], is_exact, centre)


def _signs(n_features: int) -> NDArray[np.float32]:
    """Signs of the values, shape (WIDTH, run); zeros behind the last value."""
    run = -(-n_features // WIDTH)
    generator = np.random.Generator(np.random.PCG64(0))
    signs = np.zeros(WIDTH * run, np.float32)
    signs[:n_features] = 2 * generator.integers(0, 2, n_features) - 1
    return signs.reshape(WIDTH, run)


def _summed(
    block: NDArray[Any], centre: NDArray[np.float32], signs: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    n_features = block.shape[1]
    padded = np.zeros((len(block), n_features if signs is None else signs.size), np.float32)
    convert(block, padded[:, :n_features])
    padded[:, :n_features] -= centre
    if signs is None:
        return padded
    sums: NDArray[np.float32] = np.einsum("nmw,mw->nm", padded.reshape(-1, *signs.shape), signs)
    return sums


def unit_length(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bring rows to length 1; rows of zeros, or of values that are not finite, become zeros."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        is_usable = np.isfinite(norms) & (norms > 0)
        return np.where(is_usable, rows / norms, np.float32(0))
