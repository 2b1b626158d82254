"""The two smooth losses of the linear heads, over many problems at once.

Arrays of scores have the shape (n_rows, n_problems, n_outputs): a problem is one
choice of penalty, fold and, for one-versus-rest heads, class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from featx.heads.scaling import Array

__all__ = ["Logistic", "Loss", "SquaredHinge"]


class Loss(Protocol):
    """A convex loss of scores, with what Newton's method on a line needs."""

    @property
    def weights(self) -> Array:
        """Penalty of each row: (n_rows, n_problems, 1), 0 for rows left out."""

    @property
    def typical_curvature(self) -> float:
        """Second derivative by a score to be expected, for preconditioning."""

    def slopes(self, scores: Array) -> Array:
        """First derivatives by the scores, same shape."""

    def slope_and_curvature(self, scores: Array, step: Array) -> tuple[Array, Array]:
        """First and second derivatives along `step`, summed over outputs: (n_rows, n_problems)."""

    def keep(self, problems: NDArray[np.bool_]) -> Loss:
        """Drop all other problems."""


@dataclass(frozen=True)
class SquaredHinge:
    """max(0, 1 - y·f)², the loss of LinearSVC, one output a problem.

    Parameters
    ----------
    signs : ndarray of float64, shape (n_rows, n_problems, 1)
        +1 where the row is of the problem's class, -1 elsewhere.
    weights : ndarray of float64, shape (n_rows, n_problems, 1)
        The penalty times 1 for rows that are fitted, 0 for rows left out.
    """

    signs: Array
    weights: Array
    typical_curvature: float = 1.0

    def slopes(self, scores: Array) -> Array:
        """First derivatives by the scores, same shape."""
        gap = self.signs * scores
        np.subtract(1.0, gap, out=gap)
        np.maximum(gap, 0.0, out=gap)
        gap *= self.signs
        gap *= self.weights
        gap *= -2.0
        return gap

    def slope_and_curvature(self, scores: Array, step: Array) -> tuple[Array, Array]:
        """First and second derivatives along `step`: (n_rows, n_problems)."""
        gap = 1.0 - self.signs * scores
        weighted = self.weights * step
        slope = -2.0 * np.maximum(gap, 0.0) * self.signs * weighted
        curvature = 2.0 * (gap > 0) * weighted * step
        return slope[..., 0], curvature[..., 0]

    def keep(self, problems: NDArray[np.bool_]) -> SquaredHinge:
        """Drop all other problems."""
        return SquaredHinge(self.signs[:, problems], self.weights[:, problems])


@dataclass(frozen=True)
class Logistic:
    """Cross-entropy of the softmax of the scores, the loss of LogisticRegression.

    With a single output, the second class's score is the constant 0: binary
    logistic regression as scikit-learn parametrises it.

    Parameters
    ----------
    targets : ndarray of float64, shape (n_rows, 1, n_outputs)
        1 in the column of the row's class, 0 elsewhere.
    weights : ndarray of float64, shape (n_rows, n_problems, 1)
        The penalty times 1 for rows that are fitted, 0 for rows left out.
    """

    targets: Array
    weights: Array

    @property
    def typical_curvature(self) -> float:
        """p(1 - p) of uniform probabilities."""
        n_classes = max(int(self.targets.shape[2]), 2)
        return (1.0 - 1.0 / n_classes) / float(n_classes)

    def _probabilities(self, scores: Array) -> Array:
        top = _largest(scores)[..., None]
        if scores.shape[2] == 1:
            top = np.maximum(top, 0.0)
        p: Array = np.subtract(scores, top)
        np.exp(p, out=p)
        total = _total(p)[..., None]
        if scores.shape[2] == 1:
            total += np.exp(-top)
        p /= total
        return p

    def slopes(self, scores: Array) -> Array:
        """First derivatives by the scores, same shape."""
        p = self._probabilities(scores)
        p -= self.targets
        p *= self.weights
        return p

    def slope_and_curvature(self, scores: Array, step: Array) -> tuple[Array, Array]:
        """First and second derivatives along `step`: (n_rows, n_problems)."""
        p = self._probabilities(scores)
        p_step = p * step
        mean = _total(p_step)
        second = np.einsum("npk,npk->np", p_step, step) - mean**2
        first = mean - np.einsum("nqk,npk->np", self.targets, step)
        weights = self.weights[..., 0]
        return first * weights, second * weights

    def keep(self, problems: NDArray[np.bool_]) -> Logistic:
        """Drop all other problems."""
        return Logistic(self.targets, self.weights[:, problems])


# NumPy reduces a short last axis slowly; these give the same, two to eight times faster.
_SHORT = 32


def _total(values: Array) -> Array:
    """Sum over outputs: (n, p, k) -> (n, p)."""
    n, p, k = values.shape
    return np.asarray(values.reshape(n * p, k) @ np.ones(k)).reshape(n, p)


def _largest(values: Array) -> Array:
    """Maximum over outputs: (n, p, k) -> (n, p)."""
    if values.shape[2] > _SHORT:
        return np.asarray(values.max(axis=2))
    top: Array = values[..., 0].copy()
    for output in range(1, values.shape[2]):
        np.maximum(top, values[..., output], out=top)
    return top
