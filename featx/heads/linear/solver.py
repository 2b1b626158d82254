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
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.heads.linear.direct import solve_directly
from featx.heads.linear.geometry import Geometry
from featx.heads.linear.losses import Curvature, Loss

__all__ = ["Solution", "solve"]

Floats = NDArray[Any]

_MAX_ROUNDS = 100
_MAX_INNER = 2_000
# A step this exact keeps the number of rounds small; measured on 1,000 x 86,528 features, where
# 0.1 doubles the products for the largest penalties.
_INNER_ACCURACY = 0.01
# Share of an error that a whole step leaves: its own inaccuracy, and rows that change sides.
_LEFT_UNDONE = 0.1
# A whole step is kept if it leaves at most this share of the slope along it.
_OVERSHOOT = 0.5
_LINE_STEPS = 30
_LINE_ACCURACY = 1e-3
# The preconditioner (I + s K)^-1 uses s = penalty times curvature, but no more than this over
# the mean squared norm (1 here): beyond, only the rows inside the margin count, which K ignores.
_LARGEST_STIFFNESS = 0.3
_SINGULAR = 1e-10
_MANY_OUTPUTS = 64
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
        out.scores[...] = geometry.scores(_flat(out.u)).reshape(out.scores.shape) + out.intercept
    newton = _Newton(geometry, loss, out, is_free, tick)
    for _ in range(_MAX_ROUNDS):
        newton.look(tol, is_rough=is_rough)
        if not newton.index.size:
            return out
        newton.step(tol)
    newton.look(tol, is_rough=is_rough)
    newton.store(np.arange(newton.index.size))
    return out


class _Newton:
    """Iterates of the problems that have not converged yet, flattened to matrices.

    `u` is the iterate, `b` its intercept, `f` the scores of both; `g` is the gradient and `gs`
    its scores, where w is represented by numbers a.
    """

    def __init__(
        self,
        geometry: Geometry,
        loss: Loss,
        out: Solution,
        is_free: bool,
        tick: Callable[[], object],
    ) -> None:
        self.tick = tick
        self.geometry, self.loss, self.out, self.is_free = geometry, loss, out, is_free
        self.index = np.arange(loss.weights.shape[1])
        self.k = loss.n_outputs
        self.u, self.f = _flat(out.u.copy()), _flat(out.scores.copy())
        self.b = out.intercept.copy()
        self.rounds = np.zeros(len(self.index), np.int64)
        self.best = np.full(len(self.index), np.inf)
        self.idle = np.zeros(len(self.index), np.int64)
        self.estimate = np.full(len(self.index), np.inf)

    def problems(self, flat: Floats) -> Floats:
        """(n, p * k) -> (n, p, k)."""
        return flat.reshape(len(flat), -1, self.k)

    def inner(self, u: Floats, v: Floats) -> Floats:
        """Sum over rows and outputs, problem by problem."""
        return np.asarray(_dots(u, v).reshape(-1, self.k).sum(axis=1))

    def look(self, tol: float, *, is_rough: bool) -> None:
        """Compute the gradient, and drop what is solved or stuck."""
        if is_rough and (self.estimate <= tol).any():
            self.error = self.estimate
            self.drop(self.estimate <= tol)
        if not self.index.size:
            return
        f = self.problems(self.f)
        slopes = self.loss.slopes(f)
        self.bend()
        self.gb = slopes.sum(axis=0)
        self.g = self.u + self.geometry.pull(_flat(slopes))
        self.gs = self.geometry.scores(self.g) if self.geometry.is_dual else self.g
        squared = self.inner(self.g, self.gs)
        # The part of the scores that is not the intercept's.
        self.size = self.inner(self.u, self._own_scores() if self.geometry.is_dual else self.u)
        if self.elimination is not None:
            squared = squared + self.elimination.squared(self.gb)
        with np.errstate(divide="ignore", invalid="ignore"):
            self.error = np.sqrt(np.maximum(squared, 0) / self.size)
        self.error[squared <= 0] = 0
        is_better = self.error < 0.5 * self.best
        self.idle = np.where(is_better, 0, self.idle + 1)
        self.best = np.minimum(self.best, np.nan_to_num(self.error, nan=np.inf))
        is_done = (self.error <= tol) | (self.idle > _PATIENCE)
        if is_done.any():
            self.drop(is_done)
            self.bend()

    def bend(self) -> None:
        """Compute the second derivatives at the iterate."""
        self.curvature = self.loss.curvature(self.problems(self.f))
        self.elimination = _Elimination(self.curvature) if self.is_free else None

    def _own_scores(self) -> Floats:
        return self.f - self.b.ravel() if self.is_free else self.f

    def store(self, which: NDArray[np.int64]) -> None:
        """Write problems into the solution."""
        where, out = self.index[which], self.out
        out.u[:, where] = self.problems(self.u)[:, which]
        out.scores[:, where] = self.problems(self.f)[:, which]
        out.intercept[where] = self.b[which]
        out.n_iter[where], out.error[where] = self.rounds[which], self.error[which]

    def drop(self, is_done: NDArray[np.bool_]) -> None:
        """Store problems, and go on with the others alone."""
        self.store(np.flatnonzero(is_done))
        which = np.flatnonzero(~is_done)
        for name in ("u", "f", "g", "gs"):
            setattr(self, name, _flat(self.problems(getattr(self, name))[:, which]))
        for name in ("index", "b", "gb", "rounds", "best", "idle", "error", "size", "estimate"):
            setattr(self, name, getattr(self, name)[which])
        self.loss = self.loss.keep(which)

    def step(self, tol: float) -> None:
        """One step of Newton's method, whole or shortened."""
        self.tick()
        target = solve_directly(self.geometry, self.loss, self.problems(self.f))
        if target is not None:
            d, db = target[0] - self.u, target[1] - self.b
            ds = self.geometry.scores(d)
        else:
            d, ds, db = self._conjugate_gradients(np.maximum(_INNER_ACCURACY, tol / self.error / 3))
        moved = self._moved(d, ds)
        length = self._length(d, ds + db.ravel(), ds, is_short=moved <= np.sqrt(tol))
        self.estimate = np.where(length == 1, _LEFT_UNDONE * moved, np.inf)
        t = np.repeat(length, self.k).astype(d.dtype)
        self.u = self.u + t * d
        self.f = self.f + t * (ds + db.ravel())
        self.b = self.b + t.reshape(self.b.shape) * db
        self.rounds += 1

    def _moved(self, d: Floats, ds: Floats) -> Floats:
        """Length of a step beside that of w."""
        squared = self.inner(d, ds if self.geometry.is_dual else d)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.sqrt(np.maximum(squared, 0) / self.size))

    def _conjugate_gradients(self, accuracy: Floats) -> tuple[Floats, Floats, Floats]:
        """Newton's direction, its scores without the intercept, and the intercept's."""
        geometry, dtype = self.geometry, self.geometry.dtype
        weights = self.loss.weights.max(axis=0)[:, 0]
        stiff = np.minimum(self.loss.typical_curvature * weights, _LARGEST_STIFFNESS)
        system = _System(geometry, self.curvature, self.elimination, self.k, self.tick)
        r, rs = -self.g, -self.gs if geometry.is_dual else None
        if self.elimination is not None:
            pushed = _flat(self.elimination.push(self.gb))
            r = r + geometry.pull(pushed)
            rs = geometry.scores(r) if geometry.is_dual else None
        d, ds = system.solve(r, rs, stiff.astype(dtype), accuracy.astype(dtype))
        db = np.zeros_like(self.b)
        if self.elimination is not None:
            db = self.elimination.intercept(self.gb, self.problems(ds))
        return d, ds, db

    def _length(self, d: Floats, ds: Floats, own: Floats, *, is_short: NDArray[np.bool_]) -> Floats:
        """Length of the step: 1, or the minimum along it, by Newton's steps in a bracket.

        The slope along a step that is short anyway is but rounding.
        """
        is_dual = self.geometry.is_dual
        flat = self.inner(d, self._own_scores()) if is_dual else self.inner(d, self.u)
        bend = self.inner(d, own if is_dual else d)

        def slope(t: Floats) -> Floats:
            at = self.f + np.repeat(t, self.k).astype(d.dtype) * ds
            slopes = self.loss.slopes(self.problems(at))
            return np.asarray(self.inner(_flat(slopes), ds) + flat + t * bend)

        def curvature(t: Floats) -> Floats:
            at = self.f + np.repeat(t, self.k).astype(d.dtype) * ds
            bent = self.loss.curvature(self.problems(at)).times(self.problems(ds))
            return np.asarray(self.inner(_flat(bent), ds) + bend)

        t = np.ones(len(self.index))
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


class _Elimination:
    """A free intercept, solved for in terms of w: M db = -(gb + 1^T D X dw), M = 1^T D 1."""

    def __init__(self, curvature: Curvature) -> None:
        self.curvature = curvature
        self.inverse = _inverse(curvature.total().astype(np.float64))

    def _shift(self, sums: Floats) -> Floats:
        """M^+ of (p, k)."""
        solved = np.einsum("pkl,pl->pk", self.inverse, sums.astype(np.float64))
        return np.asarray(solved, sums.dtype)

    def squared(self, gb: Floats) -> Floats:
        """Square of the intercept's gradient, in its own metric."""
        return np.asarray(np.einsum("pk,pk->p", gb, self._shift(gb)))

    def push(self, sums: Floats) -> Floats:
        """D 1 M^+ sums, (n, p, k): for the sums 1^T D s, the intercept's part of D s."""
        return self.curvature.times(self._shift(sums)[None])

    def intercept(self, gb: Floats, ds: Floats) -> Floats:
        """Step of the intercept."""
        return -self._shift(gb + self.curvature.times(ds).sum(axis=0))


def _inverse(total: Floats) -> Floats:
    """M^+ of (p, k, k), up to a multiple of the identity of 1e-10 of M where k is large.

    Outputs of a softmax have the sum 0 in all that M is applied to, and M 1 = 0: with 1 1^T added
    M has an inverse, which takes a tenth of the time of the eigenvalues that M^+ takes.
    """
    k = total.shape[1]
    size = np.trace(total, axis1=1, axis2=2)[:, None, None] / k
    if k < _MANY_OUTPUTS or not (size > 0).all():
        return np.asarray(np.linalg.pinv(total, rcond=_SINGULAR, hermitian=True))
    return np.asarray(np.linalg.inv(total + size * (1.0 / k + _SINGULAR * np.eye(k))))


class _System:
    """(I + X^T D X) d = r, for all problems, D without its intercept part."""

    def __init__(
        self,
        geometry: Geometry,
        curvature: Curvature,
        elimination: _Elimination | None,
        n_outputs: int,
        tick: Callable[[], object],
    ) -> None:
        self.tick = tick
        self.geometry, self.curvature, self.k = geometry, curvature, n_outputs
        self.elimination = elimination

    def _bent(self, s: Floats, rows: slice) -> Floats:
        return _flat(self.curvature.times(s.reshape(len(s), -1, self.k), rows))

    def _times(self, p: Floats, ps: Floats | None) -> tuple[Floats, Floats, Floats | None]:
        """Scores of p, the product by the matrix, and its scores where w is numbers a."""
        if ps is not None:
            bent = self._bent(ps, slice(None))
            if self.elimination is not None:
                bent = bent - self._intercept_part(self.elimination, bent)
            bent = self.geometry.pull(bent)
            return ps, p + bent, ps + self.geometry.scores(bent)
        s, pulled = self.geometry.through(p, self._bent)
        if self.elimination is not None:
            bent = self._bent(s, slice(None))
            part = self._intercept_part(self.elimination, bent)
            pulled = pulled - self.geometry.pull(part)
        return s, p + pulled, None

    def _intercept_part(self, elimination: _Elimination, bent: Floats) -> Floats:
        return _flat(elimination.push(bent.reshape(len(bent), -1, self.k).sum(axis=0)))

    def solve(
        self, r: Floats, rs: Floats | None, stiff: Floats, accuracy: Floats
    ) -> tuple[Floats, Floats]:
        """Solve to a share `accuracy` of the right-hand side."""
        k, leading = self.k, self.geometry.leading
        stiff = np.repeat(stiff, k)

        def inner(u: Floats, v: Floats, v_scores: Floats | None) -> Floats:
            both = _dots(u, v if v_scores is None else v_scores)
            return np.repeat(both.reshape(-1, k).sum(axis=1), k)

        d = np.zeros_like(r)
        ds = np.zeros((self.geometry.n_rows, r.shape[1]), r.dtype)
        goal = np.repeat(accuracy, k) ** 2 * inner(r, r, rs)
        z, zs = leading.precondition(r, rs, stiff)
        p, ps = z, zs
        rz = inner(r, z, zs)
        active = rz > 0
        for _ in range(_MAX_INNER):
            if not active.any():
                break
            self.tick()
            s, q, qs = self._times(p, ps)
            with np.errstate(divide="ignore", invalid="ignore"):
                alpha = np.where(active, rz / inner(p, q, qs), 0)
            alpha = np.nan_to_num(alpha, nan=0, posinf=0, neginf=0).astype(r.dtype)
            d += alpha * p
            ds += alpha * s
            r = r - alpha * q
            rs = None if rs is None or qs is None else rs - alpha * qs
            active &= inner(r, r, rs) > goal
            z, zs = leading.precondition(r, rs, stiff)
            rz, rz_old = inner(r, z, zs), rz
            active &= rz > 0
            with np.errstate(divide="ignore", invalid="ignore"):
                beta = np.where(active, rz / rz_old, 0).astype(r.dtype)
            p = z + beta * p
            ps = None if ps is None or zs is None else zs + beta * ps
        return d, ds


def _flat(values: Floats) -> Floats:
    """(n, p, k) -> (n, p * k)."""
    return np.ascontiguousarray(values).reshape(len(values), -1)


def _dots(u: Floats, v: Floats) -> Floats:
    """Inner products of columns, in float64."""
    return np.asarray(np.einsum("ij,ij->j", u, v), np.float64)
