"""How the solver sees the rows: through their Gram matrix, in memory, or read in blocks.

A coefficient vector w is represented by n numbers a with w = X^T a where the Gram matrix
K = X X^T is used, and by itself elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featx.heads.device import Matrix

__all__ = ["Blocks", "Geometry", "GramGeometry", "Leading", "RowGeometry"]

Floats = NDArray[Any]


@dataclass(frozen=True)
class Leading:
    """Leading eigenpairs, or all, for preconditioning: any orthonormal vectors are allowed."""

    values: Floats
    vectors: Floats
    scores: Floats | None = None

    @property
    def is_whole(self) -> bool:
        """Whether these are all eigenpairs of X^T X."""
        return self.scores is None and len(self.values) == len(self.vectors)

    def precondition(
        self, g: Floats, g_scores: Floats | None, stiff: Floats
    ) -> tuple[Floats, Floats | None]:
        """(I + s X^T X)^-1 g by the leading eigenvectors, s by column, and its scores."""
        part = self.vectors.T @ g
        ratio = self.values[:, None] * stiff
        if self.is_whole:  # without the difference below, which loses digits where s is large
            return self.vectors @ (part / (1 + ratio)), None
        part *= ratio / (1 + ratio)
        z = g - self.vectors @ part
        if self.scores is None or g_scores is None:
            return z, None
        return z, g_scores - self.scores @ part


class Geometry(Protocol):
    """The rows, divided by the root of their mean squared norm, as the solver uses them.

    All matrices have one column for each problem and output.
    """

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of all arrays of the solver."""

    @property
    def n_rows(self) -> int:
        """Rows."""

    @property
    def n_numbers(self) -> int:
        """Numbers that represent one w."""

    @property
    def is_dual(self) -> bool:
        """Whether w is represented by numbers a."""

    @property
    def leading(self) -> Leading:
        """For preconditioning."""

    def scores(self, u: Floats) -> Floats:
        """Scores X w of represented w: (n_numbers, m) -> (n_rows, m)."""

    def adjoint(self, slopes: Floats) -> Floats:
        """Representation of X^T slopes: (n_rows, m) -> (n_numbers, m)."""

    def normal_product(
        self, u: Floats, middle: Callable[[Floats, slice], Floats]
    ) -> tuple[Floats, Floats]:
        """Scores s of u, and the representation of X^T middle(s), in one pass over the rows.

        ``middle`` gets consecutive rows of s, and which ones they are.
        """


@dataclass(frozen=True)
class GramGeometry:
    """Rows through their Gram matrix."""

    matrix: Matrix
    n_rows: int
    dtype: np.dtype[Any]
    leading: Leading
    is_centred: bool
    is_dual: bool = True

    @property
    def n_numbers(self) -> int:
        """One for each row."""
        return self.n_rows

    def scores(self, u: Floats) -> Floats:
        """K u."""
        return self.matrix.times(u)

    def adjoint(self, slopes: Floats) -> Floats:
        """Give the numbers themselves, without the part that means nothing."""
        return slopes - slopes.mean(axis=0) if self.is_centred else slopes

    def normal_product(
        self, u: Floats, middle: Callable[[Floats, slice], Floats]
    ) -> tuple[Floats, Floats]:
        """K u, and what `middle` makes of it."""
        scores = self.scores(u)
        return scores, self.adjoint(middle(scores, slice(None)))


Blocks = Callable[[], Iterator[tuple[slice, Matrix]]]
"""Gives consecutive rows, (n, n_features), and which ones they are, as often as it is called."""


@dataclass(frozen=True)
class RowGeometry:
    """The rows themselves, in memory or read in blocks, centred or not, with a constant or not."""

    blocks: Blocks
    n_rows: int
    n_features: int
    divisor: float
    leading: Leading
    dtype: np.dtype[Any]
    mean: Floats | None = None
    constant: float = 0.0
    is_dual: bool = False

    @property
    def n_numbers(self) -> int:
        """One for each feature, and one for the constant."""
        return self.n_features + (self.constant != 0)

    def scores(self, u: Floats) -> Floats:
        """X u."""
        w, shift = self._of_features(u)
        scores = np.empty((self.n_rows, u.shape[1]), self.dtype)
        for rows, block in self.blocks():
            scores[rows] = block.times(w) + shift
        return scores

    def adjoint(self, slopes: Floats) -> Floats:
        """X^T slopes."""
        out = np.zeros((self.n_numbers, slopes.shape[1]), self.dtype)
        for rows, block in self.blocks():
            self._add(out, block, slopes[rows])
        return self._finish(out, slopes.sum(axis=0))

    def normal_product(
        self, u: Floats, middle: Callable[[Floats, slice], Floats]
    ) -> tuple[Floats, Floats]:
        """X u, and X^T middle(X u)."""
        w, shift = self._of_features(u)
        scores = np.empty((self.n_rows, u.shape[1]), self.dtype)
        out = np.zeros((self.n_numbers, u.shape[1]), self.dtype)
        total = np.zeros(u.shape[1], self.dtype)
        for rows, block in self.blocks():
            scores[rows] = block.times(w) + shift
            slopes = middle(scores[rows], rows)
            self._add(out, block, slopes)
            total += slopes.sum(axis=0)
        return scores, self._finish(out, total)

    def _of_features(self, u: Floats) -> tuple[Floats, Floats]:
        """Coefficients of the features as they are stored, and the constant part of the scores."""
        w = u[: self.n_features]
        shift = self.constant * u[-1] if self.constant else np.zeros(u.shape[1], self.dtype)
        if self.mean is not None:
            shift = shift - self.mean @ w
        return w / self.dtype.type(self.divisor), shift

    def _add(self, out: Floats, block: Matrix, slopes: Floats) -> None:
        out[: self.n_features] += block.pull(slopes)

    def _finish(self, out: Floats, total: Floats) -> Floats:
        out[: self.n_features] /= self.dtype.type(self.divisor)
        if self.mean is not None:
            out[: self.n_features] -= self.mean[:, None] * total
        if self.constant:
            out[-1] = self.constant * total
        return out
