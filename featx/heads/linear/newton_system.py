"""The direction of Newton's step: (I + X^T D X) d = r, by preconditioned conjugate gradients.

Nocedal and Wright, "Numerical Optimization", 2nd ed. 2006, algorithm 5.3, for all problems
together. Matrices are flat: a column for each problem and output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.heads.linear.geometry import Geometry
from featx.heads.linear.losses import Curvature, Loss

__all__ = ["Elimination", "NewtonSystem", "as_matrix", "column_products"]

Floats = NDArray[Any]

_MAX_INNER = 2_000
# With the leading eigenpairs alone the preconditioner (I + s K)^-1 uses s = penalty times
# curvature, but no more than this over the mean squared norm (1 here): beyond, only the rows
# inside the margin count, which K ignores.
_LARGEST_STIFFNESS = 0.3
_SINGULAR = 1e-10
_MANY_OUTPUTS = 64
_FEW_OUTPUTS = 16


class Elimination:
    """A free intercept, solved for in terms of w: M db = -(gb + 1^T D X dw), M = 1^T D 1."""

    def __init__(self, curvature: Curvature) -> None:
        self.curvature = curvature
        self.inverse = _inverse(curvature.total().astype(np.float64))

    def shift(self, sums: Floats) -> Floats:
        """M^+ of (p, k)."""
        solved = np.einsum("pkl,pl->pk", self.inverse, sums.astype(np.float64))
        return np.asarray(solved, sums.dtype)

    def squared(self, gb: Floats) -> Floats:
        """Square of the intercept's gradient, in its own metric."""
        return np.asarray(np.einsum("pk,pk->p", gb, self.shift(gb)))

    def push(self, sums: Floats) -> Floats:
        """D 1 M^+ sums, (n, p, k): for the sums 1^T D s, the intercept's part of D s."""
        return self.curvature.times(self.shift(sums)[None])

    def intercept(self, gb: Floats, ds: Floats) -> Floats:
        """Step of the intercept."""
        return -self.shift(gb + self.curvature.times(ds).sum(axis=0))


def _inverse(total: Floats) -> Floats:
    """M^+ of (p, k, k), up to a multiple of the identity of 1e-10 of M where k > 1.

    Outputs of a softmax have the sum 0 in all that M is applied to, and M 1 = 0: with 1 1^T added
    M has an inverse. Rounding, in float32 too, leaves it as it is, but not the eigenvalue 0 of M.
    """
    k = total.shape[1]
    size = np.trace(total, axis1=1, axis2=2)[:, None, None] / k
    if k == 1 or not (size > 0).all():
        return np.asarray(np.linalg.pinv(total, rcond=_SINGULAR, hermitian=True))
    return np.asarray(np.linalg.inv(total + size * (1.0 / k + _SINGULAR * np.eye(k))))


class _Preconditioner:
    """(I + S (x) X^T X)^-1 by eigenpairs of X^T X, S the mean curvature by the outputs.

    With all eigenpairs, S is that of each problem at its iterate: a matrix for the outputs of a
    softmax, unless they are many. With the leading ones alone it is a number that is known before.
    """

    def __init__(self, geometry: Geometry, loss: Loss, curvature: Curvature) -> None:
        self.leading, self.k = geometry.leading, loss.n_outputs
        self.turn: Floats | None = None
        if not self.leading.is_whole:
            known = loss.typical_curvature * loss.weights.max(axis=0)[:, 0]
            stiff = np.repeat(np.minimum(known, _LARGEST_STIFFNESS), self.k)
        else:
            mean = curvature.total().astype(np.float64) / geometry.n_rows
            stiff = np.einsum("pkk->pk", mean)
            if 1 < self.k < _MANY_OUTPUTS:
                stiff, turn = np.linalg.eigh(mean)
                self.turn = turn.astype(geometry.dtype)
        self.stiff = np.maximum(stiff.ravel(), 0).astype(geometry.dtype)

    def apply(self, r: Floats, rs: Floats | None) -> tuple[Floats, Floats | None]:
        """Product with r, and its scores where w is numbers a."""
        if self.turn is None:
            return self.leading.precondition(r, rs, self.stiff)
        z, _ = self.leading.precondition(self._turned(r, self.turn), None, self.stiff)
        return self._turned(z, self.turn.transpose(0, 2, 1)), None

    def _turned(self, v: Floats, turn: Floats) -> Floats:
        by_problem = v.reshape(len(v), -1, self.k).transpose(1, 0, 2)
        return as_matrix((by_problem @ turn).transpose(1, 0, 2))


class NewtonSystem:
    """(I + X^T D X) (dw, db) = -gradient, for all problems."""

    def __init__(
        self,
        geometry: Geometry,
        loss: Loss,
        curvature: Curvature,
        elimination: Elimination | None,
        tick: Callable[[], object],
    ) -> None:
        self.geometry, self.curvature, self.elimination = geometry, curvature, elimination
        self.preconditioner = _Preconditioner(geometry, loss, curvature)
        self.k, self.tick = loss.n_outputs, tick
        self._columns = self._intercept_columns()

    def direction(
        self, g: Floats, gs: Floats, gb: Floats, accuracy: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Newton's direction, its scores without the intercept, and the intercept's, (p, k).

        `g` is the gradient by w, `gs` its scores where w is numbers a, `gb` that by the intercept.
        """
        r, rs = -g, -gs if self.geometry.is_dual else None
        if self.elimination is None:
            d, ds = self._solve(r, rs, accuracy)
            return d, ds, np.zeros_like(gb)
        r = r + self._pushed(self.elimination, gb)
        d, ds = self._solve(r, self._scores(r), accuracy)
        return d, ds, self.elimination.intercept(gb, ds.reshape(len(ds), -1, self.k))

    def _scores(self, r: Floats) -> Floats | None:
        return self.geometry.scores(r) if self.geometry.is_dual else None

    def _intercept_columns(self) -> Floats | None:
        """X^T D 1, (k, n_numbers, p, k), in one pass that saves one in every step."""
        if self.elimination is None or self.geometry.is_dual or self.k > _FEW_OUTPUTS:
            return None
        ones = np.eye(self.k, dtype=self.geometry.dtype)[:, None, None]
        n_problems = self.elimination.inverse.shape[0]
        each = [self.curvature.times(np.repeat(one, n_problems, axis=1)) for one in ones]
        columns = self.geometry.adjoint(as_matrix(np.stack(each, axis=1)))
        return columns.reshape(len(columns), self.k, n_problems, self.k).transpose(1, 0, 2, 3)

    def _pushed(self, elimination: Elimination, sums: Floats) -> Floats:
        """X^T D 1 M^+ sums."""
        if self._columns is None:
            return self.geometry.adjoint(as_matrix(elimination.push(sums)))
        return as_matrix(np.einsum("ldpk,pl->dpk", self._columns, elimination.shift(sums)))

    def _weighted(self, s: Floats, rows: slice) -> Floats:
        """D s, for some rows."""
        return as_matrix(self.curvature.times(s.reshape(len(s), -1, self.k), rows))

    def _times(self, p: Floats, ps: Floats | None) -> tuple[Floats, Floats, Floats | None]:
        """Scores of p, the product by the matrix, and its scores where w is numbers a."""
        if ps is not None:
            weighted = self._weighted(ps, slice(None))
            if self.elimination is not None:
                sums = weighted.sum(axis=0).reshape(-1, self.k)
                weighted = weighted - as_matrix(self.elimination.push(sums))
            product = self.geometry.adjoint(weighted)
            return ps, p + product, ps + self.geometry.scores(product)
        sums = np.zeros(p.shape[1], p.dtype)

        def weighted_and_summed(s: Floats, rows: slice) -> Floats:
            weighted = self._weighted(s, rows)
            np.add(sums, weighted.sum(axis=0), out=sums)
            return weighted

        s, product = self.geometry.normal_product(p, weighted_and_summed)
        if self.elimination is not None:
            product = product - self._pushed(self.elimination, sums.reshape(-1, self.k))
        return s, p + product, None

    def _solve(self, r: Floats, rs: Floats | None, accuracy: Floats) -> tuple[Floats, Floats]:
        """Solve to a share `accuracy` of the right-hand side; the solution and its scores."""
        k, precondition = self.k, self.preconditioner.apply

        def inner(u: Floats, v: Floats, v_scores: Floats | None) -> Floats:
            both = column_products(u, v if v_scores is None else v_scores)
            return np.repeat(both.reshape(-1, k).sum(axis=1), k)

        d = np.zeros_like(r)
        ds = np.zeros((self.geometry.n_rows, r.shape[1]), r.dtype)
        goal = np.repeat(accuracy, k) ** 2 * inner(r, r, rs)
        z, zs = precondition(r, rs)
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
            z, zs = precondition(r, rs)
            rz, rz_old = inner(r, z, zs), rz
            active &= rz > 0
            with np.errstate(divide="ignore", invalid="ignore"):
                beta = np.where(active, rz / rz_old, 0).astype(r.dtype)
            p = z + beta * p
            ps = None if ps is None or zs is None else zs + beta * ps
        return d, ds


def as_matrix(values: Floats) -> Floats:
    """(n, p, k) -> (n, p * k)."""
    return np.ascontiguousarray(values).reshape(len(values), -1)


def column_products(u: Floats, v: Floats) -> Floats:
    """Inner products of columns, in float64."""
    return np.asarray(np.einsum("ij,ij->j", u, v, dtype=np.float64))
