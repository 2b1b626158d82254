"""One fit with its scores: all that it needs can be sent to another machine."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featx.errors import FitError
from featx.evaluate.question import Question, Subset
from featx.evaluate.scores import MEASURES, score
from featx.evaluate.settings import Settings
from featx.heads import Fit, FitOptions, Head, Pool, RowSpace, find_head
from featx.heads.base import RowsView, as_stored, labels_of
from featx.heads.boundary import fit_errors
from featx.heads.linear import LinearHead
from featx.heads.scaling import Array

__all__ = ["Fitting"]

_NOT_FINITE = (
    "its scores are not finite; take another --scale, or a C that is nearer to 1 over the mean "
    "squared norm of the features"
)

# Heads that fit scikit-learn's iterative estimators record their warnings, and Python keeps
# one record for all threads of a process.
_one_at_a_time = Lock()


@dataclass(frozen=True)
class _Timed:
    """A fit with its decision scores of the test rows, and times in seconds."""

    fit: Fit
    train_acc1: float
    decisions: Array
    fit_seconds: float
    predict_seconds: float


@dataclass(frozen=True)
class Fitting:
    """What all fits of a question have in common."""

    settings: Settings
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None
    class_names: list[str]
    test: RowsView
    truth: NDArray[np.int64]

    @classmethod
    def of(cls, question: Question) -> Self:
        """Take it from a question."""
        pair = question.pair
        return cls(
            question.settings,
            np.asarray(pair.train.y),
            None if pair.groups is None else pair.groups.train,
            pair.train.class_names,
            RowsView(as_stored(pair.test.X), question.test_rows),
            question.truth,
        )

    def __call__(
        self,
        pool: Pool,
        name: str,
        subset: Subset,
        index: NDArray[np.int64],
        tick: Callable[[str], object] = str,
    ) -> tuple[dict[str, Any], Fit | None]:
        """Fit a head on some rows of a pool; give the fields of a result, and the fit."""
        head = find_head(name, self.settings.allow_code)
        started = time.perf_counter()
        try:
            with fit_errors(name):
                timed = self._timed(head, subset, RowSpace(pool, index), tick)
                if not (np.isfinite(timed.decisions).all() and np.isfinite(timed.fit.C or 0.0)):
                    raise FitError(_NOT_FINITE)
                measures = self._measures(timed)
        except FitError as error:
            seconds = time.perf_counter() - started
            return _failure(name, error, seconds), None
        return measures, timed.fit

    def _timed(
        self, head: Head, subset: Subset, space: RowSpace, tick: Callable[[str], object]
    ) -> _Timed:
        groups = None if self.groups is None else self.groups[subset.rows]
        options = FitOptions(
            self.settings.C,
            self.settings.folds,
            subset.seed,
            groups,
            self.settings.scale,
            self.settings.class_weight,
            tick,
        )
        labels = self.labels[subset.rows]
        with nullcontext() if isinstance(head, LinearHead) else _one_at_a_time:
            started = time.perf_counter()
            fit = head.fit(space, labels, options)
            fit_seconds = time.perf_counter() - started
        train_acc1 = np.mean(_fitted_labels(fit, space) == labels)
        started = time.perf_counter()
        decisions = fit.model.decision_function(self.test)
        return _Timed(fit, float(train_acc1), decisions, fit_seconds, time.perf_counter() - started)

    def _measures(self, timed: _Timed) -> dict[str, Any]:
        """Give what came of a fit, by the fields of a result."""
        fit = timed.fit
        scores = score(self.truth, timed.decisions, fit.model, self.class_names)
        return {
            "C": fit.C,
            "cv_accuracy": max(fit.cv.mean) if fit.cv else None,
            "train_acc1": timed.train_acc1,
            **scores.columns,
            "fit_seconds": timed.fit_seconds,
            "predict_seconds": timed.predict_seconds,
            "n_iter": fit.n_iter,
            "converged": fit.converged,
            "notes": (*fit.notes, *scores.remarks),
            "detail": {"predictions": scores.guess.tolist(), **scores.detail, **_detail(fit)},
        }


def _failure(name: str, error: FitError, seconds: float) -> dict[str, Any]:
    """Measures of a fit that failed."""
    reason = str(error).removeprefix(f"{name} failed: ")
    return {
        **dict.fromkeys(("C", "cv_accuracy", "train_acc1", *MEASURES), None),
        "fit_seconds": seconds,
        "predict_seconds": 0.0,
        "n_iter": 0,
        "converged": False,
        "notes": (f"failed: {reason}",),
        "detail": {"error": reason, "traceback": "".join(traceback.format_exception(error))},
    }


def _fitted_labels(fit: Fit, space: RowSpace) -> NDArray[np.int64]:
    """Predict the rows that were fitted, from scores that are there already if they are."""
    if fit.train_scores is not None:
        return labels_of(fit.train_scores, fit.model.classes_)
    return fit.model.predict(RowsView(space.pool.X, space.index))


def _detail(fit: Fit) -> dict[str, Any]:
    return {
        "train_acc1_is": "TRAINING score: accuracy on the rows that the head was fitted on",
        "cv": {
            "parameter": fit.cv.parameter,
            "C": list(fit.cv.C),
            "accuracy": [list(a) for a in fit.cv.accuracy],
        }
        if fit.cv
        else None,
    }
