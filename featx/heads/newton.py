"""Squared-hinge problems with a penalty too large for conjugate gradients: Newton's method.

The objective is piecewise quadratic: with the rows inside the margin known, one linear system
gives the minimum. Steps with an exact line search find those rows in a few rounds (Keerthi and
DeCoste, "A modified finite Newton method for fast solution of large scale linear SVMs", JMLR 6,
2005; in dual variables, Chapelle, "Training a support vector machine in the primal", Neural
Computation 19, 2007, eq. 3.11).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from featx.heads.losses import Array
from featx.heads.rowspace import RowSpace
from featx.heads.solver import Solution

__all__ = ["newton_hinge", "rescue_hinge"]

_MAX_STEPS = 200
_SOLVED = 1e-9

# From the rows inside the margin and the penalty to the numbers a of the next iterate.
System = Callable[[NDArray[np.bool_], Array, float], Array]


def _system_of_kernel(kernel: Array) -> System:
    """Newton's system in as many unknowns as rows inside the margin.

    Parameters
    ----------
    kernel : ndarray of float64, shape (n_rows, n_rows)
        K, with the intercept's constant added.
    """

    def system(inside: NDArray[np.bool_], signs: Array, penalty: float) -> Array:
        a = np.zeros(len(signs))
        rows = np.flatnonzero(inside)
        matrix = kernel[np.ix_(rows, rows)]
        matrix[np.diag_indices_from(matrix)] += 1 / (2 * penalty)
        a[rows] = cho_solve(cho_factor(matrix, overwrite_a=True), signs[rows])
        return a

    return system


def _system_of_rows(rows: Array) -> System:
    """Newton's system in as many unknowns as columns.

    Parameters
    ----------
    rows : ndarray of float64, shape (n_rows, n_columns)
        X, with the intercept's constant column appended.
    """

    def system(inside: NDArray[np.bool_], signs: Array, penalty: float) -> Array:
        part = rows[inside]
        matrix = part.T @ part
        matrix[np.diag_indices_from(matrix)] += 1 / (2 * penalty)
        w = cho_solve(cho_factor(matrix, overwrite_a=True), part.T @ signs[inside])
        a = np.zeros(len(signs))
        a[inside] = 2 * penalty * (signs[inside] - part @ w)
        return a

    return system


def newton_hinge(
    product: Callable[[Array], Array], system: System, signs: Array, penalty: float
) -> tuple[Array, Array, int]:
    """Minimise 1/2 aKa + penalty sum max(0, 1 - y f)^2 with f = K a.

    Parameters
    ----------
    product : callable
        K times a vector; the intercept's constant is part of K.
    system : callable
        As from `_system_of_kernel` or `_system_of_rows`.
    signs : ndarray of float64, shape (n_rows,)
        +1 and -1.
    penalty : float
        Above 0.

    Returns
    -------
    a, f : ndarray of float64, shape (n_rows,)
        Solution and its scores.
    n_steps : int
        Newton steps; `_MAX_STEPS` if they did not suffice.
    """
    a, f = np.zeros(len(signs)), np.zeros(len(signs))
    for step in range(_MAX_STEPS):
        inside = signs * f < 1
        target = system(inside, signs, penalty)
        reached = product(target)
        if np.array_equal(signs * reached < 1, inside):
            return target, reached, step + 1
        t = _line_minimum(signs, penalty, (a, f), (target - a, reached - f))
        a, f = a + t * (target - a), f + t * (reached - f)
    return a, f, _MAX_STEPS


def _line_minimum(
    signs: Array, penalty: float, start: tuple[Array, Array], along: tuple[Array, Array]
) -> float:
    """Minimum along a direction, by bisection of the increasing derivative and a last secant."""
    (a, f), (d, fd) = start, along

    def slope(t: float) -> float:
        gap = np.maximum(0.0, 1.0 - signs * (f + t * fd))
        return float((a + t * d) @ fd - 2 * penalty * (gap * signs) @ fd)

    low, high = 0.0, 1.0
    while slope(high) < 0 and high < 1e6:
        low, high = high, 2 * high
    for _ in range(60):
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
        Over the scale of `space`, as in the solver.
    solution : Solution
        Its arrays are overwritten where a problem was not solved.

    Returns
    -------
    Solution
        The one that was passed.
    """
    constant = 1.0 / space.scale
    if space.is_wide:
        kernel = space.gram / space.scale + constant
        system = _system_of_kernel(kernel)

        def product(a: Array) -> Array:
            return np.asarray(kernel @ a)
    else:
        rows = np.column_stack([space.dense, np.ones(space.n_rows)]) / np.sqrt(space.scale)
        system = _system_of_rows(rows)

        def product(a: Array) -> Array:
            return np.asarray(rows @ (rows.T @ a))

    for problem in np.flatnonzero(solution.error > _SOLVED):
        y = signs[:, problem]
        a, f, steps = newton_hinge(product, system, y, penalty)
        gradient = a - 2 * penalty * np.maximum(0.0, 1 - y * f) * y
        solution.dual[:, problem, 0], solution.scores[:, problem, 0] = a, f
        solution.intercept[problem] = a.sum() * constant
        solution.n_iter[problem] += steps
        size = max(float(a @ f), np.finfo(float).tiny)
        solution.error[problem] = np.sqrt(max(0.0, float(gradient @ product(gradient))) / size)
    return solution
