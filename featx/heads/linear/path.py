"""Penalties compared by cross-validation, from the smallest to the largest, each from the last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.heads.base import CvCurve
from featx.heads.linear.geometry import Geometry
from featx.heads.linear.losses import Loss
from featx.heads.linear.solver import Solution, solve
from featx.heads.linear.space import LinearSpace
from featx.heads.scaling import Array
from featx.heads.select import Folds, shares_right

__all__ = ["Path", "Problem"]

# Relative error of the coefficients. Cross-validation only counts right answers: with many rows
# it works in float32, and penalties that come out nearly equal are solved again.
_TOL, _TOL_MANY, _TOL_CLOSE = 1e-6, 1e-4, 1e-6
_MANY_ROWS = 2048
# Means that differ by fewer right answers than this are looked at again.
_CLOSE_ROWS = 4
_WORK_BYTES = 1 << 30
_SOLVER_ARRAYS = 16


@dataclass(frozen=True)
class Problem:
    """A linear head on some rows."""

    space: LinearSpace
    codes: NDArray[np.int64]
    loss: Callable[[float, Sequence[NDArray[np.int64]], Any], Loss]
    n_outputs: int

    def solve(
        self,
        geometry: Geometry,
        C: float,
        fitted: Sequence[NDArray[np.int64]],
        tol: float,
        start: Solution | None = None,
        *,
        is_rough: bool = False,
    ) -> Solution:
        """Solve for some folds."""
        loss = self.loss(C * self.space.scale, fitted, geometry.dtype)
        is_free = self.space.is_free
        return solve(geometry, loss, tol=tol, is_free=is_free, is_rough=is_rough, start=start)


class Path:
    """The accuracies of a grid of penalties on all folds."""

    def __init__(self, problem: Problem, grid: Array, folds: Folds) -> None:
        self.problem, self.grid, self.folds = problem, grid, folds
        self.accuracy = np.zeros((len(grid), len(folds)))
        self._guesses: dict[int, Solution] = {}
        for some, of_fold in self._parts():
            self._walk(some, of_fold)

    @property
    def curve(self) -> CvCurve:
        """The accuracies with their penalties."""
        rows = tuple(tuple(float(value) for value in row) for row in self.accuracy)
        return CvCurve(tuple(float(c) for c in self.grid), rows)

    def guess(self, best: int) -> Solution | None:
        """Where the fit of all rows may start: the mean of the folds' coefficients."""
        return self._guesses.get(best)

    def _parts(self) -> Iterator[tuple[list[int], Problem]]:
        """Folds that are solved together, and the problem that they see."""
        space = self.problem.space.space
        if space.is_fitted:
            for fold, (fitted, _) in enumerate(self.folds):
                of_fold = LinearSpace(space.refitted(fitted), self.problem.space.is_free)
                yield (
                    [fold],
                    Problem(of_fold, self.problem.codes, self.problem.loss, self.problem.n_outputs),
                )
            return
        one = 8 * _SOLVER_ARRAYS * space.n_rows * self.problem.n_outputs
        batch = max(1, _WORK_BYTES // one)
        for start in range(0, len(self.folds), batch):
            yield list(range(len(self.folds)))[start : start + batch], self.problem

    def _walk(self, some: list[int], problem: Problem) -> None:
        folds = [self.folds[fold] for fold in some]
        fitted = [rows for rows, _ in folds]
        n_rows = problem.space.space.n_rows
        is_rough = n_rows > _MANY_ROWS
        geometry = problem.space.geometry(np.float32 if is_rough else np.float64)
        solution: Solution | None = None
        kept: list[Solution] = []
        for c, C in enumerate(self.grid):
            tol = _TOL_MANY if is_rough else _TOL
            if len(kept) > 1:
                solution = _ahead(kept[-2], kept[-1], *self.grid[c - 2 : c + 1])
            solution = problem.solve(geometry, float(C), fitted, tol, solution, is_rough=True)
            self.accuracy[c, some] = self._right(solution, folds)
            kept.append(solution)
        mean = np.average(self.accuracy[:, some], axis=1)
        close = np.flatnonzero(mean >= mean.max() - _CLOSE_ROWS / n_rows)
        if is_rough and len(close) > 1:
            exact = problem.space.geometry(np.float64)
            for c in close.tolist():
                C = float(self.grid[c])
                kept[c] = problem.solve(exact, C, fitted, _TOL_CLOSE, kept[c], is_rough=True)
                self.accuracy[c, some] = self._right(kept[c], folds)
        if len(some) == len(self.folds) and len(some) > 1:
            for c in close.tolist():
                self._guesses[c] = _average(kept[c], len(some))

    def _right(self, solution: Solution, folds: Folds) -> Array:
        scores = solution.scores.reshape(len(solution.scores), len(folds), -1)
        return shares_right(scores, self.problem.codes, folds)


def _ahead(first: Solution, second: Solution, *penalties: float) -> Solution:
    """Guess the next solution: coefficients are nearly linear in 1 / C where they saturate."""
    a, b, c = (1 / penalty for penalty in penalties)
    share = (c - b) / (b - a)
    u = second.u + (second.u - first.u) * second.u.dtype.type(share)
    intercept = second.intercept + (second.intercept - first.intercept) * second.u.dtype.type(share)
    return replace(second, u=u, intercept=intercept)


def _average(solution: Solution, n_folds: int) -> Solution:
    """Mean over folds; a row that one fold leaves out counts in the others."""

    def mean(values: NDArray[Any], weight: float) -> NDArray[Any]:
        by_fold = values.reshape(*values.shape[:-2], n_folds, -1, values.shape[-1])
        return np.asarray(by_fold.sum(axis=-3) * weight, dtype=np.float64)

    problems = len(solution.n_iter) // n_folds
    return Solution(
        u=mean(solution.u, 1.0 / n_folds),
        intercept=mean(solution.intercept, 1.0 / n_folds),
        scores=mean(solution.scores, 1.0 / n_folds),
        n_iter=np.zeros(problems, np.int64),
        error=np.full(problems, np.inf),
    )
