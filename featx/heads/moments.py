"""Sums over rows that come block by block: all that heads of Gaussians need of tall rows.

One pass gives the sums of every class and of all products of features, so that the rows are never
in memory together; sums of parts are subtracted from those of all, which gives the folds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk
from scipy.sparse import csr_array

from featx.heads.rowspace import RowSpace, require_memory
from featx.heads.scaling import Array

__all__ = ["Moments", "blocks_of", "class_means", "moments_of"]

_BLOCK_BYTES = 8 << 20
_SAMPLE = 400
_COPIES = 3  # of a matrix of products, while one is decomposed


@dataclass(frozen=True)
class Moments:
    """Sums over rows x less a row near their mean, so that a large offset takes no digits.

    Parameters
    ----------
    origin : ndarray of float64, shape (n_features,)
        What is subtracted from each row.
    counts : ndarray of int64, shape (n_classes,)
        Rows of each class.
    sums : ndarray of float64, shape (n_classes, n_features)
        Sum of the rows of each class.
    products : ndarray of float64, shape (n_features, n_features)
        Sum of x x^T; only the lower triangle is meant.
    """

    origin: Array
    counts: NDArray[np.int64]
    sums: Array
    products: Array

    def plus(self, other: Moments, sign: int = 1) -> Moments:
        """Give the sums of both."""
        return Moments(
            self.origin,
            self.counts + sign * other.counts,
            self.sums + sign * other.sums,
            self.products + sign * other.products,
        )

    def less(self, part: Moments) -> Moments:
        """Give the sums without those of a part."""
        return self.plus(part, -1)

    @property
    def scatter(self) -> Array:
        """Products of the rows less the means of their classes, lower triangle."""
        means = self.sums.T / np.sqrt(self.counts)
        return _add_products(self.products.copy(order="F"), means, -1.0)


def blocks_of(space: RowSpace, least: int = 1) -> Iterator[tuple[slice, Array]]:
    """Yield the scaled rows, float64, in blocks of so many rows at least."""
    height = max(least, _BLOCK_BYTES // (8 * space.n_features), 1)
    return space.row_blocks(height, np.float64)


def moments_of(
    space: RowSpace, codes: NDArray[np.int64], member: NDArray[np.int64]
) -> list[Moments]:
    """Add up each part of the rows, in one pass: part 0, part 1, and so on."""
    n, d = space.n_rows, space.n_features
    n_parts, n_classes = int(member.max()) + 1, int(codes.max()) + 1
    require_memory(
        8 * d**2 * (n_parts + _COPIES), f"products of {d:,} features for {n_parts} parts"
    )
    some = np.unique(np.linspace(0, n - 1, min(n, _SAMPLE)).astype(np.int64))
    origin = space.rows(some).mean(axis=0)
    parts = [
        Moments(
            origin,
            np.bincount(codes[member == part], minlength=n_classes),
            np.zeros((n_classes, d)),
            np.zeros((d, d), order="F"),
        )
        for part in range(n_parts)
    ]
    # As many rows of a part at a time as make a product worth adding to the matrix.
    for where, block in blocks_of(space, least=n_parts * (d // 8)):
        for number, part in enumerate(parts):
            of_part = np.flatnonzero(member[where] == number)
            if of_part.size:
                rows = block[of_part] - origin
                _add_sums(part.sums, rows, codes[where][of_part])
                _add_products(part.products, rows.T, 1.0)
    return parts


def class_means(space: RowSpace, codes: NDArray[np.int64]) -> Array:
    """Mean of the scaled rows of each class, (n_classes, n_features), in one pass."""
    counts = np.bincount(codes)
    sums = np.zeros((len(counts), space.n_features))
    for where, block in blocks_of(space):
        _add_sums(sums, block, codes[where])
    return np.asarray(sums / counts[:, None])


def _add_sums(sums: Array, rows: Array, codes: NDArray[np.int64]) -> None:
    n = len(rows)
    sums += csr_array((np.ones(n), (codes, np.arange(n))), shape=(len(sums), n)) @ rows


def _add_products(products: Array, columns: NDArray[Any], sign: float) -> Array:
    """Add columns times their transpose to the lower triangle, in place."""
    return np.asarray(dsyrk(sign, columns, beta=1.0, c=products, lower=1, overwrite_c=1))
