"""The choice of a setting by cross-validation, for heads of a few values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featx.heads.base import CvCurve
from featx.heads.select import Folds, lone_note

__all__ = ["Choice", "choose"]


@dataclass(frozen=True)
class Choice:
    """A chosen value and how it was chosen."""

    value: float
    cv: CvCurve | None = None
    notes: tuple[str, ...] = ()


def choose(
    name: str,
    grid: Sequence[float],
    default: float,
    codes: NDArray[np.int64],
    folds: Folds,
    accuracies_of: Callable[[Folds], list[list[float]]],
) -> Choice:
    """Choose the value with the best mean accuracy, the first among equals.

    `accuracies_of` gives those of all values for each fold.
    """
    if len(grid) == 1:
        return Choice(grid[0])
    if not folds:
        why = "classes with one image, or one group, leave nothing out"
        return Choice(default, notes=(f"{name} not searched, {name}={default:g}: {why}",))
    accuracy = accuracies_of(folds)
    cv = CvCurve(tuple(float(value) for value in grid), tuple(zip(*accuracy, strict=True)), name)
    value = grid[cv.best]
    notes = f"{name}={value:g} by cross-validation", *lone_note(name, codes, folds)
    return Choice(value, cv, notes)
