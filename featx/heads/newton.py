"""Squared-hinge problems with a penalty too large for conjugate gradients: Newton's method.

The objective is piecewise quadratic: with the rows inside the margin known, one linear system
gives the minimum. Steps with an exact line search find those rows in a few rounds (Keerthi and
DeCoste, "A modified finite Newton method for fast solution of large scale linear SVMs", JMLR 6,
2005; in dual variables, Chapelle, "Training a support vector machine in the primal", Neural
Computation 19, 2007, eq. 3.11).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from featx.heads.rowspace import RowSpace
from featx.heads.scaling import Array
from featx.heads.solver import Solution

__all__ = ["rescue_hinge"]

_MAX_STEPS = 200
# Rows that lie on the margin to the last digit may change sides for ever.
_SETTLED = 1e-11


class _System(Protocol):
    """Newton's linear system, for one representation of w and the intercept."""

    def solve(self, inside: NDArray[np.bool_], signs: Array, penalty: float) -> tuple[Array, Array]:
        """Minimum u, and its scores, if the rows of the loss are those `inside` the margin."""

    def inner(self, u: Array, v: Array, v_scores: Array) -> float:
        """Inner product."""


@dataclass(frozen=True)
class _KernelSystem:
    """As many unknowns as rows inside the margin; K includes the intercept's constant."""

    kernel: Array

    def solve(self, inside: NDArray[np.bool_], signs: Array, penalty: float) -> tuple[Array, Array]:
        """Minimum, with u the numbers a."""
        rows = np.flatnonzero(inside)
        matrix = self.kernel[np.ix_(rows, rows)]
        matrix[np.diag_indices_from(matrix)] += 1 / (2 * penalty)
        a = np.zeros(len(signs))
        a[rows] = cho_solve(cho_factor(matrix, overwrite_a=True), signs[rows])
        return a, self.kernel @ a

    def inner(self, u: Array, v: Array, v_scores: Array) -> float:
        """Inner product."""
        del v
        return float(u @ v_scores)


@dataclass(frozen=True)
class _RowSystem:
    """As many unknowns as columns; the intercept's constant column is the last."""

    rows: Array

    def solve(self, inside: NDArray[np.bool_], signs: Array, penalty: float) -> tuple[Array, Array]:
        """Minimum, with u the coefficients."""
        part = self.rows[inside]
        matrix = part.T @ part
        matrix[np.diag_indices_from(matrix)] += 1 / (2 * penalty)
        w = cho_solve(cho_factor(matrix, overwrite_a=True), part.T @ signs[inside])
        return w, self.rows @ w

    def inner(self, u: Array, v: Array, v_scores: Array) -> float:
        """Inner product."""
        del v_scores
        return float(u @ v)


def _newton(system: _System, signs: Array, penalty: float) -> tuple[Array, Array, int]:
    """Solution, its scores, and the steps: `_MAX_STEPS` if they did not suffice."""
    f = np.zeros(len(signs))
    u, reached = system.solve(signs * f < 1, signs, penalty)
    u, f = np.zeros_like(u), np.zeros_like(reached)
    for step in range(_MAX_STEPS):
        inside = signs * f < 1
        target, reached = system.solve(inside, signs, penalty)
        settled = np.abs(reached - f).max() <= _SETTLED * np.abs(reached).max()
        if settled or np.array_equal(signs * reached < 1, inside):
            return target, reached, step + 1
        d, fd = target - u, reached - f
        bend = system.inner(d, d, fd)
        t = _line_minimum((signs, penalty), (f, fd), system.inner(u, d, fd), bend)
        u, f = u + t * d, f + t * fd
    return u, f, _MAX_STEPS


def _line_minimum(
    loss: tuple[Array, float], scores: tuple[Array, Array], flat: float, bend: float
) -> float:
    """Minimum along a direction, by bisection of the increasing derivative."""
    (signs, penalty), (f, fd) = loss, scores

    def slope(t: float) -> float:
        gap = np.maximum(0.0, 1.0 - signs * (f + t * fd))
        return flat + t * bend - 2 * penalty * float((gap * signs) @ fd)

    low, high = 0.0, 1.0
    while slope(high) < 0 and high < 1e6:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return high


def rescue_hinge(space: RowSpace, signs: Array, penalty: float, solution: Solution) -> Solution:
    """Solve again, by Newton's method, the classes that are not solved.

    Parameters
    ----------
    space : RowSpace
        Training rows.
    signs : ndarray of float64, shape (n_rows, n_problems)
        +1 and -1.
    penalty : float
        C times the scale of `space`, as in the solver.
    solution : Solution
        Its arrays are overwritten where a problem was not solved.

    Returns
    -------
    Solution
        The one that was passed.
    """
    constant = 1.0 / space.scale
    system: _System
    if space.is_wide:
        system = _KernelSystem(space.gram / space.scale + constant)
    else:
        rows = np.column_stack([space.dense, np.ones(space.n_rows)])
        system = _RowSystem(rows * np.sqrt(constant))
    for problem in np.flatnonzero(~solution.solved):
        u, f, steps = _newton(system, signs[:, problem], penalty)
        intercept = u.sum() * constant if space.is_wide else u[-1] * np.sqrt(constant)
        solution.intercept[problem] = intercept
        solution.u[:, problem, 0], solution.scores[:, problem, 0] = u[: len(solution.u)], f
        solution.n_iter[problem] += steps
        solution.solved[problem] = steps < _MAX_STEPS
    return solution
