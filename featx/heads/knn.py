"""`knn` and `knn-dino`: votes of the nearest training rows, equal or weighted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from featx.configurable import Configurable, setting
from featx.errors import FitError, ProtocolError
from featx.heads.base import (
    Fit,
    FitOptions,
    Rows,
    RowsView,
    check_finite,
    labels_of,
    row_blocks,
)
from featx.heads.rowspace import RowSpace, require_memory
from featx.heads.scaling import UNSCALED, Array, Scaling
from featx.heads.search import choose
from featx.heads.select import fold_rows
from featx.heads.training import check_options, codes_of

__all__ = ["KNN", "KNN_DINO", "DinoKnnHead", "KnnHead", "KnnModel"]


@dataclass(frozen=True)
class KnnModel:
    """Training rows and how many of them vote."""

    classes_: NDArray[np.int64]
    rows: NDArray[Any]
    codes: NDArray[np.int64]
    n_neighbors: int
    scaling: Scaling = UNSCALED
    link: str = "shares"
    temperature: float | None = None

    def decision_function(self, X: Rows) -> Array:
        """Shares of the votes: (n_rows, n_classes).

        For two classes, (n_rows,): the share of the second, minus one half.
        """
        n_rows, n_features = X.shape
        if n_features != self.rows.shape[1]:
            raise ProtocolError(
                f"the head was fitted on {self.rows.shape[1]:,} features, "
                f"these rows have {n_features:,}"
            )
        require_memory(16 * self.rows.size, f"{len(self.rows):,} training rows of knn in float64")
        known = self.scaling.apply(self.rows)
        squares = _squares(known)
        width = self.n_neighbors * len(self.classes_)
        shares = np.empty((n_rows, len(self.classes_)))
        for rows in row_blocks(n_rows, max(n_features, len(known), width)):
            block = np.asarray(X[rows])
            check_finite(block, rows.start, X.rows if isinstance(X, RowsView) else None)
            new = self.scaling.apply(block)
            own = _squares(new) if self.temperature else None
            shares[rows] = self._shares(_distances(new @ known.T, squares, own))
        return _scores(shares)

    def scores_of_own(self, space: RowSpace) -> Array:
        """Scores of the training rows, which are those of `space`."""
        n, every, is_cosine = len(self.codes), np.arange(len(self.codes)), bool(self.temperature)
        width = self.n_neighbors * len(self.classes_)
        shares = np.empty((n, len(self.classes_)))
        for rows, distances in _of_left_out(space, every, every, width, is_cosine):
            shares[rows] = self._shares(distances)
        return _scores(shares)

    def _shares(self, distances: Array) -> Array:
        """Shares of the votes from distances to the training rows, (n_rows, n_classes)."""
        found = _votes(
            distances, self.codes, self.n_neighbors, len(self.classes_), self.temperature
        )[:, -1]
        return np.asarray(found / found.sum(axis=1, keepdims=True))

    def predict(self, X: Rows) -> NDArray[np.int64]:
        """Labels with most votes, the first among equals, shape (n_rows,)."""
        return labels_of(self.decision_function(X), self.classes_)

    def probabilities(self, scores: Array) -> Array:
        """Shares of the votes, (n_rows, n_classes)."""
        return np.column_stack([0.5 - scores, 0.5 + scores]) if scores.ndim == 1 else scores


def _scores(shares: Array) -> Array:
    """For two classes, (n_rows,): the share of the second, minus one half."""
    return shares[:, 1] - 0.5 if shares.shape[1] == 2 else shares


@dataclass(frozen=True)
class KnnHead(Configurable):
    """The k nearest rows vote: KNeighborsClassifier, Euclidean, uniform votes.

    Distances between training rows come from their Gram matrix, so that one matrix serves
    every fold and every k. Among rows at equal distances the one that comes first is nearer;
    among classes with equal votes the smallest label wins. scikit-learn does the latter always,
    and the former as far as it is defined: its documentation leaves the order of equal distances
    to the order of the rows.
    """

    has_class_weight: ClassVar[bool] = False

    name: str = "knn"
    estimator: str = "sklearn.neighbors.KNeighborsClassifier"
    n_neighbors: tuple[int, ...] = setting((1, 3, 5, 9, 15, 25), within="[1, inf)")
    link: str = "shares"

    @property
    def _temperature(self) -> float | None:
        return None

    def fit(self, space: RowSpace, y: NDArray[np.int64], options: FitOptions) -> Fit:
        """Choose k inside the subset, then keep all of it."""
        check_options(self.name, options)
        classes, codes = codes_of(y)
        space = space.scaled(options.scale)
        folds = fold_rows(codes, options.folds, options.seed, options.groups)
        fewest = min((len(fitted) for fitted, _ in folds), default=max(self.n_neighbors))
        smallest = min(self.n_neighbors)
        if len(self.n_neighbors) > 1:
            smallest = min(smallest, len(codes))
        grid = [k for k in self.n_neighbors if k <= fewest] or [smallest]
        found = choose(
            "n_neighbors",
            grid,
            smallest,
            codes,
            folds,
            lambda folds: [
                _accuracies(space, codes, grid, self._temperature, *fold) for fold in folds
            ],
        )
        k = int(found.value)
        if k > len(codes):
            raise FitError(
                f"n_neighbors={k} but there are {len(codes)} training rows: "
                "take fewer neighbours, or more images per class"
            )
        rows = space.stored
        model = KnnModel(
            classes, rows, codes, k, space.full_scaling, self.link, temperature=self._temperature
        )
        scores = model.scores_of_own(space)
        return Fit(model, cv=found.cv, notes=found.notes, train_scores=scores)


@dataclass(frozen=True)
class DinoKnnHead(KnnHead):
    """The k nearest rows by cosine vote, each with the weight exp(cosine / temperature).

    This is how papers on self-supervised features report k nearest neighbours, with k = 10 or 20
    and a temperature of 0.07.

    References
    ----------
    Z. Wu, Y. Xiong, S. Yu and D. Lin, "Unsupervised feature learning via non-parametric instance
    discrimination", CVPR 2018, section 3.4. M. Caron et al., "Emerging properties in
    self-supervised vision transformers", ICCV 2021, appendix F.1 (``eval_knn.py``).
    """

    name: str = "knn-dino"
    n_neighbors: tuple[int, ...] = setting((10, 20), within="[1, inf)")
    temperature: float = setting(0.07, within="(0, inf)")

    @property
    def _temperature(self) -> float | None:
        return self.temperature


def _accuracies(
    space: RowSpace,
    codes: NDArray[np.int64],
    grid: Sequence[int],
    temperature: float | None,
    fitted: NDArray[np.int64],
    left_out: NDArray[np.int64],
) -> list[float]:
    space = space.refitted(fitted)
    n_classes, right = int(codes.max()) + 1, np.zeros(len(grid))
    most = max(grid)
    is_cosine = temperature is not None
    for rows, distances in _of_left_out(space, left_out, fitted, most * n_classes, is_cosine):
        votes = _votes(distances, codes[fitted], most, n_classes, temperature)
        right += [np.sum(votes[:, k - 1].argmax(axis=1) == codes[rows]) for k in grid]
    return [float(share) for share in right / len(left_out)]


def _of_left_out(
    space: RowSpace,
    left_out: NDArray[np.int64],
    fitted: NDArray[np.int64],
    width: int,
    is_cosine: bool,
) -> Iterator[tuple[NDArray[np.int64], Array]]:
    """Blocks of rows, and their distances to the fitted rows."""
    rows_there = None if space.is_wide else space.dense
    squares = np.diag(space.gram) if rows_there is None else _squares(rows_there)
    for part in row_blocks(len(left_out), max(len(fitted), width)):
        rows = left_out[part]
        inner = (
            space.gram[np.ix_(rows, fitted)]
            if rows_there is None
            else rows_there[rows] @ rows_there[fitted].T
        )
        yield rows, _distances(inner, squares[fitted], squares[rows] if is_cosine else None)


def _distances(inner: Array, squares: Array, own: Array | None) -> Array:
    """Distances in the order of |x - t|^2, from x t and |t|^2; with |x|^2, 1 - 2 cosine.

    |x - t|^2 = |x|^2 - 2 x t + |t|^2, and |x|^2 changes no order of the rows t.
    """
    if own is None:
        return np.asarray(squares - 2.0 * inner)
    norms = np.sqrt(np.outer(own, squares))
    return np.asarray(1.0 - 2.0 * inner / np.where(norms > 0, norms, 1.0))


def _squares(rows: Array) -> Array:
    return np.asarray(np.einsum("ij,ij->i", rows, rows))


def _nearest(distances: Array, k: int) -> NDArray[np.int64]:
    """Positions of the k smallest distances in each row, ascending, the first among equals."""
    return np.argsort(distances, axis=1, kind="stable")[:, :k]


def _votes(
    distances: Array, codes: NDArray[np.int64], k: int, n_classes: int, temperature: float | None
) -> NDArray[Any]:
    """Votes of the classes after each neighbour: (n_rows, k, n_classes).

    With a temperature, distances are 1 - 2 cosine; of equal votes the sum is the same.
    """
    nearest = _nearest(distances, k)
    votes: NDArray[Any] = codes[nearest][:, :, None] == np.arange(n_classes)
    if temperature is not None:
        cosines = -0.5 * np.take_along_axis(distances, nearest, axis=1)
        # Less the largest: shares are the same, and nothing overflows.
        votes = votes * np.exp((cosines - cosines[:, :1]) / temperature)[:, :, None]
    return np.cumsum(votes, axis=1)


KNN = KnnHead()
KNN_DINO = DinoKnnHead()
