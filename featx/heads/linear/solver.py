"""Many L2-regularised linear models at once, exactly.

For rows x_i, a problem is to minimise over w and an intercept b

    1/2 |w|^2 + sum_i c_i loss(w.x_i + b).

Newton's method, its steps by preconditioned conjugate gradients (Nocedal and Wright, "Numerical
Optimization", 2nd ed. 2006, algorithms 7.1 and 5.3), for all problems together, so that the work
is products of the rows, or of their Gram matrix K = X X^T, with a column for each problem. With
w = X^T a everything happens in the numbers a: the gradient, as an element of the space of w, is
a + c loss'(f) with f = K a + b, and needs no product by K. An intercept without penalty is
eliminated from every step; one with a penalty is a constant column of X.

The losses of one output are piecewise quadratic: where few rows count, or the penalty is large, a
step is a Cholesky factorisation of the Gram matrix of those rows (Keerthi and DeCoste, JMLR 6,
2005; in dual variables, Chapelle, Neural Computation 19, 2007, eq. 3.11).

The objective is 1-strongly convex in w, so |w - w*| <= |gradient|: the stopping rule
|gradient| <= tol |w| bounds the relative error of w by tol.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.heads.linear.direct import solve_directly
from featx.heads.linear.geometry import Geometry
from featx.heads.linear.losses import Curvature, Loss
from featx.heads.linear.newton_system import Elimination, NewtonSystem, as_matrix, column_products

__all__ = ["Solution", "solve"]

Floats = NDArray[Any]

_MAX_ROUNDS = 100
# A step this exact keeps the number of rounds small; measured on 1,000 x 86,528 features, where
# 0.1 doubles the products for the largest penalties.
_INNER_ACCURACY = 0.01
# Share of an error that a whole step leaves: its own inaccuracy, and rows that change sides.
_LEFT_UNDONE = 0.1
# A whole step is kept if it leaves at most this share of the slope along it.
_OVERSHOOT = 0.5
_LINE_STEPS = 30
_LINE_ACCURACY = 1e-3
# Rounds without progress before rounding is blamed.
_PATIENCE = 5


@dataclass(frozen=True)
class Solution:
    """Solved problems."""

    u: Floats
    intercept: Floats
    scores: Floats
    n_iter: NDArray[np.int64]
    error: Floats

    @classmethod
    def zero(cls, geometry: Geometry, n_problems: int, n_outputs: int) -> Solution:
        """Where a search without any knowledge starts."""
        shape, dtype = (n_problems, n_outputs), geometry.dtype
        return cls(
            u=np.zeros((geometry.n_numbers, *shape), dtype),
            intercept=np.zeros(shape, dtype),
            scores=np.zeros((geometry.n_rows, *shape), dtype),
            n_iter=np.zeros(n_problems, np.int64),
            error=np.full(n_problems, np.inf, dtype),
        )


def solve(
    geometry: Geometry,
    loss: Loss,
    *,
    tol: float,
    is_free: bool = False,
    is_rough: bool = False,
    start: Solution | None = None,
    tick: Callable[[], object] = int,
) -> Solution:
    """Solve every problem of `loss` to the relative accuracy `tol`."""
    n_problems = loss.weights.shape[1]
    out = Solution.zero(geometry, n_problems, loss.n_outputs)
    if start is not None:
        # Scores that were averaged, or are of another precision, are not those of u.
        out.u[...], out.intercept[...] = start.u, start.intercept
        out.scores[...] = (
            geometry.scores(as_matrix(out.u)).reshape(out.scores.shape) + out.intercept
        )
    _Newton(geometry, loss, out, is_free, tick).run(tol, is_rough=is_rough)
    return out


@dataclass(frozen=True)
class _Iterate:
    """Where the problems stand that are not solved yet: p of them, with k outputs each.

    Parameters
    ----------
    index : ndarray of int, shape (p,)
        Which problems these are.
    u : ndarray, shape (n_numbers, p, k)
        Coefficients w, or the numbers a that represent them.
    f, b : ndarray, shape (n_rows, p, k) and (p, k)
        Scores, intercept included, and the intercept.
    n_rounds, n_idle : ndarray of int, shape (p,)
        Steps so far, and those since the error last halved.
    best, estimate : ndarray, shape (p,)
        Smallest error so far, and the error to be expected after the last step.
    """

    index: NDArray[np.int64]
    u: Floats
    f: Floats
    b: Floats
    n_rounds: NDArray[np.int64]
    n_idle: NDArray[np.int64]
    best: Floats
    estimate: Floats

    @classmethod
    def begin(cls, start: Solution) -> _Iterate:
        """Begin all problems where a solution left them."""
        n = len(start.n_iter)
        none, unknown = np.zeros(n, np.int64), np.full(n, np.inf)
        u, f, b = start.u.copy(), start.scores.copy(), start.intercept.copy()
        return cls(np.arange(n), u, f, b, none, none, unknown, unknown)

    def keep(self, which: NDArray[np.int64]) -> _Iterate:
        """Go on with some problems alone."""
        return _Iterate(
            self.index[which],
            np.ascontiguousarray(self.u[:, which]),
            np.ascontiguousarray(self.f[:, which]),
            self.b[which],
            self.n_rounds[which],
            self.n_idle[which],
            self.best[which],
            self.estimate[which],
        )


@dataclass(frozen=True)
class _Gradient:
    """Gradient at an iterate: by w, its scores (itself where w is no numbers a), by b; errors."""

    w: Floats
    scores: Floats
    b: Floats
    size: Floats
    """Squared length of w."""
    error: Floats
    """Length of the gradient beside that of w: a bound of the relative error of w."""

    def keep(self, which: NDArray[np.int64]) -> _Gradient:
        """Drop all other problems."""
        return _Gradient(
            np.ascontiguousarray(self.w[:, which]),
            np.ascontiguousarray(self.scores[:, which]),
            self.b[which],
            self.size[which],
            self.error[which],
        )


class _Newton:
    """Newton's method for all problems at once; each leaves when it is solved."""

    def __init__(
        self,
        geometry: Geometry,
        loss: Loss,
        out: Solution,
        is_free: bool,
        tick: Callable[[], object],
    ) -> None:
        self.geometry, self.loss, self.out, self.is_free = geometry, loss, out, is_free
        self.k, self.tick = loss.n_outputs, tick
        self.at = _Iterate.begin(out)
        self._known: tuple[Floats, Curvature, Elimination | None] | None = None

    def run(self, tol: float, *, is_rough: bool) -> None:
        """Step until every problem is solved, or stuck, or has had its rounds."""
        for n_rounds in range(_MAX_ROUNDS + 1):
            if is_rough:
                self._leave(self.at.estimate <= tol, self.at.estimate)
            if not self.at.index.size:
                return
            gradient = self._gradient()
            is_done = (gradient.error <= tol) | (self.at.n_idle > _PATIENCE)
            gradient = gradient.keep(self._leave(is_done, gradient.error))
            if not self.at.index.size:
                return
            if n_rounds < _MAX_ROUNDS:
                self._step(gradient, tol)
        self._leave(np.ones(self.at.index.size, bool), gradient.error)

    def _leave(self, is_done: NDArray[np.bool_], error: Floats) -> NDArray[np.int64]:
        """Store the problems that are done; go on with the others, and say which they were."""
        at, out, done = self.at, self.out, np.flatnonzero(is_done)
        where, which = at.index[done], np.flatnonzero(~is_done)
        out.u[:, where], out.scores[:, where] = at.u[:, done], at.f[:, done]
        out.intercept[where] = at.b[done]
        out.n_iter[where], out.error[where] = at.n_rounds[done], error[done]
        if done.size:
            self.at, self.loss = at.keep(which), self.loss.keep(which)
        return which

    def _problems(self, values: Floats) -> Floats:
        """(n, p * k) -> (n, p, k)."""
        return values.reshape(len(values), -1, self.k)

    def _inner(self, u: Floats, v: Floats) -> Floats:
        """Sum over rows and outputs, problem by problem."""
        return np.asarray(
            column_products(as_matrix(u), as_matrix(v)).reshape(-1, self.k).sum(axis=1)
        )

    def _curvature(self) -> tuple[Curvature, Elimination | None]:
        """Second derivatives at the iterate, computed once for the same scores."""
        if self._known is None or self._known[0] is not self.at.f:
            curvature = self.loss.curvature(self.at.f)
            self._known = self.at.f, curvature, Elimination(curvature) if self.is_free else None
        return self._known[1:]

    def _gradient(self) -> _Gradient:
        """Gradient and errors; remembers how long there was no progress."""
        at, geometry = self.at, self.geometry
        slopes = self.loss.slopes(at.f)
        gb = slopes.sum(axis=0)
        g = at.u + self._problems(geometry.adjoint(as_matrix(slopes)))
        gs = self._problems(geometry.scores(as_matrix(g))) if geometry.is_dual else g
        squared, size = self._inner(g, gs), self._inner(at.u, self._own(at.u))
        _, elimination = self._curvature()
        if elimination is not None:
            squared = squared + elimination.squared(gb)
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.sqrt(np.maximum(squared, 0) / size)
        error[squared <= 0] = 0
        n_idle = np.where(error < 0.5 * at.best, 0, at.n_idle + 1)
        best = np.minimum(at.best, np.nan_to_num(error, nan=np.inf))
        self.at = replace(at, n_idle=n_idle, best=best)
        return _Gradient(g, gs, gb, size, error)

    def _own(self, w: Floats) -> Floats:
        """Choose the factor of inner products with w of the iterate: itself, or its scores."""
        if not self.geometry.is_dual:
            return w
        return self.at.f - self.at.b if self.is_free else self.at.f

    def _step(self, gradient: _Gradient, tol: float) -> None:
        """One step of Newton's method, whole or shortened."""
        self.tick()
        at, geometry = self.at, self.geometry
        target = solve_directly(geometry, self.loss, at.f)
        if target is not None:
            d, db = self._problems(target[0]) - at.u, target[1] - at.b
            ds = self._problems(geometry.scores(as_matrix(d)))
        else:
            d, ds, db = self._direction(gradient, tol)
        own = ds if geometry.is_dual else d
        with np.errstate(divide="ignore", invalid="ignore"):
            moved = np.sqrt(np.maximum(self._inner(d, own), 0) / gradient.size)
        length = self._length(d, ds + db, own, is_short=moved <= np.sqrt(tol))
        t = length.astype(d.dtype)[:, None]
        self.at = replace(
            at,
            u=at.u + t * d,
            f=at.f + t * (ds + db),
            b=at.b + t * db,
            n_rounds=at.n_rounds + 1,
            estimate=np.where(length == 1, _LEFT_UNDONE * moved, np.inf),
        )

    def _direction(self, gradient: _Gradient, tol: float) -> tuple[Floats, Floats, Floats]:
        """Newton's direction, its scores without the intercept, and the intercept's."""
        accuracy = np.maximum(_INNER_ACCURACY, tol / gradient.error / 3)
        curvature, elimination = self._curvature()
        system = NewtonSystem(self.geometry, self.loss, curvature, elimination, self.tick)
        g, gs = as_matrix(gradient.w), as_matrix(gradient.scores)
        d, ds, db = system.direction(g, gs, gradient.b, accuracy.astype(g.dtype))
        return self._problems(d), self._problems(ds), db

    def _length(self, d: Floats, ds: Floats, own: Floats, *, is_short: NDArray[np.bool_]) -> Floats:
        """Length of the step: 1, or the minimum along it, by Newton's steps in a bracket.

        The slope along a step that is short anyway is but rounding.
        """
        at, loss = self.at, self.loss
        slope_of_w, curvature_of_w = self._inner(d, self._own(at.u)), self._inner(d, own)

        def scores(t: Floats) -> Floats:
            return np.asarray(at.f + t.astype(d.dtype)[:, None] * ds)

        def slope(t: Floats) -> Floats:
            slopes = self._inner(loss.slopes(scores(t)), ds)
            return np.asarray(slopes + slope_of_w + t * curvature_of_w)

        def curvature(t: Floats) -> Floats:
            return self._inner(loss.curvature(scores(t)).times(ds), ds) + curvature_of_w

        t = np.ones(len(at.index))
        first, last = slope(np.zeros_like(t)), slope(t)
        is_fine = is_short | (np.abs(last) <= _OVERSHOOT * np.abs(first))
        if is_fine.all():
            return t
        low, high = np.zeros_like(t), np.full_like(t, np.inf)
        for _ in range(_LINE_STEPS):
            low, high = np.where(last < 0, t, low), np.where(last < 0, high, t)
            if (is_fine | (np.abs(last) <= _LINE_ACCURACY * np.abs(first))).all():
                break
            with np.errstate(divide="ignore", invalid="ignore"):
                newton = t - last / curvature(t)
            middle = np.where(np.isfinite(high), (low + high) / 2, 2 * t)
            t = np.where(is_fine, t, np.where((newton > low) & (newton < high), newton, middle))
            last = slope(t)
        return t
