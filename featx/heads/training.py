"""What several heads do before and while they are fitted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from featx.errors import ProtocolError, UsageError
from featx.heads.base import FitOptions, row_blocks
from featx.heads.rowspace import RowSpace, require_memory
from featx.heads.scaling import Array

__all__ = [
    "Caught",
    "ToFeatures",
    "catch_warnings",
    "check_options",
    "codes_of",
    "rows_in_memory",
    "unit_axes",
]

ToFeatures = Callable[[Array], tuple[Array, Array]]
"""From weights of what a first layer saw to weights of the features, and a shift of its bias."""


def codes_of(y: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Classes, and the position of every row's label among them."""
    classes, codes = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ProtocolError(
            f"a classifier needs two classes or more, these rows have {len(classes)}"
        )
    return classes, codes


def check_options(name: str, options: FitOptions, *, has_weights: bool = False) -> None:
    """Raise a `UsageError` for options that a head cannot honour."""
    if options.class_weight is not None and not has_weights:
        raise UsageError(
            f"{name} cannot weight its classes: leave class_weight out, or take a linear head"
        )


def rows_in_memory(space: RowSpace, dtype: Any) -> NDArray[Any]:
    """Scaled rows, read and scaled by blocks."""
    shape = (space.n_rows, space.n_features)
    needed = shape[0] * shape[1] * np.dtype(dtype).itemsize
    require_memory(needed, f"{shape[0]:,} x {shape[1]:,} training rows")
    out = np.empty(shape, dtype)
    for rows in row_blocks(*shape):
        out[rows] = space.scaling.apply(space.pool.X[space.index[rows]])
    return out


def unit_axes(space: RowSpace) -> tuple[NDArray[np.float32], ToFeatures]:
    """Rows as a perceptron learns them best, whatever their offset and their scale."""
    rows, _ = space.centred
    size = float(np.sqrt(np.mean(rows**2))) if rows.size else 0.0
    if not size > 0:  # all rows are equal: what is learned is how frequent the classes are
        shape = space.n_features, 1
        return np.zeros((space.n_rows, 1), np.float32), lambda weights: (
            np.zeros(shape) @ weights,
            np.zeros(weights.shape[1]),
        )
    return (rows / size).astype(np.float32), lambda weights: space.from_centred(weights / size)


class Caught:
    """Warnings of a fit, as notes."""

    def __init__(self, found: list[warnings.WarningMessage]) -> None:
        self._found = found

    @property
    def notes(self) -> tuple[str, ...]:
        """Texts, each on one line and once."""
        texts = (" ".join(str(warning.message).split()) for warning in self._found)
        return tuple(dict.fromkeys(texts))

    @property
    def has_converged(self) -> bool:
        """Whether none of them is about convergence."""
        return not any(issubclass(w.category, ConvergenceWarning) for w in self._found)


@contextmanager
def catch_warnings() -> Iterator[Caught]:
    """Keep warnings for the notes of a result."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield Caught(found)
