"""`svm` and `logreg`: LinearSVC and LogisticRegression, solved in the row space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featx.errors import ProtocolError, UsageError
from featx.heads.base import SOFTMAX, CvCurve, Fit, FitOptions, LinearModel
from featx.heads.losses import Logistic, Loss, SquaredHinge
from featx.heads.newton import rescue_hinge
from featx.heads.rowspace import RowSpace
from featx.heads.scaling import Array
from featx.heads.select import cross_validate, curve, fold_rows
from featx.heads.solver import Solution, solve

__all__ = ["LOGREG", "SVM", "LinearHead"]

# Relative error of the coefficients. Cross-validation only counts right answers: with many rows
# it works in float32 and to 1e-4, which moved one of 4,000 answers in two of nine penalties.
_CV_TOL, _CV_TOL_MANY, _FINAL_TOL = 1e-6, 1e-4, 1e-9
_MANY_ROWS = 2048
_CV_MAX_ITER = 2_000
# A fit that rounding keeps from the tolerance above is still a fit.
_ACCEPTABLE_ERROR = 1e-6


@dataclass(frozen=True)
class LinearHead:
    """An L2-regularised linear classifier.

    The objective, intercept included, is that of the scikit-learn estimator on the raw
    features; only the solver differs. Scores agree with the estimator's, run at a tight
    tolerance, within 1e-6 of their size.

    Parameters
    ----------
    name : str
        What people type.
    estimator : str
        The scikit-learn estimator.
    grid : tuple of float
        Default penalties, times the mean squared norm of the rows.
    intercept_penalty : float
        Weight of the squared intercept beside that of the coefficients: LinearSVC appends a
        column of ones, LogisticRegression leaves the intercept free.
    loss : callable
        From codes (n_rows,) and weights (n_rows, m) to the loss of m problems, or of m
        problems times classes, and the outputs of each.
    max_iter : int
        Most steps of conjugate gradients in the final fit.
    link : {"softmax", ""}, default=""
        How scores become probabilities.
    rescue : callable, optional
        Solves the final fit's problems that conjugate gradients left unsolved.
    """

    name: str
    estimator: str
    grid: tuple[float, ...]
    intercept_penalty: float
    loss: Callable[[NDArray[np.int64], Array], tuple[Loss, int]]
    max_iter: int = 20_000
    link: str = ""
    rescue: Callable[[RowSpace, Array, float, Solution], Solution] | None = None

    def fit(self, space: RowSpace, y: NDArray[np.int64], options: FitOptions) -> Fit:
        """Choose the penalty inside the subset, then fit on all of it.

        Parameters
        ----------
        space : RowSpace
            Training rows.
        y : ndarray of int64, shape (n_rows,)
            Labels.
        options : FitOptions
            A fixed `C` turns the search off.

        Returns
        -------
        Fit
            Its model is a `LinearModel`.

        Raises
        ------
        ProtocolError
            If there is a single class.
        """
        space = space.scaled(options.scale)
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ProtocolError(
                f"a classifier needs two classes or more, these rows have {len(classes)}"
            )
        C, cv, notes = self._penalty(space, codes, options)
        solution = self._solve(space, codes, np.full((len(codes), 1), C * space.scale), final=True)
        if self.rescue is not None and not solution.solved.all():
            solution = self.rescue(space, _signs(codes), C * space.scale, solution)
        converged = bool((solution.solved | (solution.error <= _ACCEPTABLE_ERROR)).all())
        if not converged:
            notes.append(
                f"not converged after {int(solution.n_iter.max())} iterations: relative error of "
                f"the coefficients up to {float(solution.error.max()):.0e}"
            )
        coef = space.coefficients(solution.u.reshape(len(solution.u), -1))
        model = LinearModel(classes, coef, solution.intercept.ravel(), space.scaling, self.link)
        return Fit(model, C, cv, int(solution.n_iter.max()), converged, tuple(notes))

    def _penalty(
        self, space: RowSpace, codes: NDArray[np.int64], options: FitOptions
    ) -> tuple[float, CvCurve | None, list[str]]:
        if options.C is not None:
            if not options.C > 0:
                raise UsageError(f"C is {options.C}: it must be above 0")
            return options.C, None, []
        # C times the mean squared norm does not depend on the scale of the features.
        grid = np.array(self.grid) / space.scale
        folds = fold_rows(codes, options.folds, options.seed, options.groups)
        if not folds:
            what = "image" if options.groups is None else "group"
            note = f"C not searched: one {what} per class leaves nothing out; middle of the grid"
            return float(grid[len(grid) // 2]), None, [note]

        def scores_of(weights: Array) -> Array:
            return self._solve(space, codes, weights, final=False).scores.reshape(
                *weights.shape, -1
            )

        accuracy = cross_validate(codes, grid * space.scale, folds, scores_of)
        cv = curve(grid, accuracy)
        notes = []
        if cv.best in (0, len(grid) - 1):
            edge = "lower" if cv.best == 0 else "upper"
            notes.append(f"C at the {edge} edge of the grid")
        return cv.C[cv.best], cv, notes

    def _solve(
        self, space: RowSpace, codes: NDArray[np.int64], weights: Array, *, final: bool
    ) -> Solution:
        loss, n_outputs = self.loss(codes, weights)
        is_rough = not final and space.is_wide and space.n_rows > _MANY_ROWS
        cv_tol = _CV_TOL_MANY if is_rough else _CV_TOL
        return solve(
            space.geometry(np.float32 if is_rough else np.float64),
            loss,
            n_outputs,
            intercept_penalty=self.intercept_penalty * space.scale,
            tol=_FINAL_TOL if final else cv_tol,
            max_iter=self.max_iter if final else _CV_MAX_ITER,
        )


def _indicators(codes: NDArray[np.int64]) -> Array:
    """1 in the column of the class; for two classes, the column of the second alone."""
    columns = np.eye(int(codes.max()) + 1)[codes]
    return columns[:, 1:] if columns.shape[1] == 2 else columns


def _signs(codes: NDArray[np.int64]) -> Array:
    return 2.0 * _indicators(codes) - 1.0


def _squared_hinge(codes: NDArray[np.int64], weights: Array) -> tuple[Loss, int]:
    signs = _signs(codes)
    tiled = np.tile(signs, (1, weights.shape[1]))[:, :, None]
    return SquaredHinge(tiled, np.repeat(weights, signs.shape[1], axis=1)[:, :, None]), 1


def _logistic(codes: NDArray[np.int64], weights: Array) -> tuple[Loss, int]:
    targets = _indicators(codes)
    return Logistic(targets[:, None, :], weights[:, :, None]), targets.shape[1]


def _half_decades(middle: int) -> tuple[float, ...]:
    return tuple(float(10.0 ** (middle + step / 2)) for step in range(-4, 5))


# The middles lie where accuracy peaks on SqueezeNet's features of CIFAR-10, flattened (1,000 to
# 5,000 x 86,528: svm 0.3 to 1, logreg 10 to 300) and pooled (1,000 x 512: 1 to 10 and 100).
SVM = LinearHead(
    name="svm",
    estimator="sklearn.svm.LinearSVC",
    grid=_half_decades(0),
    intercept_penalty=1.0,
    loss=_squared_hinge,
    max_iter=1_000,
    rescue=rescue_hinge,
)
LOGREG = LinearHead(
    name="logreg",
    estimator="sklearn.linear_model.LogisticRegression",
    grid=_half_decades(1),
    intercept_penalty=0.0,
    loss=_logistic,
    link=SOFTMAX,
)
