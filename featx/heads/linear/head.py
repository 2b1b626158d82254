"""`svm`, `logreg` and `ridge`: L2-regularised linear classifiers, solved in the row space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.errors import FitError
from featx.heads.base import SOFTMAX, CvCurve, Fit, FitOptions, flat, linear_model
from featx.heads.linear.losses import Logistic, Loss, SquaredHinge, SquaredLoss
from featx.heads.linear.path import Path, Problem
from featx.heads.linear.solver import Solution
from featx.heads.linear.space import LinearSpace
from featx.heads.rowspace import RowSpace
from featx.heads.scaling import Array
from featx.heads.select import fold_rows, lone_note
from featx.heads.training import codes_of

__all__ = ["LOGREG", "RIDGE", "SVM", "LinearHead"]

_FINAL_TOL = 1e-9
# A fit that rounding keeps from the tolerance above is still a fit.
_ACCEPTABLE_ERROR = 1e-6

_TINY = 1e-10
_LEAST = 1e-100  # mean squared norm: penalties, and squares of it, are still numbers

MakeLoss = Callable[[NDArray[np.int64], Array, Array, Any], Loss]


@dataclass(frozen=True)
class LinearHead:
    """An L2-regularised linear classifier.

    The objective, intercept included, is that of the scikit-learn estimator on the raw
    features; only the solver differs. Scores agree with the estimator's, run at a tight
    tolerance, within 1e-6 of their size.
    """

    name: str
    estimator: str
    grid: tuple[float, ...]
    is_free: bool
    loss: MakeLoss
    link: str = ""

    def fit(self, space: RowSpace, y: NDArray[np.int64], options: FitOptions) -> Fit:
        """Choose the penalty inside the subset, then fit on all of it."""
        space = space.scaled(options.scale)
        classes, codes = codes_of(y)
        linear = self._space(space)
        n_outputs = 1 if len(classes) == 2 else len(classes)
        tick = partial(_tell, options.tick, self.name)
        problem = Problem(linear, codes, self.losses(options.class_weight), n_outputs, tick)
        C, cv, start, notes = self._penalty(problem, options)
        everything = [np.arange(len(codes))]
        solution = problem.solve(linear.geometry(np.float64), C, everything, _FINAL_TOL, start)
        converged = bool((solution.error <= _ACCEPTABLE_ERROR).all())
        n_iter = int(solution.n_iter.max())
        if not converged:
            notes.append(
                f"not converged after {n_iter} iterations: relative error of "
                f"the coefficients up to {float(solution.error.max()):.0e}"
            )
        coef, intercept = linear.model_of(solution)
        model = linear_model(space, classes, coef, intercept, self.link)
        scores = flat(solution.scores.reshape(len(y), n_outputs))
        return Fit(model, C, cv, n_iter, converged, tuple(notes), scores)

    def _space(self, space: RowSpace) -> LinearSpace:
        linear = LinearSpace(space, self.is_free)
        with np.errstate(over="ignore"):
            if not _LEAST <= linear.scale <= 1 / _LEAST:
                raise FitError(
                    f"the mean squared norm of the features is {linear.scale:.0e}, with which "
                    f"{self.name} cannot compute: take --scale standard or l2"
                )
        # A column of ones beside far smaller features: they would be lost in its rounding, and
        # the penalty of its coefficient is nothing beside theirs.
        return LinearSpace(space, is_free=True) if linear.scale < _TINY else linear

    def losses(
        self, class_weight: str | None
    ) -> Callable[[NDArray[np.int64], float, Sequence[NDArray[np.int64]], Any], Loss]:
        """Give what makes the loss of labels, a penalty and the fitted rows of each fold."""

        def make(
            codes: NDArray[np.int64],
            penalty: float,
            fitted: Sequence[NDArray[np.int64]],
            dtype: Any,
        ) -> Loss:
            n_classes = int(codes.max()) + 1
            weights = np.zeros((len(codes), len(fitted)))
            by_class = np.ones((len(fitted), n_classes))
            for fold, rows in enumerate(fitted):
                weights[rows, fold] = penalty
                if class_weight is not None:
                    counts = np.bincount(codes[rows], minlength=n_classes)
                    by_class[fold] = len(rows) / (n_classes * np.maximum(counts, 1))
            return self.loss(codes, weights, by_class, dtype)

        return make

    def _penalty(
        self, problem: Problem, options: FitOptions
    ) -> tuple[float, CvCurve | None, Solution | None, list[str]]:
        """Penalty, how it was chosen, where its fit may start, and what to tell."""
        if options.C is not None:
            return float(options.C), None, None, []
        # C times the mean squared norm does not depend on the scale of the features.
        grid = np.array(self.grid) / problem.space.scale
        folds = fold_rows(problem.codes, options.folds, options.seed, options.groups)
        if not folds:
            what = "image" if options.groups is None else "group"
            note = f"C not searched (middle of the grid): one {what} per class leaves nothing out"
            return float(grid[len(grid) // 2]), None, None, [note]
        path = Path(problem, grid, folds)
        cv = path.curve
        best = cv.best
        notes = [*lone_note("C", problem.codes, folds)]
        if best in (0, len(grid) - 1):
            notes.append(f"C at the {'lower' if best == 0 else 'upper'} edge of the grid")
        return float(grid[best]), cv, path.guess(best), notes


def _tell(tick: Callable[[str], object], name: str, step: str) -> None:
    tick(f"{name}: {step}")


def _indicators(codes: NDArray[np.int64], n_classes: int) -> Array:
    """1 in the column of the class; for two classes, the column of the second alone."""
    columns = np.eye(n_classes)[codes]
    return columns[:, 1:] if n_classes == 2 else columns


def _row_weights(codes: NDArray[np.int64], weights: Array, by_class: Array) -> Array:
    """Penalties times the weight of each row's class, (n_rows, n_folds)."""
    return np.asarray(weights * by_class[:, codes].T)


def _signs(codes: NDArray[np.int64], n_folds: int, n_classes: int) -> Array:
    signs = 2.0 * _indicators(codes, n_classes) - 1.0
    return np.tile(signs, (1, n_folds))[:, :, None]


def _squared_hinge(codes: NDArray[np.int64], weights: Array, by_class: Array, dtype: Any) -> Loss:
    """One problem for each fold and class.

    As in LIBLINEAR, a class's weight is that of its rows in its own problem, where it is the
    positive class; only two classes are both weighted in their one problem.
    """
    n_folds, n_classes = by_class.shape
    signs = _signs(codes, n_folds, n_classes)
    if n_classes == 2:
        each = _row_weights(codes, weights, by_class)
    else:
        each = np.repeat(weights, n_classes, axis=1)
        each = np.where(signs[:, :, 0] > 0, each * by_class.ravel(), each)
    return SquaredHinge(signs.astype(dtype), each[:, :, None].astype(dtype))


def _squared_error(codes: NDArray[np.int64], weights: Array, by_class: Array, dtype: Any) -> Loss:
    n_folds, n_classes = by_class.shape
    signs = _signs(codes, n_folds, n_classes)
    each = _row_weights(codes, weights, by_class)
    each = np.repeat(each, signs.shape[1] // n_folds, axis=1)
    return SquaredLoss(signs.astype(dtype), each[:, :, None].astype(dtype))


def _logistic(codes: NDArray[np.int64], weights: Array, by_class: Array, dtype: Any) -> Loss:
    targets = _indicators(codes, by_class.shape[1])[:, None, :]
    each = _row_weights(codes, weights, by_class)
    return Logistic(targets.astype(dtype), each[:, :, None].astype(dtype))


def _half_decades(middle: int) -> tuple[float, ...]:
    return tuple(float(10.0 ** (middle + step / 2)) for step in range(-4, 5))


# The middles lie where accuracy peaks on SqueezeNet's features of CIFAR-10, flattened (1,000 to
# 5,000 x 86,528: svm 0.3 to 1, logreg 10 to 300) and pooled (1,000 x 512: 1 to 10 and 100).
SVM = LinearHead(
    name="svm",
    estimator="sklearn.svm.LinearSVC",
    grid=_half_decades(0),
    is_free=False,
    loss=_squared_hinge,
)
LOGREG = LinearHead(
    name="logreg",
    estimator="sklearn.linear_model.LogisticRegression",
    grid=_half_decades(1),
    is_free=True,
    loss=_logistic,
    link=SOFTMAX,
)
RIDGE = LinearHead(
    name="ridge",
    estimator="sklearn.linear_model.RidgeClassifier",
    grid=_half_decades(0),
    is_free=True,
    loss=_squared_error,
)
