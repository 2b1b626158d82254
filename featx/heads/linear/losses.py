"""The losses of the linear heads, over many problems at once.

Arrays of scores have the shape (n_rows, n_problems, n_outputs): a problem is one
choice of penalty, fold and, for one-versus-rest heads, class.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["Curvature", "Logistic", "Loss", "SquaredHinge", "SquaredLoss"]

# float32 or float64, as the solver works.
Floats = NDArray[Any]
ALL_ROWS = slice(None)


class Curvature(Protocol):
    """Second derivatives of a loss by the scores: a symmetric matrix for each row and problem."""

    def times(self, v: Floats, rows: slice = ALL_ROWS) -> Floats:
        """Product with the scores of some rows, or with one vector for them all.

        The shape is (n, n_problems, n_outputs), or (1, n_problems, n_outputs).
        """

    def total(self) -> Floats:
        """Sum over rows, (n_problems, n_outputs, n_outputs)."""


class Loss(Protocol):
    """A convex loss of scores."""

    @property
    def weights(self) -> Floats:
        """Penalty of each row: (n_rows, n_problems, 1), 0 for rows left out."""

    @property
    def typical_curvature(self) -> float:
        """Second derivative by a score to be expected, for preconditioning."""

    @property
    def n_outputs(self) -> int:
        """Scores of a row and problem."""

    def slopes(self, scores: Floats) -> Floats:
        """First derivatives by the scores, same shape."""

    def curvature(self, scores: Floats) -> Curvature:
        """Second derivatives by the scores."""

    def keep(self, problems: NDArray[Any]) -> Loss:
        """Drop all other problems."""


@dataclass(frozen=True)
class Diagonal:
    """Second derivatives of a loss with one output."""

    values: Floats

    def times(self, v: Floats, rows: slice = ALL_ROWS) -> Floats:
        """Product with the scores of some rows."""
        return np.asarray(self.values[rows] * v)

    def total(self) -> Floats:
        """Sum over rows, (n_problems, 1, 1)."""
        return np.asarray(self.values.sum(axis=0)[:, :, None])


@dataclass(frozen=True)
class SquaredLoss:
    """(y - f)², the loss of RidgeClassifier, one output a problem."""

    signs: Floats
    weights: Floats
    typical_curvature: float = 2.0
    n_outputs: int = 1

    def slopes(self, scores: Floats) -> Floats:
        """First derivatives by the scores, same shape."""
        return self.curvature(scores).times(scores - self.signs)

    def curvature(self, scores: Floats) -> Diagonal:
        """Twice the weight."""
        del scores
        return Diagonal(2 * self.weights)

    def keep(self, problems: NDArray[Any]) -> Self:
        """Drop all other problems."""
        return replace(self, signs=self.signs[:, problems], weights=self.weights[:, problems])


@dataclass(frozen=True)
class SquaredHinge(SquaredLoss):
    """max(0, 1 - y·f)², the loss of LinearSVC: the squared error of the rows inside the margin."""

    def curvature(self, scores: Floats) -> Diagonal:
        """Twice the weight inside the margin, 0 outside."""
        return Diagonal(2 * self.weights * (self.signs * scores < 1))


@dataclass(frozen=True)
class Logistic:
    """Cross-entropy of the softmax of the scores, the loss of LogisticRegression.

    With a single output, the second class's score is the constant 0: binary
    logistic regression as scikit-learn parametrises it.
    """

    targets: Floats
    weights: Floats

    @property
    def n_outputs(self) -> int:
        """Classes, or 1 for two."""
        return int(self.targets.shape[2])

    @property
    def typical_curvature(self) -> float:
        """p(1 - p) of uniform probabilities."""
        n_classes = max(self.n_outputs, 2)
        return (1.0 - 1.0 / n_classes) / float(n_classes)

    def slopes(self, scores: Floats) -> Floats:
        """First derivatives by the scores, same shape."""
        p = _probabilities(scores)
        p -= self.targets
        p *= self.weights
        return p

    def curvature(self, scores: Floats) -> Diagonal | _Softmax:
        """Weight times diag(p) - p pᵀ."""
        p = _probabilities(scores)
        if self.n_outputs == 1:
            return Diagonal(self.weights * p * (1 - p))
        return _Softmax(p, self.weights)

    def keep(self, problems: NDArray[Any]) -> Logistic:
        """Drop all other problems."""
        return Logistic(self.targets, self.weights[:, problems])


@dataclass(frozen=True)
class _Softmax:
    p: Floats
    weights: Floats

    def times(self, v: Floats, rows: slice = ALL_ROWS) -> Floats:
        p = self.p[rows]
        out = p * v
        out -= p * _total(out)[..., None]
        out *= self.weights[rows]
        return np.asarray(out)

    def total(self) -> Floats:
        weighted = self.p * self.weights
        by_problem = weighted.transpose(1, 2, 0), self.p.transpose(1, 0, 2)
        out = -np.matmul(*by_problem)
        k = np.arange(out.shape[1])
        out[:, k, k] += weighted.sum(axis=0)
        return np.asarray(out)


def _probabilities(scores: Floats) -> Floats:
    top = _largest(scores)[..., None]
    if scores.shape[2] == 1:
        top = np.maximum(top, 0)
    p = np.subtract(scores, top)
    np.exp(p, out=p)
    total = _total(p)[..., None]
    if scores.shape[2] == 1:
        total += np.exp(-top)
    p /= total
    return np.asarray(p)


# NumPy reduces a short last axis slowly; these give the same, two to eight times faster.
_SHORT = 32


def _total(values: Floats) -> Floats:
    """Sum over outputs: (n, p, k) -> (n, p)."""
    n, p, k = values.shape
    return np.asarray(values.reshape(n * p, k) @ np.ones(k, values.dtype)).reshape(n, p)


def _largest(values: Floats) -> Floats:
    """Maximum over outputs: (n, p, k) -> (n, p)."""
    if values.shape[2] > _SHORT:
        return np.asarray(values.max(axis=2))
    top = values[..., 0].copy()
    for output in range(1, values.shape[2]):
        np.maximum(top, values[..., output], out=top)
    return np.asarray(top)
