"""A cache seen through its neighbours: a map, likely wrong labels, near-duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors

from featx.errors import CacheError, MissingExtraError
from featx.evaluate.near import WIDTH, mean_row, near_within, sketch_rows, unit_length
from featx.heads.base import RowsView, check_finite
from featx.heads.classifier import Classifier
from featx.progress import SILENT, Reporter
from featx.store import Cache

__all__ = ["Neighbourhood", "look_at"]

_NEIGHBOURS = 10
_FOLDS = 5
_HEAD = "lda"
_MAJORITY = 0.5
_MOST_EXACT_BYTES = 1 << 30
_MOST_PREDICTED = 20_000
_UMAP_DIMENSIONS = 50


@dataclass(frozen=True)
class Neighbourhood:
    """Some rows of a cache, each with its place on a map and its nearest neighbours.

    Arrays are of the n rows looked at; neighbours and pairs are positions among them, from 0 to
    n - 1. Classes are numbers, -1 where there is none.
    """

    rows: NDArray[np.int64]  # (n,), rows of the cache
    labels: NDArray[np.int64]  # (n,)
    place: NDArray[np.float64]  # (n, 2)
    neighbours: NDArray[np.int64]  # (n, k), nearest first
    cosines: NDArray[np.float64]  # (n, k), of rows less the mean row
    voted: NDArray[np.int64]  # (n,), class that most neighbours have
    votes: NDArray[np.float64]  # (n,), share of the neighbours that have it
    predicted: NDArray[np.int64]  # (n,), class predicted by a head that was fitted without the row
    margins: NDArray[np.float64]  # (n,), its score less that of the label
    twins: NDArray[np.int64]  # (n_pairs, 2), nearest first
    is_exact: bool  # whether cosines are those of whole features

    @property
    def suspects(self) -> NDArray[np.int64]:
        """Positions of labels that neighbours and prediction contradict, the surest first.

        Most neighbours and the head name the same other class; ordered by the margin of the head.
        """
        is_other = (self.voted != self.labels) & (self.predicted == self.voted)
        is_other &= (self.votes >= _MAJORITY) & (self.labels >= 0)
        found = np.flatnonzero(is_other)
        return found[np.argsort(-self.margins[found], kind="stable")]


def look_at(
    cache: Cache, limit: int | None, drawn: str = "pca", reporter: Reporter = SILENT
) -> Neighbourhood:
    """Find the neighbours of some rows of a cache: of all, or of `limit` that are drawn.

    The features are those rows less their mean, at length 1. Where they take more than 1 GB,
    sketches of 1,024 values stand for them (`featx.evaluate.near`).
    """
    rows = np.flatnonzero(np.asarray(cache.status) == 1)
    if len(rows) < 3:
        raise CacheError(f"{cache.path} has {len(rows)} rows with features: a map needs 3")
    if limit is not None and limit < len(rows):
        rows = np.sort(np.random.default_rng(0).choice(rows, limit, replace=False))
    with reporter.bar(4, f"explore {cache.path.name}", "step") as bar:
        unit, is_exact = _unit_rows(cache, rows)
        labels = np.asarray(cache.y)[rows]
        bar.update(1, "features")
        k = min(_NEIGHBOURS, len(rows) - 1)
        index = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(unit)
        distances, neighbours = index.kneighbors()  # without the row itself
        bar.update(1, "neighbours")
        place = _place(unit, drawn)
        bar.update(1, "map")
        predicted, margins = _predicted(unit, labels)
        bar.update(1, "predictions")
    voted, votes = _votes(labels[neighbours])
    return Neighbourhood(
        rows=rows,
        labels=labels,
        place=place,
        neighbours=neighbours,
        cosines=1 - distances,
        voted=voted,
        votes=votes,
        predicted=predicted,
        margins=margins,
        twins=near_within(neighbours, 1 - distances.astype(np.float64)),
        is_exact=is_exact,
    )


def _unit_rows(cache: Cache, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], bool]:
    """Centre rows and bring them to length 1, or sketch them; tell which."""
    view = RowsView(cache.X, rows)
    centre = mean_row(view)
    n_features = int(cache.X.shape[1])
    if n_features > WIDTH and 4 * len(rows) * n_features <= _MOST_EXACT_BYTES:
        whole = np.asarray(cache.X[rows]).astype(np.float32)
        check_finite(whole, 0, rows)
        return unit_length(whole - centre), True
    sketch = sketch_rows(view, np.dtype(np.float32), centre, must_be_finite=True)
    return sketch.unit, sketch.is_exact


def _place(unit: NDArray[np.float32], drawn: str) -> NDArray[np.float64]:
    if drawn == "pca":
        return np.asarray(PCA(2, random_state=0).fit_transform(unit), np.float64)
    try:
        from umap import UMAP
    except ImportError as error:
        raise MissingExtraError("umap-learn", "umap", "--map umap") from error
    short = min(_UMAP_DIMENSIONS, *unit.shape)
    reduced = PCA(short, random_state=0).fit_transform(unit)
    # One thread, as UMAP wants it where a seed is given.
    found = UMAP(metric="cosine", random_state=0, n_jobs=1).fit_transform(reduced)
    return np.asarray(found, np.float64)


def _votes(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Give the class that most neighbours have, and its share of all k; the nearer where equal."""
    voted = np.full(len(labels), -1)
    votes = np.zeros(len(labels))
    for i, row in enumerate(labels):
        known = row[row >= 0]
        if known.size:
            names, first, counts = np.unique(known, return_index=True, return_counts=True)
            best = np.lexsort((first, -counts))[0]
            voted[i], votes[i] = names[best], counts[best] / len(row)
    return voted, votes


def _predicted(
    unit: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Predict each row by a head that was fitted without its fold; -1 in classes of few rows."""
    predicted, margins = np.full(len(labels), -1), np.zeros(len(labels))
    counts = np.bincount(labels[labels >= 0], minlength=1)
    chosen = np.flatnonzero((labels >= 0) & (counts[labels] >= _FOLDS))
    classes, truth = np.unique(labels[chosen], return_inverse=True)
    if len(classes) < 2 or len(chosen) > _MOST_PREDICTED:
        return predicted, margins
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    scores = cross_val_predict(
        Classifier(_HEAD), unit[chosen], truth, cv=folds, method="decision_function"
    )
    if scores.ndim == 1:  # two classes
        scores = np.column_stack([-scores, scores])
    predicted[chosen] = classes[scores.argmax(axis=1)]
    margins[chosen] = scores.max(axis=1) - scores[np.arange(len(truth)), truth]
    return predicted, margins
