"""Training rows seen through their Gram matrix, in at most as many dimensions as rows.

An L2-regularised linear model depends on the rows X (n x D) only through X X^T: its
coefficients are w = X^T a. With n much smaller than D, everything but the last product is done
with the n x n Gram matrix, which one pass over the rows of all subsets gives. With n >= D the
rows themselves are smaller, and are used as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse.linalg import eigsh

from featx.errors import ProtocolError
from featx.heads.losses import Array
from featx.heads.solver import Geometry

__all__ = ["RowSpace", "gram_matrix", "require_memory"]

_BLOCK_BYTES = 128 << 20
_LEADING = 20
_SMALL = 256


@dataclass(frozen=True)
class RowSpace:
    """Some rows of a pool, for any number of heads.

    Parameters
    ----------
    pool : ndarray of float16, float32 or float64, shape (n_pool, n_features)
        Raw features, finite.
    index : ndarray of int64, shape (n_rows,)
        Rows of the pool that this space is about.
    pool_gram : ndarray of float64, shape (n_pool, n_pool), optional
        `gram_matrix(pool)`; computed for these rows alone if it is missing and needed.
    """

    pool: NDArray[Any]
    index: NDArray[np.int64]
    pool_gram: Array | None = None

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.index)

    @property
    def n_features(self) -> int:
        """Raw dimension."""
        return int(self.pool.shape[1])

    @property
    def is_wide(self) -> bool:
        """Whether there are fewer rows than features, so that the Gram matrix is used."""
        return self.n_rows < self.n_features

    @cached_property
    def gram(self) -> Array:
        """Gram matrix of the rows, float64, shape (n_rows, n_rows)."""
        if self.pool_gram is None:
            require_memory(8 * self.n_rows**2, f"the Gram matrix of {self.n_rows:,} rows")
            return gram_matrix(self.pool, self.index)
        if np.array_equal(self.index, np.arange(len(self.pool))):
            return self.pool_gram
        return self.pool_gram[np.ix_(self.index, self.index)]

    @cached_property
    def dense(self) -> Array:
        """Raw rows as float64, shape (n_rows, n_features)."""
        needed = 12 * self.n_rows * self.n_features
        require_memory(needed, f"{self.n_rows:,} x {self.n_features:,} training rows")
        return self.pool[self.index].astype(np.float64)

    @cached_property
    def scale(self) -> float:
        """Mean squared norm of the rows; 1 where all rows are zero."""
        if self.is_wide:
            mean = np.trace(self.gram) / self.n_rows
        else:
            mean = np.einsum("ij,ij->", self.dense, self.dense) / self.n_rows
        return float(mean) or 1.0

    @cached_property
    def _leading(self) -> tuple[Array, Array]:
        """Leading eigenpairs of the Gram matrix, or of X^T X, over `scale`."""
        matrix = self.gram if self.is_wide else self.dense.T @ self.dense
        return _leading_eigenpairs(matrix / self.scale)

    def geometry(self, dtype: type[np.float32 | np.float64]) -> Geometry:
        """Rows over the root of `scale`, for the solver.

        Parameters
        ----------
        dtype : float32 or float64
            Precision of the products; the solver's own numbers are float64.

        Returns
        -------
        Geometry
        """
        divisor = self.scale if self.is_wide else np.sqrt(self.scale)
        matrix: NDArray[Any] = (self.gram if self.is_wide else self.dense) / divisor
        return Geometry(matrix.astype(dtype, copy=False), self.is_wide, *self._leading)

    @cached_property
    def coordinates(self) -> tuple[Array, Array | None]:
        """Isometric coordinates of the rows, and how to get them.

        Returns
        -------
        rows : ndarray of float64, shape (n_rows, rank)
            Z with Z Z^T = X X^T, principal axes first; null directions are dropped.
            The raw rows where there are at least as many rows as features.
        dual : ndarray of float64, shape (n_rows, rank), or None
            A with Z = X (X^T A); None where Z = X.
        """
        if not self.is_wide:
            return self.dense, None
        values, vectors = eigh(self.gram)
        # Rounding leaves null directions with eigenvalues of about n eps times the largest.
        floor = values[-1] * self.n_rows * np.finfo(np.float64).eps * 10
        seen = np.flatnonzero(values > floor)[::-1]
        values, vectors = np.sqrt(values[seen]), vectors[:, seen]
        vectors = vectors * np.where(vectors.sum(axis=0) < 0, -1.0, 1.0)
        return vectors * values, vectors / values

    def coefficients(self, u: Array) -> Array:
        """Coefficients of the raw features from the solver's numbers.

        Parameters
        ----------
        u : ndarray of float64, shape (n_rows or n_features, n_columns)
            As in `Solution.u`.

        Returns
        -------
        ndarray of float64, shape (n_columns, n_features)
        """
        w = self.to_raw(u / self.scale) if self.is_wide else u / np.sqrt(self.scale)
        return w.T

    def to_raw(self, dual: Array) -> Array:
        """Combine the raw rows: X^T A, float64, shape (n_features, n_columns).

        Parameters
        ----------
        dual : ndarray of float64, shape (n_rows, n_columns)
            Weights A of the rows.
        """
        out = np.empty((self.n_features, dual.shape[1]))
        for columns in _column_blocks(self.n_rows, self.n_features):
            out[columns] = _block(self.pool, self.index, columns).T @ dual
        return out


def gram_matrix(pool: NDArray[Any], index: NDArray[np.int64] | None = None) -> Array:
    """Gram matrix in float64, by blocks of columns.

    float64 throughout: on 1,000 x 86,528 features, products in float32 are a third faster and
    wrong by 6e-8 of the largest entry.

    Parameters
    ----------
    pool : ndarray of float16, float32 or float64, shape (n_pool, n_features)
        Rows.
    index : ndarray of int64, shape (n_rows,), optional
        Rows to take; all of them by default.

    Returns
    -------
    ndarray of float64, shape (n_rows, n_rows)
    """
    n_rows = len(pool) if index is None else len(index)
    out = np.zeros((n_rows, n_rows))
    for columns in _column_blocks(n_rows, pool.shape[1]):
        block = _block(pool, index, columns)
        out += block @ block.T
    return out


def require_memory(n_bytes: int, what: str) -> None:
    """Refuse work that cannot fit into memory, before it starts.

    Parameters
    ----------
    n_bytes : int
        Bytes to be allocated.
    what : str
        What they are for, for the error text.

    Raises
    ------
    ProtocolError
        If more is needed than is available.
    """
    available = _available_bytes()
    if n_bytes > available:
        raise ProtocolError(
            f"{what}: {n_bytes / 1e9:.1f} GB of memory needed, {available / 1e9:.1f} GB available; "
            "use fewer images per class, or features of a lower dimension (--pool avg)"
        )


def _available_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _column_blocks(n_rows: int, n_features: int) -> Iterator[slice]:
    width = max(1, _BLOCK_BYTES // (8 * max(n_rows, 1)))
    return (slice(start, start + width) for start in range(0, n_features, width))


def _block(pool: NDArray[Any], index: NDArray[np.int64] | None, columns: slice) -> Array:
    part = pool[:, columns] if index is None else pool[index, columns]
    return part.astype(np.float64)


def _leading_eigenpairs(matrix: Array) -> tuple[Array, Array]:
    n = len(matrix)
    if n > _SMALL:
        # A fixed start vector makes the result, and so every fit, repeatable.
        values, vectors = eigsh(matrix, k=_LEADING, v0=np.ones(n))
    else:
        values, vectors = eigh(matrix, subset_by_index=(max(0, n - _LEADING), n - 1))
    return np.maximum(values, 0.0), vectors
