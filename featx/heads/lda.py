"""`lda`: linear discriminant analysis with a shrunk covariance, solved in the row space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from featx.configurable import Configurable, setting
from featx.heads.base import SOFTMAX, Fit, FitOptions, flat, linear_model
from featx.heads.centroid import class_weights, second_against_first
from featx.heads.rowspace import RowSpace
from featx.heads.scaling import Array
from featx.heads.search import choose
from featx.heads.select import fold_rows
from featx.heads.training import check_options, codes_of

__all__ = ["LDA", "LdaHead"]


@dataclass(frozen=True)
class LdaHead(Configurable):
    r"""One Gaussian a class, all with one covariance, shrunk toward a multiple of the identity.

    It is ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage=s)``. With M the means of the
    classes (n_features x n_classes), p their shares of the rows, and W = sum over rows of
    (x - m)(x - m)^T / n, m the mean of the row's class::

        S = (1 - s) W + s trace(W) / n_features I,    coefficients S^-1 M,
        intercept of a class  -m^T S^-1 m / 2 + log p

    S is a multiple of the identity outside the span of the rows, and the means lie inside it, so
    that everything is done in coordinates of the rows, isometric to the features. One
    eigendecomposition of W serves all s; with fewer rows than coordinates it is that of the
    Gram matrix of the rows less the means of their classes (Woodbury's identity).

    References
    ----------
    O. Ledoit and M. Wolf, "A well-conditioned estimator for large-dimensional covariance
    matrices", Journal of Multivariate Analysis 88(2), 2004, equation 14 (the form of S).
    T. Hastie, R. Tibshirani and J. Friedman, "The Elements of Statistical Learning", 2nd
    edition, 2009, equation 4.10 (the discriminants).
    """

    has_class_weight: ClassVar[bool] = False

    name: str = "lda"
    estimator: str = "sklearn.discriminant_analysis.LinearDiscriminantAnalysis"
    shrinkage: tuple[float, ...] = setting((0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9), within="(0, 1]")
    link: str = SOFTMAX

    def fit(self, space: RowSpace, y: NDArray[np.int64], options: FitOptions) -> Fit:
        """Choose the shrinkage inside the subset, then fit on all of it."""
        check_options(self.name, options)
        classes, codes = codes_of(y)
        space = space.scaled(options.scale)
        folds = fold_rows(codes, options.folds, options.seed, options.groups)
        grid = self.shrinkage
        found = choose(
            "shrinkage",
            grid,
            grid[len(grid) // 2],
            codes,
            folds,
            partial(_accuracies, space, codes, grid),
        )
        notes = found.notes
        rows, dual = space.coordinates
        gaussians = _Gaussians(rows, codes, space.n_features)
        if gaussians.is_flat:
            notes += ("rows do not differ from the means of their classes: nearest class mean",)
        coef, intercept = second_against_first(*gaussians.discriminants(found.value))
        intercept = intercept - coef @ gaussians.mean
        columns = coef.T
        if len(classes) > 2:
            # scikit-learn's scores have more, the same for all classes; two classes cancel it.
            shared = gaussians.of_mean(found.value)
            intercept = intercept - 0.5 * gaussians.mean @ shared
            columns = np.column_stack([columns, shared])
        scores = flat(_with_shared(rows @ columns, len(coef)) + intercept)
        weights = columns if dual is None else space.combine(dual @ columns)
        coef = _with_shared(weights, len(coef)).T
        model = linear_model(space, classes, coef, intercept, SOFTMAX)
        return Fit(model, cv=found.cv, notes=notes, train_scores=scores)


def _with_shared(columns: Array, n_own: int) -> Array:
    """Add what all classes share, which may be large: it is rounded once, alike for all."""
    return np.asarray(columns[:, :n_own] + columns[:, n_own:].sum(axis=1, keepdims=True))


def _accuracies(
    space: RowSpace,
    codes: NDArray[np.int64],
    grid: Sequence[float],
    fitted: NDArray[np.int64],
    left_out: NDArray[np.int64],
) -> list[float]:
    space = space.refitted(fitted)
    rows, _ = space.coordinates
    gaussians = _Gaussians(rows[fitted], codes[fitted], space.n_features)
    fits = (gaussians.discriminants(s) for s in grid)
    new = rows[left_out] - gaussians.mean
    guesses = ((new @ coef.T + b).argmax(axis=1) for coef, b in fits)
    return [float((guess == codes[left_out]).mean()) for guess in guesses]


class _Gaussians:
    """Means and the spectrum of W, for any shrinkage."""

    def __init__(self, rows: Array, codes: NDArray[np.int64], n_features: int) -> None:
        # Apart, so that what classes differ in is not rounded beside a large offset of all.
        self.mean = rows.mean(axis=0)
        rows = rows - self.mean
        self._means = rows.T @ class_weights(codes)
        self._log_shares = np.log(np.bincount(codes) / len(codes))
        self._centred = rows - self._means.T[codes]
        n, d = self._centred.shape
        self._is_dual = n < d
        square = self._centred @ self._centred.T if n < d else self._centred.T @ self._centred
        self._trace = float(np.trace(square)) / n
        self._n_features = n_features
        size = float(np.einsum("ij,ij->", rows, rows)) / n
        self.is_flat = self._trace <= size * n * np.finfo(np.float64).eps
        self._values, self._vectors = eigh(square / n)

    def discriminants(self, shrinkage: float) -> tuple[Array, Array]:
        """Of rows less `mean`: coefficients (n_classes, n_coordinates), intercepts (n_classes,)."""
        solved = self._solve(self._means, shrinkage)
        intercept = -0.5 * np.einsum("ij,ij->j", self._means, solved) + self._log_shares
        return solved.T, intercept

    def of_mean(self, shrinkage: float) -> Array:
        """S^-1 applied to `mean`, (n_coordinates,)."""
        return self._solve(self.mean[:, None], shrinkage)[:, 0]

    def _solve(self, means: Array, shrinkage: float) -> Array:
        """S^-1 = (kept W + ridge I)^-1 applied to means, (n_coordinates, n_means)."""
        kept = 0.0 if self.is_flat else 1.0 - shrinkage
        ridge = 1.0 if self.is_flat else shrinkage * self._trace / self._n_features
        damped = (ridge + kept * np.maximum(self._values, 0.0))[:, None]
        if not self._is_dual:
            return np.asarray(self._vectors @ ((self._vectors.T @ means) / damped))
        # Woodbury, with W = Z^T Z / n and Z Z^T / n = V diag(values) V^T:
        # (1 / ridge) (I - Z^T V diag(kept / (n damped)) V^T Z)
        inner = self._vectors.T @ (self._centred @ means) / len(self._centred)
        part = self._centred.T @ (self._vectors @ (kept * inner / damped))
        return np.asarray((means - part) / ridge)


LDA = LdaHead()
