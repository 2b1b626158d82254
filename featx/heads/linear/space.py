"""A row space as linear heads see it: scaled to mean squared norm 1, with an intercept.

With few rows the solver works on their Gram matrix; with few features, on the rows, which are
taken in blocks for every product, from memory or from the disk, and converted there: a block that
is still in the processor's cache is multiplied sooner than a large copy in memory is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse.linalg import ArpackError, eigsh

from featx.heads.device import CPU, Matrix, device_for, matrix_on
from featx.heads.linear.geometry import Geometry, GramGeometry, Leading, RowGeometry
from featx.heads.linear.solver import Solution
from featx.heads.rowspace import RowSpace
from featx.heads.scaling import N_CORES, Array
from featx.memory import available_bytes

__all__ = ["LinearSpace"]

_LEADING = 20
_SMALL = 256
_SAMPLE = 400
# All eigenpairs of X^T X, d x d, cost about 10 d^3; one product of the rows, (n, d), by m columns
# and back costs 4 n d m. They save hundreds of products where d^2 is at most this many times n.
_WHOLE = 256
# Of the rows in float64: what the caches of a few cores hold; with fewer rows the sums of
# `RowGeometry.adjoint`, (n_features, m), are read more often than the rows.
_BLOCK_BYTES, _LEAST_HEIGHT = min(N_CORES, 8) * (2 << 20), 256
# Of the available memory, for the rows in float64.
_SHARE = 0.35


@dataclass(frozen=True)
class LinearSpace:
    """What the solver needs of a row space."""

    space: RowSpace
    is_free: bool

    @cached_property
    def is_dual(self) -> bool:
        """Whether the Gram matrix is used."""
        space = self.space
        own = None if space.scaling.is_of_rows else space.n_rows
        return space.is_wide and space.pool.holds_gram(own)

    @cached_property
    def is_streamed(self) -> bool:
        """Whether rows are taken, and converted, again for every product."""
        space = self.space
        if not space.pool.is_in_memory:
            return True
        if space.scaling.is_quick and device_for(space.pool.device, space.n_rows) == CPU:
            return not self.is_dual
        n_bytes = 8 * self.space.n_rows * self.space.n_features
        return not self.is_dual and n_bytes > _SHARE * available_bytes()

    @cached_property
    def scale(self) -> float:
        """Mean squared norm of the rows; 1 where all rows are zero."""
        if self.is_dual:
            return float(np.trace(self.space.gram) / self.space.n_rows) or 1.0
        total = sum(np.einsum("ij,ij->", block, block) for _, block in self._rows())
        return float(total / self.space.n_rows) or 1.0

    def _rows(self, dtype: Any = np.float64) -> Iterator[tuple[slice, NDArray[Any]]]:
        if not self.is_streamed:
            yield slice(0, self.space.n_rows), self.space.dense.astype(dtype, copy=False)
            return
        yield from self.space.row_blocks(self._height, dtype)

    @property
    def _height(self) -> int:
        return max(_LEAST_HEIGHT, _BLOCK_BYTES // (8 * self.space.n_features))

    @cached_property
    def _mean(self) -> Array | None:
        """Mean row over the root of `scale`, where rows are centred."""
        if not self.is_free or self.is_dual:
            return None
        total = np.zeros(self.space.n_features)
        for _, block in self._rows():
            total += block.sum(axis=0)
        return np.asarray(total / self.space.n_rows / np.sqrt(self.scale))

    @property
    def _constant(self) -> float:
        return 0.0 if self.is_free else 1.0 / np.sqrt(self.scale)

    @cached_property
    def _matrix(self) -> Array:
        """Gram matrix of the rows as the solver sees them."""
        gram: Array = self.space.gram / self.scale
        if not self.is_free:
            gram += self._constant**2
            return gram
        means = gram.mean(axis=0)
        gram -= means
        gram -= (means - means.mean())[:, None]
        return gram

    @property
    def has_spectrum(self) -> bool:
        """Whether all eigenpairs of the rows are worth their time."""
        n, d = self.space.n_rows, self.space.n_features
        return not self.is_dual and n > 2 * d and d * d <= _WHOLE * n

    @cached_property
    def _leading(self) -> Leading:
        if self.is_dual:
            values, vectors = _leading_eigenpairs(self._matrix)
            return Leading(values, vectors, vectors * values)
        if self.has_spectrum:
            return Leading(*self._spectrum())
        n = self.space.n_rows
        some = np.unique(np.linspace(0, n - 1, min(n, _SAMPLE)).astype(np.int64))
        rows = self._as_solved(self.space.rows(some))
        values, vectors = _leading_eigenpairs(rows @ rows.T)
        seen = values > values.max(initial=0.0) * 1e-6
        values, vectors = values[seen], rows.T @ (vectors[:, seen] / np.sqrt(values[seen]))
        return Leading(values * (n / len(some)), vectors)

    def _as_solved(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Scaled rows, centred or with the constant, in their own type."""
        rows = rows / rows.dtype.type(np.sqrt(self.scale))
        if self._mean is not None:
            return np.asarray(rows - self._mean.astype(rows.dtype))
        return np.column_stack([rows, np.full(len(rows), self._constant, rows.dtype)])

    def _spectrum(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """All eigenpairs of X^T X, in float32: only speed rests on them."""
        total = np.zeros(2 * (self.space.n_features + (self._mean is None),), np.float32)
        for _, block in self._rows(np.float32):
            for start in range(0, len(block), self._height):
                part = self._as_solved(block[start : start + self._height])
                total += part.T @ part
        values, vectors = eigh(total)
        return np.maximum(values, 0.0), vectors

    def geometry(self, dtype: type[np.float32 | np.float64]) -> Geometry:
        """Rows over the root of `scale`, for the solver."""
        leading, put = _cast(self._leading, dtype), self._put
        if self.is_dual:
            matrix = put(self._matrix.astype(dtype, copy=False))
            n_rows = self.space.n_rows
            return GramGeometry(matrix, n_rows, np.dtype(dtype), leading, self.is_free)
        kept: list[tuple[slice, Matrix]] = []

        def blocks() -> Iterator[tuple[slice, Matrix]]:
            if kept:
                yield from kept
                return
            for rows, block in self._rows(dtype):
                there = put(block)
                if not self.is_streamed:
                    kept.append((rows, there))
                yield rows, there

        return RowGeometry(
            blocks=blocks,
            n_rows=self.space.n_rows,
            n_features=self.space.n_features,
            divisor=float(np.sqrt(self.scale)),
            leading=leading,
            dtype=np.dtype(dtype),
            mean=None if self._mean is None else self._mean.astype(dtype),
            constant=self._constant,
        )

    def _put(self, values: NDArray[Any]) -> Matrix:
        """Bring the Gram matrix, or some of the rows, to where they are multiplied."""
        pool, n_rows = self.space.pool, self.space.n_rows
        # To solve takes two choices of its rows and columns, in float64 too, and the factor.
        solved = n_rows**2 * (2 * values.itemsize + 16) if self.is_dual else 0
        return pool.on_device(
            lambda device: matrix_on(device, values, pool.tell), n_rows, values.nbytes + solved
        )

    def model_of(self, solution: Solution) -> tuple[Array, Array]:
        """Coefficients and intercepts of the scaled features."""
        u, b = self._plain(solution)
        return (self.space.combine(u).T if self.is_dual else u.T), b

    def scores(self, solution: Solution, others: RowSpace) -> Array:
        """Scores of other rows of the same pool and scaling, (n, n_columns)."""
        u, b = self._plain(solution)
        if self.is_dual:
            return np.asarray(others.products(self.space) @ u + b)
        blocks = others.row_blocks(self._height, np.float64)
        return np.concatenate([rows @ u for _, rows in blocks]) + b

    def _plain(self, solution: Solution) -> tuple[Array, Array]:
        """Coefficients w of the scaled features, or numbers a with w = X^T a, and intercepts."""
        u = solution.u.reshape(len(solution.u), -1).astype(np.float64)
        b = solution.intercept.ravel().astype(np.float64)
        if not self.is_dual:
            b = b + self._constant * u[-1] if self._mean is None else b - self._mean @ u
            return u[: self.space.n_features] / np.sqrt(self.scale), b
        if not self.is_free:
            return u / self.scale, b + self._constant**2 * u.sum(axis=0)
        dual = (u - u.mean(axis=0)) / self.scale
        return dual, b - self.space.gram.mean(axis=0) @ dual


def _cast(leading: Leading, dtype: type[np.float32 | np.float64]) -> Leading:
    scores = None if leading.scores is None else leading.scores.astype(dtype)
    return Leading(leading.values.astype(dtype), leading.vectors.astype(dtype), scores)


def _leading_eigenpairs(matrix: Array) -> tuple[Array, Array]:
    n = len(matrix)
    if n > _SMALL:
        # A fixed start vector makes the result, and so every fit, repeatable.
        start = np.random.default_rng(0).normal(size=n)
        try:
            values, vectors = eigsh(matrix, k=_LEADING, v0=start)
        except ArpackError:  # of rows that are all alike; nothing but speed rests on the pairs
            return np.zeros(0), np.zeros((n, 0))
    else:
        values, vectors = eigh(matrix, subset_by_index=(max(0, n - _LEADING), n - 1))
    return np.maximum(values, 0.0), vectors
