"""Many L2-regularised linear models at once, exactly, from a kernel of the rows.

For rows x_i, a problem is to minimise over w and an intercept b

    1/2 |w|^2 + r/2 b^2 + sum_i c_i loss(w.x_i + b).

Its solution is w = sum_i a_i x_i, so everything happens in the n numbers a: the scores are
f = K a + b with K = X X^T, and the gradient, as an element of the space of w, is
a + c loss'(f), without a product by K. With fewer features than rows, w itself takes the place
of a. The method is preconditioned nonlinear conjugate
gradients (Polak and Ribiere with restarts: Nocedal and Wright, "Numerical Optimization",
2nd ed. 2006, eq. 5.45) with an exact line search, which costs no product either, since the
scores along a direction are known. An iteration is one product of K with the columns of all
problems.

The objective is 1-strongly convex in w, so |w - w*| <= |gradient|: the stopping rule
|gradient| <= tol |w| bounds the relative error of w by tol.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.heads.losses import Loss
from featx.heads.scaling import Array

__all__ = ["Geometry", "Solution", "solve"]

_LINE_STEPS = 20
_LINE_ACCURACY = 1e-4
# The preconditioner (I + s K)^-1 uses s = penalty times curvature, but no more than this over
# the mean squared norm (1 here): beyond, only the rows inside the margin count, which K ignores.
# Measured on 1,000 x 86,528 features: 0.3 needs the fewest products, 10 needs three times more.
_LARGEST_STIFFNESS = 0.3


@dataclass(frozen=True)
class Geometry:
    """How the solver represents w, by n numbers a or by w itself, whichever are fewer.

    Rows are scaled so that their mean squared norm is about 1.

    Parameters
    ----------
    matrix : ndarray of float32 or float64, shape (n_rows, n_rows) or (n_rows, n_features)
        K, where w = X^T a; X, where w is used as it is. Its precision is that of the products;
        all other numbers are float64.
    is_dual : bool
        Whether `matrix` is K.
    values : ndarray of float64, shape (m,)
        Leading eigenvalues of K, where the curvature is far from 1.
    vectors : ndarray of float64, shape (n_rows, m) or (n_features, m)
        Their orthonormal eigenvectors: of K, or of X^T X.
    """

    matrix: NDArray[Any]
    is_dual: bool
    values: Array
    vectors: Array

    @cached_property
    def vector_scores(self) -> Array:
        """Scores of the eigenvectors, float64, shape (n_rows, m)."""
        if self.is_dual:
            return self.vectors * self.values
        return np.asarray(self.matrix @ self.vectors, dtype=np.float64)

    def scores(self, u: Array) -> Array:
        """Scores of representations: (n, p, k) or (n_features, p, k) -> (n, p, k)."""
        return _times(self.matrix, u)

    def pull(self, slopes: Array) -> Array:
        """Representation of sum_i slopes_i x_i."""
        return slopes if self.is_dual else _times(self.matrix.T, slopes)

    def inner(self, u: Array, v: Array, v_scores: Array) -> Array:
        """Inner products of the represented w, problem by problem: shape (p,)."""
        return np.asarray(np.einsum("npk,npk->p", u, v_scores if self.is_dual else v))

    def precondition(self, g: Array, g_scores: Array, stiff: Array) -> tuple[Array, Array]:
        """(I + s X^T X)^-1 g by the leading eigenvectors, s for each problem, and its scores."""
        ratio = self.values[:, None] * stiff
        part = _times(self.vectors.T, g) * (ratio / (1.0 + ratio))[:, :, None]
        return g - _times(self.vectors, part), g_scores - _times(self.vector_scores, part)


def _times(matrix: NDArray[Any], columns: Array) -> Array:
    """Product in the matrix's precision: (m, n), (n, p, k) -> (m, p, k) in float64."""
    _, p, k = columns.shape
    flat = columns.reshape(len(columns), p * k).astype(matrix.dtype, copy=False)
    out: Array = (matrix @ flat).reshape(len(matrix), p, k).astype(np.float64, copy=False)
    return out


@dataclass(frozen=True)
class Solution:
    """Solved problems.

    Parameters
    ----------
    u : ndarray of float64, shape (n_rows or n_features, n_problems, n_outputs)
        Numbers a with w = X^T a, or w: as the geometry has it.
    intercept : ndarray of float64, shape (n_problems, n_outputs)
        Numbers b.
    scores : ndarray of float64, shape (n_rows, n_problems, n_outputs)
        X w + b, also for rows that were left out of the loss.
    n_iter : ndarray of int64, shape (n_problems,)
        Steps.
    error : ndarray of float64, shape (n_problems,)
        Upper bound of the relative error of w; far too high where the problem is well
        determined by its rows.
    solved : ndarray of bool, shape (n_problems,)
        Whether the error met the tolerance, or what rounding allows.
    """

    u: Array
    intercept: Array
    scores: Array
    n_iter: NDArray[np.int64]
    error: Array
    solved: NDArray[np.bool_]


def solve(
    geometry: Geometry,
    loss: Loss,
    n_outputs: int,
    *,
    intercept_penalty: float,
    tol: float,
    max_iter: int = 2000,
) -> Solution:
    """Solve every problem of `loss` to the relative accuracy `tol`.

    Parameters
    ----------
    geometry : Geometry
        The rows, fitted and left out.
    loss : Loss
        Targets and penalties of the problems.
    n_outputs : int
        Scores a row and problem.
    intercept_penalty : float
        The number r; 0 leaves the intercept free.
    tol : float
        Wanted relative error of w.
    max_iter : int, default=2000
        Most steps; `Solution.error` tells whether that was enough.

    Returns
    -------
    Solution
    """
    n_rows, n_problems = loss.weights.shape[:2]
    out = Solution(
        u=np.zeros((geometry.matrix.shape[1], n_problems, n_outputs)),
        intercept=np.zeros((n_problems, n_outputs)),
        scores=np.zeros((n_rows, n_problems, n_outputs)),
        n_iter=np.zeros(n_problems, dtype=np.int64),
        error=np.full(n_problems, np.inf),
        solved=np.zeros(n_problems, dtype=np.bool_),
    )
    descent = _Descent(geometry, loss, out, intercept_penalty)
    for iteration in range(max_iter + 1):
        descent.gradient()
        descent.retire(tol, last=iteration == max_iter)
        if not descent.index.size:
            break
        descent.turn()
        descent.advance()
    return out


class _Descent:
    """Iterates of the problems that have not converged yet.

    `u` and `b` are the iterate, `g` and `gb` the gradient, `d` and `db` the direction; `su`,
    `sg` and `sd` are the scores of `u`, `g` and `d`.
    """

    _ARRAYS = ("u", "su", "g", "sg", "g_old", "d", "sd")
    _ROWS = ("index", "b", "gb", "gb_old", "db", "gz_old", "stiff", "scale_b")

    def __init__(self, geometry: Geometry, loss: Loss, out: Solution, ridge: float) -> None:
        self.geometry, self.loss, self.out, self.ridge = geometry, loss, out, ridge
        self.u, self.g, self.g_old, self.d = (np.zeros(out.u.shape) for _ in range(4))
        self.su, self.sg, self.sd = (np.zeros(out.scores.shape) for _ in range(3))
        self.b, self.gb, self.gb_old, self.db = (np.zeros(out.intercept.shape) for _ in range(4))
        self.index = np.arange(len(self.b))
        self.gz_old = np.full(len(self.b), np.inf)
        weights, curvature = loss.weights, loss.typical_curvature
        self.stiff = np.minimum(curvature * weights.max(axis=0)[:, 0], _LARGEST_STIFFNESS)
        self.scale_b = 1.0 / (ridge + curvature * weights.sum(axis=0))
        self.steps = 0

    def gradient(self) -> None:
        """Gradient at the iterate, and its scores."""
        slopes = self.loss.slopes(self.su + self.b)
        self.gb = self.ridge * self.b + slopes.sum(axis=0)
        self.g = self.u + self.geometry.pull(slopes)
        self.sg = self.geometry.scores(self.g)

    def retire(self, tol: float, *, last: bool) -> None:
        """Store the problems that are solved, or all, and drop them."""
        inner = self.geometry.inner
        slope = inner(self.g, self.g, self.sg) + (self.gb**2 * self.scale_b).sum(axis=1)
        size = inner(self.u, self.u, self.su) + self.ridge * (self.b**2).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.sqrt(np.maximum(slope, 0.0) / size)
        error[slope <= 0] = 0.0
        solved = error <= tol
        done = np.full_like(solved, True) if last else solved
        if not done.any():
            return
        where, out = self.index[done], self.out
        out.u[:, where], out.intercept[where] = self.u[:, done], self.b[done]
        out.scores[:, where] = self.su[:, done] + self.b[done]
        out.n_iter[where], out.error[where], out.solved[where] = (
            self.steps,
            error[done],
            solved[done],
        )
        self._keep(~done)

    def _keep(self, problems: NDArray[np.bool_]) -> None:
        for name in self._ARRAYS:
            setattr(self, name, getattr(self, name)[:, problems])
        for name in self._ROWS:
            setattr(self, name, getattr(self, name)[problems])
        self.loss = self.loss.keep(problems)

    def turn(self) -> None:
        """Make the next direction conjugate to the last."""
        inner = self.geometry.inner
        z, sz = self.geometry.precondition(self.g, self.sg, self.stiff)
        zb = self.gb * self.scale_b
        gz = inner(self.g, z, sz) + (self.gb * zb).sum(axis=1)
        overlap = inner(self.g_old, z, sz) + (self.gb_old * zb).sum(axis=1)
        beta = np.maximum(0.0, (gz - overlap) / self.gz_old)
        for _ in range(2):
            d, sd = beta[:, None] * self.d - z, beta[:, None] * self.sd - sz
            db = beta[:, None] * self.db - zb
            uphill = inner(self.g, d, sd) + (self.gb * db).sum(axis=1) >= 0
            if not uphill.any():
                break
            beta[uphill] = 0.0
        self.d, self.sd, self.db = d, sd, db
        self.g_old, self.gb_old, self.gz_old = self.g, self.gb, gz

    def advance(self) -> None:
        """Go to the minimum along the direction."""
        t = self._line_search()[:, None]
        self.u += t * self.d
        self.su += t * self.sd
        self.b += t * self.db
        self.steps += 1

    def _line_search(self) -> Array:
        """Root of the derivative along the direction: Newton's steps, kept in a bracket."""
        inner = self.geometry.inner
        flat = inner(self.u, self.d, self.sd) + self.ridge * (self.b * self.db).sum(axis=1)
        bend = inner(self.d, self.d, self.sd) + self.ridge * (self.db**2).sum(axis=1)
        start, step = self.su + self.b, self.sd + self.db
        t, low, high = np.zeros_like(flat), np.zeros_like(flat), np.full_like(flat, np.inf)
        first = np.full_like(flat, np.inf)
        for attempt in range(_LINE_STEPS):
            slope, curvature = self.loss.slope_and_curvature(start + t[:, None] * step, step)
            total = slope.sum(axis=0) + flat + t * bend
            first = np.abs(total) if attempt == 0 else first
            low, high = np.where(total < 0, t, low), np.where(total < 0, high, t)
            if (np.abs(total) <= _LINE_ACCURACY * first).all():
                break
            newton = t - total / (curvature.sum(axis=0) + bend)
            middle = np.where(np.isfinite(high), (low + high) / 2, 2 * t)
            t = np.where((newton > low) & (newton < high), newton, middle)
        return np.asarray(t)
