"""Training rows seen through their Gram matrix, in at most as many dimensions as rows.

An L2-regularised linear model depends on the rows X (n x D) only through X X^T: its
coefficients are w = X^T a. With n much smaller than D, everything but the last product is done
with the n x n Gram matrix, which one pass over the rows of all subsets gives. With n >= D the
rows themselves are smaller, and are used as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from sklearn.preprocessing import StandardScaler

from featx.errors import ProtocolError
from featx.heads.device import CPU, gram_of, on_device
from featx.heads.scaling import (
    NONE,
    POWER,
    STANDARD,
    UNSCALED,
    Array,
    Scaling,
    Scratch,
    check_scale,
)
from featx.heads.whitening import Whitening
from featx.memory import available_bytes

__all__ = ["Pool", "RowSpace", "require_memory"]

T = TypeVar("T")
Blocks = Iterator[NDArray[Any]]

_BLOCK_BYTES, _NORM_BYTES = 64 << 20, 1 << 20
# On a GPU: one as it is stored, one in float64, and what scaling makes of it.
_BLOCKS_THERE = 4
# Of the available memory, for a Gram matrix and what is made of it.
_SHARE, _COPIES = 0.7, 3.5


class Pool:
    """Raw rows that many subsets share, and their Gram matrix, computed once for them all."""

    def __init__(
        self, X: Any, device: str = CPU, tell: Callable[[str], object] | None = None
    ) -> None:
        self.X, self.device, self._tell = X, device, tell
        self._grams: dict[bool, Array] = {}
        self._norms: dict[bool, Array] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_pool, n_features)."""
        return tuple(self.X.shape)

    @property
    def is_in_memory(self) -> bool:
        """Whether rows are there, not on the disk."""
        return isinstance(self.X, np.ndarray)

    def require_rows(self) -> None:
        """Raise a `ProtocolError` if the rows are on the disk."""
        if not self.is_in_memory:
            n_rows, n_features = self.shape
            raise ProtocolError(
                f"{n_rows:,} x {n_features:,} training rows do not fit into memory, where this "
                "head needs them: take svm, logreg, ridge or ncm, which read them in blocks (lda "
                "too where there are more rows than features), fewer images per class, or features "
                "of a lower dimension (--pool avg)"
            )

    def holds_gram(self, n_rows: int | None = None) -> bool:
        """Whether a Gram matrix of so many rows (all by default) and its copies fit into memory."""
        n = self.shape[0] if n_rows is None else n_rows
        is_there = n_rows is None and bool(self._grams)
        needed = 8 * n**2 * (_COPIES - is_there)
        return self.is_in_memory and needed < _SHARE * available_bytes()

    def tell(self, text: str) -> None:
        """Pass the first sentence on."""
        if self._tell is not None:
            self._tell(text)
            self._tell = None

    def on_device(self, work: Callable[[str], T], n_rows: int, n_bytes: int) -> T:
        """Do work where these rows are computed; see `featx.heads.device.on_device`."""
        return on_device(self.device, work, n_rows=n_rows, n_bytes=n_bytes, tell=self.tell)

    def gram_of(self, n_rows: int, blocks: Callable[[], Blocks], scaling: Scaling) -> Array:
        """Gram matrix of the rows, from blocks of columns as stored, which are scaled here."""
        require_memory(8 * n_rows**2, f"the Gram matrix of {n_rows:,} rows")
        return self.on_device(
            lambda device: gram_of(device, n_rows, blocks(), scaling),
            n_rows,
            8 * n_rows**2 + _BLOCKS_THERE * _BLOCK_BYTES,
        )

    def gram(self, scaling: Scaling) -> Array:
        """Gram matrix of all rows, bent as the scaling wants, float64, (n_pool, n_pool)."""
        is_bent = scaling.name == POWER
        if is_bent not in self._grams:
            self.require_rows()

            def blocks() -> Blocks:
                return (self.X[:, columns] for columns in _column_blocks(*self.X.shape))

            self._grams[is_bent] = self.gram_of(self.shape[0], blocks, scaling)
        return self._grams[is_bent]

    def norms(self, scaling: Scaling) -> Array:
        """Norms of all rows, bent as the scaling wants, (n_pool,)."""
        is_bent = scaling.name == POWER
        if is_bent not in self._norms:
            squares, scratch = np.zeros(self.shape[0]), Scratch()
            height = max(1, _NORM_BYTES // (8 * self.shape[1]))
            for start in range(0, self.shape[0], height):
                block = scaling.bend(self.X[start : start + height], scratch=scratch)
                squares[start : start + height] = np.einsum("ij,ij->i", block, block)
            self._norms[is_bent] = np.sqrt(squares)
        return self._norms[is_bent]


@dataclass(frozen=True)
class RowSpace:
    """Some rows of a pool, scaled, for any number of heads."""

    pool: Pool
    index: NDArray[np.int64]
    scaling: Scaling = UNSCALED
    whitening: Whitening | None = None
    """How the rows of the pool were made of others, where they were."""

    @classmethod
    def of(cls, X: NDArray[Any]) -> RowSpace:
        """Give the space of all rows of an array."""
        return cls(Pool(X), np.arange(len(X)))

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.index)

    @property
    def n_features(self) -> int:
        """Raw dimension."""
        return self.pool.shape[1]

    @property
    def is_wide(self) -> bool:
        """Whether there are fewer rows than features, so that the Gram matrix is used."""
        return self.n_rows < self.n_features

    def scaled(self, name: str, fitted: NDArray[np.int64] | None = None) -> RowSpace:
        """Give the same rows under another scaling."""
        check_scale(name)
        if Scaling(name).is_of_rows:
            return RowSpace(self.pool, self.index, Scaling(name))
        if name == STANDARD:
            rows = self.index if fitted is None else self.index[fitted]
            return RowSpace(self.pool, self.index, _standard(self.pool, rows))
        every = np.arange(self.n_rows)
        whitening = Whitening(self, every if fitted is None else fitted, name)
        pool = Pool(whitening.rows, self.pool.device, self.pool.tell)
        return RowSpace(pool, every, whitening=whitening)

    def part(self, which: NDArray[np.int64]) -> RowSpace:
        """Give some of the rows alone, under a scaling that is fitted on none."""
        return RowSpace(self.pool, self.index[which], self.scaling)

    def products(self, others: RowSpace) -> Array:
        """Inner products with rows of the same pool and scaling, of rows, (n_rows, n_others)."""
        products = self.pool.gram(self.scaling)[np.ix_(self.index, others.index)]
        if self.norms is None or others.norms is None:
            return products
        own, theirs = (np.where(n > 0, n, 1.0) for n in (self.norms, others.norms))
        return np.asarray(products / own[:, None] / theirs)

    @property
    def is_fitted(self) -> bool:
        """Whether the scaling was fitted on rows, so that each fold has its own."""
        return self.whitening is not None or not self.scaling.is_of_rows

    def refitted(self, fitted: NDArray[np.int64]) -> RowSpace:
        """Give the same rows with the scaling fitted on some of them; this where none is fitted."""
        if self.whitening is not None:
            return self.whitening.origin.scaled(self.whitening.name, fitted)
        return self.scaled(self.scaling.name, fitted) if self.is_fitted else self

    @property
    def stored(self) -> NDArray[Any]:
        """The rows as they were before any scaling, shape (n_rows, D)."""
        space = self if self.whitening is None else self.whitening.origin
        return np.asarray(space.pool.X[space.index])

    @property
    def full_scaling(self) -> Scaling:
        """What makes these rows of those of `stored`."""
        return self.scaling if self.whitening is None else self.whitening.scaling

    def to_features(self, weights: Array) -> tuple[Array, Array]:
        """Turn weights of these rows, (n_features, k), into those of features, and a shift.

        Only whitening changes them: its axes are multiplied into the weights.
        """
        if self.whitening is None:
            return weights, np.zeros(weights.shape[1])
        return self.whitening.to_features(weights)

    @cached_property
    def _where(self) -> slice | NDArray[np.int64]:
        """Rows of the pool; all of them without a copy."""
        is_all = np.array_equal(self.index, np.arange(self.pool.shape[0]))
        return slice(None) if is_all else self.index

    @cached_property
    def norms(self) -> Array | None:
        """Norms by which the scaling divides the rows, (n_rows,); None where it does not."""
        return self.pool.norms(self.scaling)[self.index] if self.scaling.has_norms else None

    def _stored(self) -> Blocks:
        for columns in _column_blocks(self.n_rows, self.n_features):
            yield self.pool.X[self._where, columns]

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Yield the scaled rows by columns, float64, each in the memory of the block before."""
        scratch = Scratch()
        for columns in _column_blocks(self.n_rows, self.n_features):
            block = self.pool.X[self._where, columns]
            yield columns, self.scaling.apply(block, columns, self.norms, scratch=scratch)

    @cached_property
    def gram(self) -> Array:
        """Gram matrix of the scaled rows, float64, shape (n_rows, n_rows)."""
        if not self.scaling.is_of_rows:
            return self.pool.gram_of(self.n_rows, self._stored, self.scaling)
        is_plain = isinstance(self._where, slice) and self.norms is None
        return self.pool.gram(self.scaling) if is_plain else self.products(self)

    @cached_property
    def dense(self) -> Array:
        """Scaled rows, float64, shape (n_rows, n_features)."""
        self.pool.require_rows()
        needed = 12 * self.n_rows * self.n_features
        require_memory(needed, f"{self.n_rows:,} x {self.n_features:,} training rows")
        return self.rows(np.arange(self.n_rows))

    def rows(self, which: NDArray[np.int64], dtype: Any = np.float64) -> NDArray[Any]:
        """Give some of the scaled rows, shape (n, n_features)."""
        return self.scaling.apply(np.asarray(self.pool.X[self.index[which]]), dtype=dtype)

    def row_blocks(self, height: int, dtype: Any) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield the scaled rows, so many at a time, each in the memory of the block before."""
        scratch, is_there = Scratch(), self.pool.is_in_memory
        is_all = is_there and isinstance(self._where, slice)
        norms = self.norms if is_there else None
        for start in range(0, self.n_rows, height):
            rows = slice(start, min(start + height, self.n_rows))
            block = np.asarray(self.pool.X[rows if is_all else self.index[rows]])
            if self.scaling.name != NONE or block.dtype != dtype:
                of_rows = None if norms is None else norms[rows]
                block = self.scaling.apply(block, norms=of_rows, dtype=dtype, scratch=scratch)
            yield rows, block

    @cached_property
    def centred(self) -> tuple[Array, Array | None]:
        """Isometric coordinates of the rows less their mean, and how to get them."""
        if not self.is_wide:
            return self.dense - self.dense.mean(axis=0), None
        means = self.gram.mean(axis=0)
        gram = self.gram - means
        gram -= (means - means.mean())[:, None]
        values, vectors = eigh(gram, overwrite_a=True)
        # Rounding leaves null directions with eigenvalues of about n eps times the largest number.
        largest = max(values[-1], float(np.diag(self.gram).max()))
        seen = np.flatnonzero(values > largest * self.n_rows * np.finfo(np.float64).eps * 10)[::-1]
        values, vectors = np.sqrt(values[seen]), vectors[:, seen]
        vectors = vectors - vectors.mean(axis=0)
        # An axis has no sign: its largest number is positive, as in scikit-learn's svd_flip.
        largest_rows = np.abs(vectors).argmax(axis=0)
        vectors = vectors * np.where(vectors[largest_rows, np.arange(len(seen))] < 0, -1.0, 1.0)
        return vectors * values, vectors / values

    def from_centred(self, weights: Array) -> tuple[Array, Array]:
        """Turn weights of `centred` coordinates into weights of features."""
        _, dual = self.centred
        if dual is None:
            return weights, -(self.dense.mean(axis=0) @ weights)
        return self.combine(dual @ weights), -(self._mean_coordinates @ weights)

    @property
    def _mean_coordinates(self) -> Array:
        """Coordinates of the mean row on the axes of `centred`, where it has a dual."""
        means = self.gram.mean(axis=0)
        return np.asarray((means - means.mean()) @ self.centred[1])

    @cached_property
    def coordinates(self) -> tuple[Array, Array | None]:
        """Isometric coordinates of the rows as they are, and how to get them.

        Those of `centred` and of the mean, apart: directions in which rows differ are not lost
        beside a large mean that all share.
        """
        rows, dual = self.centred
        if dual is None:
            return self.dense, None
        of_mean, size = self._mean_coordinates, float(self.gram.mean())
        rows = rows + of_mean
        # What of the mean is orthogonal to all differences between rows.
        rest = size - float(of_mean @ of_mean)
        if rest <= size * self.n_rows * np.finfo(np.float64).eps * 10:
            if rows.shape[1]:
                return rows, dual
            return np.zeros((self.n_rows, 1)), np.zeros((self.n_rows, 1))  # all rows are zero
        height = np.sqrt(rest)
        apart = (1.0 / self.n_rows - dual @ of_mean) / height
        return np.column_stack([rows, np.full(len(rows), height)]), np.column_stack([dual, apart])

    def combine(self, dual: Array) -> Array:
        """Combine the scaled rows: X^T A, float64, shape (n_features, n_columns)."""
        out = np.zeros((self.n_features, dual.shape[1]))
        if self.pool.is_in_memory:
            for columns, block in self.blocks():
                out[columns] = block.T @ dual
            return out
        height = max(1, _BLOCK_BYTES // (8 * self.n_features))
        for rows, block in self.row_blocks(height, np.float64):
            out += block.T @ dual[rows]
        return out


def _standard(pool: Pool, rows: NDArray[np.int64]) -> Scaling:
    """Mean and standard deviation, as StandardScaler has them."""
    n_features = pool.shape[1]
    if not pool.is_in_memory:
        scaler = StandardScaler()
        height = max(1, _BLOCK_BYTES // (8 * n_features))
        for start in range(0, len(rows), height):
            scaler.partial_fit(pool.X[rows[start : start + height]].astype(np.float64))
        return Scaling(STANDARD, scaler.mean_, scaler.scale_)
    mean, std = np.empty(n_features), np.empty(n_features)
    for columns in _column_blocks(len(rows), n_features):
        scaler = StandardScaler().fit(pool.X[rows, columns].astype(np.float64))
        mean[columns], std[columns] = scaler.mean_, scaler.scale_
    return Scaling(STANDARD, mean, std)


def require_memory(n_bytes: int, what: str) -> None:
    """Refuse work that cannot fit into memory, before it starts."""
    available = available_bytes()
    if n_bytes > available:
        raise ProtocolError(
            f"{what}: {n_bytes / 1e9:.1f} GB of memory needed, {available / 1e9:.1f} GB available; "
            "use fewer images per class, or features of a lower dimension (--pool avg)"
        )


def _column_blocks(n_rows: int, n_features: int) -> Iterator[slice]:
    width = max(1, _BLOCK_BYTES // (8 * max(n_rows, 1)))
    return (slice(start, start + width) for start in range(0, n_features, width))
