"""How long a linear head takes on rows, foretold from one step on some of these rows.

A fit is steps of conjugate gradients: each a product of the rows, or of their Gram matrix, with a
column for each fold and output, and back. How many there are depends on the rows: the numbers
here are the middle of what was counted on made-up rows and on pixels of CIFAR-10, 2 to 70 classes,
300 to 6,000 rows of 64 to 3,072 features; single ones lie within 2.5 times of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from featx.heads.device import HostMatrix
from featx.heads.linear.head import LinearHead
from featx.heads.linear.space import LinearSpace
from featx.heads.rowspace import RowSpace

__all__ = ["LinearWork", "gram_seconds"]

# By head: with the search of a penalty, and with a given one. Ridge's matrix is constant, so that
# the whole spectrum of the rows, where it is known, all but solves it.
_STEPS = {"svm": (300, 45), "logreg": (320, 33), "ridge": (200, 38)}
_STEPS_OF_WHOLE = {"ridge": (65, 6)}
_EIGENPAIRS = 10  # flops of all eigenpairs of a d x d matrix, over d^3
_ROWS, _COLUMNS, _TIMES = 512, 4096, 3


@dataclass(frozen=True)
class LinearWork:
    """What one fit of a head takes; `n_folds` is 0 where the penalty is given."""

    head: LinearHead
    space: RowSpace
    n_classes: int
    n_folds: int

    @cached_property
    def _linear(self) -> LinearSpace:
        return LinearSpace(self.space, self.head.is_free)

    @property
    def is_dual(self) -> bool:
        """Whether the Gram matrix is used."""
        return self._linear.is_dual

    @property
    def n_steps(self) -> int:
        """Steps with a column for each output of all folds, about."""
        steps = _STEPS[self.head.name]
        if self._linear.has_spectrum:
            steps = _STEPS_OF_WHOLE.get(self.head.name, steps)
            growth = 1.0
        else:
            # Conjugate gradients need the root of the condition number, which grows with the rows
            # of a feature where their spectrum is not known.
            growth = max(1.0, self.space.n_rows / self.space.n_features) ** 0.5
        return round(growth * (steps[0] if self.n_folds else steps[1]))

    @property
    def n_columns(self) -> int:
        """Columns of a step."""
        return max(1, self.n_folds) * (1 if self.n_classes == 2 else self.n_classes)

    @property
    def _width(self) -> int:
        return self.space.n_rows if self.is_dual else 2 * self.space.n_features

    @property
    def flops(self) -> float:
        """Multiplications and additions of all steps and of the spectrum."""
        return self.n_steps * 2.0 * self.space.n_rows * self._width * self.n_columns + self._once

    @property
    def _once(self) -> float:
        n, d = self.space.n_rows, self.space.n_features
        return float(d) ** 2 * (n + _EIGENPAIRS * d) if self._linear.has_spectrum else 0.0

    def seconds(self) -> float:
        """Time for all of it, from a step on some of the rows."""
        n_rows, seconds = self._step()
        steps = self.n_steps * seconds * self.space.n_rows / n_rows
        return steps + (self._once / self._square_rate() if self._once else 0.0)

    def _square_rate(self) -> float:
        """Operations a second of X^T X, which is far quicker than by a few columns."""
        n, d = min(_ROWS, self.space.n_rows), min(_ROWS, self.space.n_features)
        part = self.space.rows(np.arange(n), np.float32)[:, :d]
        return float(n) * d**2 / _timed(lambda: part.T @ part)

    def _step(self) -> tuple[int, float]:
        """How many rows were multiplied, and the seconds that a step of them takes.

        In float64: a search of many rows works in float32 in part, which takes half as long, and
        as long again for the solver's own vectors, which are not timed.
        """
        n = min(_ROWS, self.space.n_rows)
        folds = [np.arange(n)] * max(1, self.n_folds)
        loss = self.head.losses(None)(np.arange(n) % self.n_classes, 1.0, folds, np.float64)
        scores = np.zeros((n, loss.weights.shape[1], loss.n_outputs), np.float64)
        curvature = loss.curvature(scores)
        if self.is_dual:
            # Of the shape of the Gram matrix, which is not there yet.
            slab = HostMatrix(np.ones((n, self.space.n_rows), np.float64))
            right = np.ones((self.space.n_rows, self.n_columns), np.float64)
            return n, _timed(lambda: curvature.times(slab.times(right).reshape(scores.shape)))
        right = np.ones((self.space.n_features, self.n_columns), np.float64)

        def step() -> None:
            for _, block in islice(self.space.row_blocks(n, np.float64), 1):
                rows = HostMatrix(block)
                found = curvature.times(rows.times(right).reshape(scores.shape))
                rows.pull(found.reshape(n, -1))

        # From the disk, the first read is the true one.
        return n, _timed(step, min if self.space.pool.is_in_memory else max)


def gram_seconds(space: RowSpace) -> float:
    """Time for the Gram matrix of these rows, from a part of it."""
    n, d = min(_ROWS, space.n_rows), min(_COLUMNS, space.n_features)
    part = np.asarray(space.pool.X[space.index[:n]])[:, :d]
    seconds = _timed(lambda: space.pool.gram_of(n, lambda: iter([part]), space.scaling))
    return seconds * (space.n_rows / n) ** 2 * (space.n_features / d)


def _timed(work: Callable[[], object], choose: Callable[[Sequence[float]], float] = min) -> float:
    """Seconds of one of a few runs: of the first one, caches are cold."""
    found = []
    for _ in range(_TIMES):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return choose(found)
