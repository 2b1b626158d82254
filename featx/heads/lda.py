"""`lda`: linear discriminant analysis with a shrunk covariance, solved in the row space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from featx.configurable import Configurable, setting
from featx.heads.base import SOFTMAX, Fit, FitOptions, flat, linear_model
from featx.heads.centroid import class_weights, second_against_first
from featx.heads.moments import Moments, blocks_of, moments_of
from featx.heads.rowspace import RowSpace
from featx.heads.scaling import Array
from featx.heads.search import choose
from featx.heads.select import Folds, fold_rows
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
    Gram matrix of the rows less the means of their classes (Woodbury's identity). With more rows
    than features W comes of sums over blocks of rows, which may stay on the disk.

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
        rows = (_WideRows if space.is_wide else _TallRows)(space, codes)
        accuracies = partial(rows.accuracies, grid)
        found = choose("shrinkage", grid, grid[len(grid) // 2], codes, folds, accuracies)
        notes, gaussians = found.notes, rows.gaussians()
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
        products = rows.times(columns)
        weights = rows.to_weights(columns)
        scores = flat(_with_shared(products, len(coef)) + intercept)
        coef = _with_shared(weights, len(coef)).T
        model = linear_model(space, classes, coef, intercept, SOFTMAX)
        return Fit(model, cv=found.cv, notes=notes, train_scores=scores)


def _with_shared(columns: Array, n_own: int) -> Array:
    """Add what all classes share, which may be large: it is rounded once, alike for all."""
    return np.asarray(columns[:, :n_own] + columns[:, n_own:].sum(axis=1, keepdims=True))


class _WideRows:
    """Fewer rows than features, in coordinates of the rows."""

    def __init__(self, space: RowSpace, codes: NDArray[np.int64]) -> None:
        self._space, self._codes = space, codes

    def gaussians(self) -> _Gaussians:
        """Means and spectrum of all rows."""
        rows, _ = self._space.coordinates
        return _Gaussians.of_rows(rows, self._codes, self._space.n_features)

    def times(self, columns: Array) -> Array:
        """Rows by columns."""
        return np.asarray(self._space.coordinates[0] @ columns)

    def to_weights(self, columns: Array) -> Array:
        """Turn weights of the coordinates into those of the features."""
        _, dual = self._space.coordinates
        return columns if dual is None else self._space.combine(dual @ columns)

    def accuracies(self, grid: Sequence[float], folds: Folds) -> list[list[float]]:
        """Of each shrinkage, fold by fold."""
        found = []
        for fitted, left_out in folds:
            space = self._space.refitted(fitted)
            rows, codes = space.coordinates[0], self._codes
            gaussians = _Gaussians.of_rows(rows[fitted], codes[fitted], space.n_features)
            new, truth = rows[left_out] - gaussians.mean, codes[left_out]
            fits = (gaussians.discriminants(s) for s in grid)
            found.append([float(np.mean(_guess(new, *fit) == truth)) for fit in fits])
        return found


class _TallRows:
    """More rows than features, which are read block by block."""

    def __init__(self, space: RowSpace, codes: NDArray[np.int64]) -> None:
        self._space, self._codes = space, codes
        self._total: Moments | None = None

    def gaussians(self) -> _Gaussians:
        """Means and spectrum of all rows."""
        if self._total is None:
            (self._total,) = moments_of(self._space, self._codes, np.zeros_like(self._codes))
        return _Gaussians.of_moments(self._total)

    def times(self, columns: Array) -> Array:
        """Rows by columns."""
        out = np.empty((len(self._codes), columns.shape[1]))
        for where, block in blocks_of(self._space):
            out[where] = block @ columns
        return out

    def to_weights(self, columns: Array) -> Array:
        """Give the weights, which are those of the features."""
        return columns

    def accuracies(self, grid: Sequence[float], folds: Folds) -> list[list[float]]:
        """Of each shrinkage, fold by fold: in two passes, or two a fold where folds scale rows."""
        if not self._space.is_fitted:
            return self._in_two_passes(grid, folds)
        found = []
        for fold in folds:
            seen = _TallRows(self._space.refitted(fold[0]), self._codes)
            found += seen._in_two_passes(grid, [fold])
        return found

    def _in_two_passes(self, grid: Sequence[float], folds: Folds) -> list[list[float]]:
        member = np.zeros_like(self._codes)  # 0 where no fold leaves the row out
        for fold, (_, left_out) in enumerate(folds):
            member[left_out] = fold + 1
        rest, *parts = moments_of(self._space, self._codes, member)
        total = self._total = reduce(Moments.plus, parts, rest)
        fits = []
        for part in parts:
            gaussians = _Gaussians.of_moments(total.less(part))
            fits.append((gaussians.mean, [gaussians.discriminants(s) for s in grid]))
        right = np.zeros((len(folds), len(grid)))
        for where, block in blocks_of(self._space):
            for fold, (mean, of_grid) in enumerate(fits):
                rows = np.flatnonzero(member[where] == fold + 1)
                new, truth = block[rows] - mean, self._codes[where][rows]
                right[fold] += [np.sum(_guess(new, *fit) == truth) for fit in of_grid]
        n_judged = [len(left_out) for _, left_out in folds]
        return [[float(n / of) for n in row] for row, of in zip(right, n_judged, strict=True)]


def _guess(rows: Array, coef: Array, intercept: Array) -> NDArray[np.int64]:
    return np.asarray((rows @ coef.T + intercept).argmax(axis=1))


class _Gaussians:
    """Means and the spectrum of W, for any shrinkage."""

    def __init__(
        self,
        mean: Array,
        means: Array,
        counts: NDArray[np.int64],
        square: Array,
        squared_norms: float,
        n_features: int,
        centred: Array | None = None,
    ) -> None:
        """Take W times n, or, of the rows less the means of their classes, the Gram matrix."""
        n = int(counts.sum())
        self.mean, self._means, self._centred = mean, means, centred
        self._log_shares = np.log(counts / n)
        self._trace = float(np.trace(square)) / n
        self._n_features = n_features
        self.is_flat = self._trace <= squared_norms * np.finfo(np.float64).eps
        self._values, self._vectors = eigh(square / n)

    @classmethod
    def of_rows(cls, rows: Array, codes: NDArray[np.int64], n_features: int) -> _Gaussians:
        """Take them of rows in memory."""
        # Apart, so that what classes differ in is not rounded beside a large offset of all.
        mean = rows.mean(axis=0)
        rows = rows - mean
        means = rows.T @ class_weights(codes)
        centred = rows - means.T[codes]
        n, d = centred.shape
        square = centred @ centred.T if n < d else centred.T @ centred
        size = float(np.einsum("ij,ij->", rows, rows))
        of_gram = centred if n < d else None
        return cls(mean, means, np.bincount(codes), square, size, n_features, of_gram)

    @classmethod
    def of_moments(cls, moments: Moments) -> _Gaussians:
        """Take them of sums over rows."""
        n, d = moments.counts.sum(), len(moments.origin)
        offset = moments.sums.sum(axis=0) / n
        means = (moments.sums / moments.counts[:, None] - offset).T
        size = float(np.trace(moments.products) - n * offset @ offset)
        mean = moments.origin + offset
        return cls(mean, means, moments.counts, moments.scatter, size, d)

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
        if self._centred is None:
            return np.asarray(self._vectors @ ((self._vectors.T @ means) / damped))
        # Woodbury, with W = Z^T Z / n and Z Z^T / n = V diag(values) V^T:
        # (1 / ridge) (I - Z^T V diag(kept / (n damped)) V^T Z)
        inner = self._vectors.T @ (self._centred @ means) / len(self._centred)
        part = self._centred.T @ (self._vectors @ (kept * inner / damped))
        return np.asarray((means - part) / ridge)


LDA = LdaHead()
