"""Newton's step for the squared losses by factorisation, where that is cheaper than iterating.

With the rows that count known (those inside the margin; all that are fitted), the minimum has
numbers a on these rows alone: (K + diag(1 / 2c)) a + b = signs, and sum(a) = 0 if the intercept b
is free.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from featx.heads.linear.geometry import Geometry, GramGeometry
from featx.heads.linear.losses import Loss, SquaredHinge, SquaredLoss

__all__ = ["solve_directly"]

Floats = NDArray[Any]

# A factorisation, in float64, against this many products of conjugate gradients in one round:
# measured on 1,000 and 5,000 x 86,528 features, where they grow with the root of the penalty.
_PRODUCTS = 10.0


def solve_directly(geometry: Geometry, loss: Loss, scores: Floats) -> tuple[Floats, Floats] | None:
    """Minimum if the rows of the loss are those that count now."""
    if not isinstance(loss, SquaredLoss) or not isinstance(geometry, GramGeometry):
        return None
    signs, weights = loss.signs[:, :, 0], loss.weights[:, :, 0]
    counts = weights > 0
    if isinstance(loss, SquaredHinge):
        counts &= signs * scores[:, :, 0] < 1
        groups = [np.array([problem]) for problem in range(counts.shape[1])]
    else:
        groups = _equal_columns(weights)
    work = sum(float(counts[:, group[0]].sum()) ** 3 / 3.0 for group in groups)
    products = _PRODUCTS * np.sqrt(np.maximum(weights.max(axis=0), 0.01)).sum()
    if work >= products * float(len(counts)) ** 2:
        return None
    a, b = np.zeros_like(signs), np.zeros((counts.shape[1], 1), signs.dtype)

    def one(group: NDArray[np.int64]) -> None:
        rows = np.flatnonzero(counts[:, group[0]])
        if rows.size:
            ridge = 0.5 / weights[rows, group[0]].astype(np.float64)
            a[np.ix_(rows, group)], b[group] = _solve(geometry, rows, ridge, signs[rows][:, group])

    if not geometry.matrix.is_on_host:
        for group in groups:
            one(group)
        return a, b
    n_threads = max((pool["num_threads"] for pool in threadpool_info()), default=1)
    # Side by side: one factorisation of this size on all cores waits for the slowest of them.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(n_threads) as threads:
        list(threads.map(one, groups))
    return a, b


def _solve(
    geometry: GramGeometry, rows: NDArray[np.int64], ridge: Floats, signs: Floats
) -> tuple[Floats, Floats]:
    """Numbers of some rows and intercepts, for problems that share the rows and penalties."""
    right = np.column_stack([signs, np.ones(len(rows))]).astype(np.float64)
    solved = geometry.matrix.solve(rows, ridge, right)
    a, ones = solved[:, :-1], solved[:, -1:]
    if not geometry.is_centred:
        return a, np.zeros((a.shape[1], 1))
    b = a.sum(axis=0) / ones.sum()
    return a - ones * b, b[:, None]


def _equal_columns(weights: Floats) -> list[NDArray[np.int64]]:
    """Problems with the same penalty on every row."""
    _, member = np.unique(weights, axis=1, return_inverse=True)
    member = np.ravel(member)
    return [np.flatnonzero(member == group) for group in range(int(member.max()) + 1)]
