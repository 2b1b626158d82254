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
from featx.heads.rowspace import RowSpace
from featx.heads.scaling import Array
from featx.heads.select import Folds, share_right

__all__ = ["Path", "Problem"]

# Relative error of the coefficients. Cross-validation only counts right answers: with many rows
# it works in float32, and penalties that come out nearly equal are solved again.
_TOL, _TOL_MANY, _TOL_CLOSE = 1e-6, 1e-4, 1e-6
_MANY_ROWS = 2048
# Means that differ by fewer right answers than this are looked at again.
_CLOSE_ROWS = 4
# So many scores, (n_rows, n_outputs), are many too. With so many outputs the products of one fold
# keep the cores busy: each fold is solved on its own rows alone.
_MANY_SCORES, _MANY_OUTPUTS = 1 << 18, 64
_WORK_BYTES = 1 << 30
_SOLVER_ARRAYS = 16


@dataclass(frozen=True)
class Problem:
    """A linear head on some rows."""

    space: LinearSpace
    codes: NDArray[np.int64]
    loss: Callable[[NDArray[np.int64], float, Sequence[NDArray[np.int64]], Any], Loss]
    n_outputs: int
    tick: Callable[[str], object]

    def solve(
        self,
        geometry: Geometry,
        C: float,
        fitted: Sequence[NDArray[np.int64]],
        tol: float,
        start: Solution | None = None,
        *,
        is_rough: bool = False,
        step: str = "last fit",
    ) -> Solution:
        """Solve for some folds."""
        loss = self.loss(self.codes, C * self.space.scale, fitted, geometry.dtype)
        return solve(
            geometry,
            loss,
            tol=tol,
            is_free=self.space.is_free,
            is_rough=is_rough,
            start=start,
            tick=lambda: self.tick(step),
        )


@dataclass(frozen=True)
class _Part:
    """Folds that are solved together, and the problem that sees their rows."""

    folds: list[int]
    problem: Problem
    fitted: list[NDArray[np.int64]]
    left_out: list[NDArray[np.int64]]
    rest: RowSpace | None = None
    """Rows left out of the only fold, where the problem sees the fitted rows alone."""

    def scores(self, solution: Solution) -> list[NDArray[Any]]:
        """Scores of the rows left out, fold by fold, (n, n_outputs)."""
        if self.rest is not None:
            return [self.problem.space.scores(solution, self.rest)]
        scores = solution.scores.reshape(len(solution.scores), len(self.folds), -1)
        return [scores[rows, fold] for fold, rows in enumerate(self.left_out)]


class Path:
    """The accuracies of a grid of penalties on all folds."""

    def __init__(self, problem: Problem, grid: Array, folds: Folds) -> None:
        self.problem, self.grid, self.folds = problem, grid, folds
        self.accuracy = np.zeros((len(grid), len(folds)))
        self._guesses: dict[int, Solution] = {}
        for part in self._parts():
            self._walk(part)

    @property
    def curve(self) -> CvCurve:
        """The accuracies with their penalties."""
        rows = tuple(tuple(float(value) for value in row) for row in self.accuracy)
        return CvCurve(tuple(float(c) for c in self.grid), rows)

    def guess(self, best: int) -> Solution | None:
        """Where the fit of all rows may start: the mean of the folds' coefficients."""
        return self._guesses.get(best)

    def _parts(self) -> Iterator[_Part]:
        problem, space = self.problem, self.problem.space.space
        if not space.is_fitted and problem.n_outputs < _MANY_OUTPUTS:
            one = 8 * _SOLVER_ARRAYS * space.n_rows * problem.n_outputs
            for some in _batches(len(self.folds), max(1, _WORK_BYTES // one)):
                of_some = [self.folds[fold] for fold in some]
                yield _Part(some, problem, [f for f, _ in of_some], [left for _, left in of_some])
            return
        for fold, (fitted, left_out) in enumerate(self.folds):
            if space.is_fitted:
                seen, rows, codes, rest = space.refitted(fitted), fitted, problem.codes, None
            else:
                seen, rest = space.part(fitted), space.part(left_out)
                rows, codes = np.arange(len(fitted)), problem.codes[fitted]
            linear = LinearSpace(seen, problem.space.is_free)
            of_fold = replace(problem, space=linear, codes=codes)
            yield _Part([fold], of_fold, [rows], [left_out], rest)

    def _walk(self, part: _Part) -> None:
        problem = part.problem
        n_rows = self.problem.space.space.n_rows
        is_rough = n_rows > _MANY_ROWS or n_rows * problem.n_outputs > _MANY_SCORES
        geometry = problem.space.geometry(np.float32 if is_rough else np.float64)
        solution: Solution | None = None
        kept: list[Solution] = []
        for c, C in enumerate(self.grid):
            tol = _TOL_MANY if is_rough else _TOL
            if len(kept) > 1:
                solution = _extrapolate(kept[-2], kept[-1], *self.grid[c - 2 : c + 1])
            step = self._step(c, part)
            solution = problem.solve(
                geometry, float(C), part.fitted, tol, solution, is_rough=True, step=step
            )
            self._judge(c, part, solution)
            kept.append(solution)
        mean = np.average(self.accuracy[:, part.folds], axis=1)
        close = np.flatnonzero(mean >= mean.max() - _CLOSE_ROWS / n_rows)
        if is_rough and len(close) > 1:
            exact = problem.space.geometry(np.float64)
            for c in close.tolist():
                kept[c] = problem.solve(
                    exact,
                    float(self.grid[c]),
                    part.fitted,
                    _TOL_CLOSE,
                    kept[c],
                    is_rough=True,
                    step=f"{self._step(c, part)} again, in float64",
                )
                self._judge(c, part, kept[c])
        if len(part.folds) == len(self.folds) > 1:
            for c in close.tolist():
                self._guesses[c] = _average(kept[c], len(part.folds))

    def _step(self, c: int, part: _Part) -> str:
        first, last = part.folds[0] + 1, part.folds[-1] + 1
        of_folds = f"fold {first}" if first == last else f"folds {first} to {last}"
        return f"{of_folds} of {len(self.folds)}, penalty {c + 1} of {len(self.grid)}"

    def _judge(self, c: int, part: _Part, solution: Solution) -> None:
        found = zip(part.folds, part.scores(solution), part.left_out, strict=True)
        for fold, scores, left_out in found:
            self.accuracy[c, fold] = share_right(scores, self.problem.codes[left_out])


def _batches(n: int, size: int) -> Iterator[list[int]]:
    for start in range(0, n, size):
        yield list(range(start, min(start + size, n)))


def _extrapolate(first: Solution, second: Solution, *penalties: float) -> Solution:
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
