"""PCA with whitening, fitted on some rows of a row space: ``--scale whiten``, ``whiten=128``.

With fewer rows than features everything is done with the Gram matrix: no D x D matrix is made, and
the axes themselves (m x D) only where a model needs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from featx.errors import FitError
from featx.heads.scaling import Array, Scaling, n_components_of

if TYPE_CHECKING:
    from featx.heads.rowspace import RowSpace

__all__ = ["Whitening"]


@dataclass(frozen=True)
class Whitening:
    """The rows of `origin` on their m principal axes, each divided by its standard deviation.

    With S the singular values and V the right singular vectors of the n fitted rows less their
    mean, a row x becomes (x - mean) V sqrt(n - 1) / S, as `sklearn.decomposition.PCA` gives it with
    ``whiten=True``. Axes that rounding cannot tell from nothing are left out: of n rows that are
    fewer than their features, n - 1 are left at most.
    """

    origin: RowSpace
    fitted: NDArray[np.int64]
    name: str

    @cached_property
    def _axes(self) -> tuple[Array, Array, Array]:
        """Whitened rows; the matrix A that makes axes; the fitted rows' mean where it is known.

        The axes are Xc^T A where Xc are the fitted rows less their mean, or A itself where there
        are fewer features than rows.
        """
        n = len(self.fitted)
        if self._is_wide:
            inner = self.origin.gram[:, self.fitted]
            largest = float(np.diag(self.origin.gram).max())
            of_mean = inner[self.fitted].mean(axis=0)
            inner = inner - inner.mean(axis=1, keepdims=True) - (of_mean - of_mean.mean())
            square, rows, mean = inner[self.fitted], inner, np.empty(0)
        else:
            dense = self.origin.dense
            mean = dense[self.fitted].mean(axis=0)
            rows = dense - mean
            square, largest = rows[self.fitted].T @ rows[self.fitted], 0.0
        values, vectors = eigh(square)
        largest = max(float(values[-1]), largest)
        seen = np.flatnonzero(values > largest * n * np.finfo(np.float64).eps * 10)[::-1]
        kept = seen[: self._n_kept(len(seen))]
        # Xc^T U has the length S: divided by it once for V, and once more to whiten.
        divisor = values[kept] if self._is_wide else np.sqrt(values[kept])
        axes = vectors[:, kept] * (np.sqrt(n - 1) / divisor)
        return rows @ axes, axes, mean

    @property
    def _is_wide(self) -> bool:
        return len(self.fitted) <= self.origin.n_features

    def _n_kept(self, rank: int) -> int:
        n = len(self.fitted)
        if rank == 0:
            raise FitError(f"--scale {self.name}: the {n:,} training rows are all equal")
        asked = n_components_of(self.name) or rank
        if asked > rank:
            raise FitError(
                f"--scale {self.name}: {n:,} training rows (of a fold, where folds choose) have "
                f"{rank:,} axes: take whiten={rank} or fewer, or more images per class"
            )
        return asked

    @property
    def rows(self) -> Array:
        """All rows of `origin`, whitened, float64, shape (n_rows, m)."""
        return self._axes[0]

    def to_features(self, weights: Array) -> tuple[Array, Array]:
        """Turn weights of whitened rows, (m, k), into those of features, (D, k), and a shift."""
        raw, mean = self._combine(weights)
        return raw, -(mean @ raw)

    @cached_property
    def scaling(self) -> Scaling:
        """The same for raw rows, for models that need every coordinate."""
        axes, mean = self._combine(np.eye(self.rows.shape[1]))
        return Scaling(self.name, mean, None, np.ascontiguousarray(axes.T))

    def _combine(self, weights: Array) -> tuple[Array, Array]:
        """Axes times weights, (D, k), and the mean of the fitted rows, (D,)."""
        _, axes, mean = self._axes
        product = axes @ weights
        if not self._is_wide:
            return product, mean
        # Xc^T P = X^T (P less the mean of its rows); the last column gives the mean row.
        dual = np.zeros((self.origin.n_rows, product.shape[1] + 1))
        dual[self.fitted, :-1] = product - product.mean(axis=0)
        dual[self.fitted, -1] = 1.0 / len(self.fitted)
        both = self.origin.combine(dual)
        return both[:, :-1], both[:, -1]
