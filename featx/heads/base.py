"""What a head is: a name, and a fit that gives a model of raw features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from featx.configurable import check_number
from featx.errors import ProtocolError
from featx.halves import is_finite
from featx.heads.rowspace import RowSpace
from featx.heads.scaling import NONE, UNSCALED, Array, Scaling, Scratch

__all__ = [
    "LARGEST_SEED",
    "SOFTMAX",
    "CvCurve",
    "Fit",
    "FitOptions",
    "Head",
    "LinearModel",
    "Model",
    "Rows",
    "RowsView",
    "as_stored",
    "check_finite",
    "flat",
    "labels_of",
    "linear_model",
    "raw_product",
    "row_blocks",
    "softmax_of",
]

_BLOCK_BYTES = 64 << 20
SOFTMAX = "softmax"
"""The link of logits."""
LARGEST_SEED = 2**32 - 1
"""What scikit-learn and NumPy's older generators take."""


class Rows(Protocol):
    """Raw features, in memory or on disk, read by slices of rows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_rows, n_features)."""

    def __getitem__(self, key: Any, /) -> Any:
        """Rows as an ndarray."""


@dataclass(frozen=True)
class RowsView:
    """Some rows of a lazy matrix, as lazy as the matrix."""

    X: Rows
    rows: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_rows, n_features)."""
        return len(self.rows), int(self.X.shape[1])

    def __getitem__(self, key: slice | NDArray[np.int64], /) -> NDArray[Any]:
        return np.asarray(self.X[self.rows[key]])


def as_stored(X: Rows) -> Rows:
    """Rows in the type of their file: smaller, and the same values."""
    stored: Rows = getattr(X, "stored", X)
    return stored


class Model(Protocol):
    """A fitted head, applied to raw features."""

    @property
    def classes_(self) -> NDArray[np.int64]:
        """Labels, ascending."""

    def decision_function(self, X: Rows) -> Array:
        """Scores: (n_rows, n_classes), or (n_rows,) for the second of two classes."""

    def predict(self, X: Rows) -> NDArray[np.int64]:
        """Labels of the largest scores, shape (n_rows,)."""

    def probabilities(self, scores: Array) -> Array | None:
        """Probabilities, (n_rows, n_classes), from what `decision_function` gave.

        None where the head has none.
        """


@dataclass(frozen=True)
class FitOptions:
    """Settings of one fit."""

    C: float | None = None
    folds: int = 5
    seed: int = 0
    groups: NDArray[np.int64] | None = field(default=None, compare=False)
    scale: str = NONE
    class_weight: str | None = None
    tick: Callable[[str], object] = field(default=str, compare=False)
    """Is called again and again while a fit goes on, with what it does now."""

    def __post_init__(self) -> None:
        if self.C is not None:
            check_number("C", self.C, "(0, inf)")
        check_number("folds", self.folds, "[2, inf)", is_whole=True)
        check_number("seed", self.seed, f"[0, {LARGEST_SEED}]", is_whole=True)


@dataclass(frozen=True)
class CvCurve:
    """Accuracies of the cross-validation inside the subset."""

    C: tuple[float, ...]
    accuracy: tuple[tuple[float, ...], ...]
    parameter: str = "C"

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean over folds, one for each penalty."""
        # The same sum as in GridSearchCV, so that ties are the same ties.
        return tuple(float(mean) for mean in np.average(np.array(self.accuracy), axis=1))

    @property
    def best(self) -> int:
        """Position of the best mean; the smallest penalty among equals."""
        return int(np.argmax(self.mean))


@dataclass(frozen=True)
class Fit:
    """A fitted head and how it came about.

    Parameters
    ----------
    model : Model
        Predicts from raw features.
    C : float or None
        Penalty of the raw features; None where the head has none.
    cv : CvCurve or None
        None where nothing was searched.
    n_iter : int
        Iterations of the final fit.
    converged : bool
        Whether the final fit met its tolerance.
    notes : tuple of str
        What a reader of the result must know, warnings included.
    train_scores : ndarray of float64, shape (n_rows, n_classes) or (n_rows,), optional
        Decision scores of the rows that were fitted, where the solver knows them.
    """

    model: Model
    C: float | None = None
    cv: CvCurve | None = None
    n_iter: int = 0
    converged: bool = True
    notes: tuple[str, ...] = ()
    train_scores: Array | None = field(default=None, compare=False, repr=False)


class Head(Protocol):
    """One kind of classifier."""

    @property
    def name(self) -> str:
        """What people type."""

    @property
    def estimator(self) -> str:
        """The scikit-learn estimator it stands for, for documentation."""

    def fit(self, space: RowSpace, y: NDArray[np.int64], options: FitOptions) -> Fit:
        """Fit on the rows of `space`, whose labels are `y`, shape (n_rows,)."""


@dataclass(frozen=True)
class LinearModel:
    """A linear classifier of raw features, with scikit-learn's names."""

    classes_: NDArray[np.int64]
    coef_: Array
    intercept_: Array
    scaling: Scaling = UNSCALED
    link: str = ""

    def decision_function(self, X: Rows) -> Array:
        """Scores: (n_rows, n_classes), or (n_rows,) for the second of two classes."""
        return flat(raw_product(X, self.coef_.T, self.scaling) + self.intercept_)

    def probabilities(self, scores: Array) -> Array | None:
        """Probabilities, (n_rows, n_classes), where there is a link."""
        return softmax_of(scores) if self.link == SOFTMAX else None

    def predict(self, X: Rows) -> NDArray[np.int64]:
        """Labels of the largest scores, shape (n_rows,)."""
        return labels_of(self.decision_function(X), self.classes_)


def flat(scores: Array) -> Array:
    """Scores as a `Model` gives them: one column becomes (n_rows,)."""
    return scores[:, 0] if scores.shape[1] == 1 else scores


def linear_model(
    space: RowSpace,
    classes: NDArray[np.int64],
    coef: Array,
    intercept: Array,
    link: str = "",
) -> LinearModel:
    """Make a model of raw features from coefficients of the rows of a space."""
    weights, shift = space.to_features(coef.T)
    return LinearModel(classes, weights.T, intercept + shift, space.scaling, link)


def labels_of(scores: Array, classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels of the largest scores, the first among equals."""
    best = (scores > 0).astype(np.int64) if scores.ndim == 1 else scores.argmax(axis=1)
    return np.asarray(classes[best])


def softmax_of(scores: Array) -> Array:
    """Probabilities of all classes from logits."""
    logits = np.column_stack([np.zeros_like(scores), scores]) if scores.ndim == 1 else scores
    return np.asarray(softmax(logits, axis=1))


def raw_product(X: Rows, weights: Array, scaling: Scaling = UNSCALED) -> Array:
    """Scaled X @ weights in float64, by blocks of rows, so that X can stay on disk."""
    n_rows, n_features = X.shape
    if n_features != len(weights):
        raise ProtocolError(
            f"the head was fitted on {len(weights):,} features, these rows have {n_features:,}"
        )
    weights = np.ascontiguousarray(weights)
    out, scratch = np.empty((n_rows, weights.shape[1])), Scratch()
    for rows in row_blocks(n_rows, n_features):
        block = np.asarray(X[rows])
        check_finite(block, rows.start, X.rows if isinstance(X, RowsView) else None)
        out[rows] = scaling.apply(block, scratch=scratch) @ weights
    return out


def check_finite(block: NDArray[Any], first: int, rows: NDArray[np.int64] | None = None) -> None:
    """Raise an error that names the rows with NaN or infinity."""
    if block.dtype == np.float16 and is_finite(block):
        return
    # A sum is finite only if all its terms are; it reads the block once, without a mask.
    with np.errstate(invalid="ignore", over="ignore"):
        suspect = np.flatnonzero(~np.isfinite(block.sum(axis=1, dtype=np.float64)))
    bad = [int(i) + first for i in suspect if not np.isfinite(block[i]).all()]
    if bad:
        names = bad if rows is None else rows[bad].tolist()
        shown = ", ".join(str(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
        raise ProtocolError(
            f"{len(bad)} rows hold NaN or infinity (rows {shown}): extract these features again, "
            "in float32 if float16 overflowed"
        )


def row_blocks(n_rows: int, n_features: int) -> Iterator[slice]:
    """Cut rows into slices that fit into memory as float64, whatever the dimension."""
    height = max(1, _BLOCK_BYTES // (8 * max(n_features, 1)))
    return (slice(i, min(i + height, n_rows)) for i in range(0, n_rows, height))
