"""The penalty, chosen by cross-validation inside the subset and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from featx.heads.base import labels_of

__all__ = ["Folds", "fold_rows", "has_lone_classes", "lone_note", "share_right"]

Folds = list[tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Rows fitted and left out, fold by fold."""


def fold_rows(
    codes: NDArray[np.int64], folds: int, seed: int, groups: NDArray[np.int64] | None = None
) -> Folds:
    """Rows fitted and left out of every stratified fold.

    A class with a single row, or group, is fitted in every fold and never left out.
    """
    units = np.arange(len(codes)) if groups is None else groups
    rows = np.flatnonzero(_may_leave(codes, units))
    n_units = _units_of_classes(codes[rows], units[rows])
    if len(n_units) < 2 or (n_folds := min(folds, *n_units.values())) < 2:
        return []
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = kind(n_folds, shuffle=True, random_state=seed)
    some = None if groups is None else groups[rows]
    splits = splitter.split(np.zeros(len(rows)), codes[rows], some)
    both = ((np.delete(np.arange(len(codes)), rows[b]), rows[b]) for _, b in splits)
    n_classes = len(np.unique(codes))
    return [(a, b) for a, b in both if len(b) and len(np.unique(codes[a])) == n_classes]


def has_lone_classes(codes: NDArray[np.int64], groups: NDArray[np.int64] | None) -> bool:
    """Whether folds leave out rows of some classes, and of others none."""
    units = np.arange(len(codes)) if groups is None else groups
    may_leave = _may_leave(codes, units)
    return bool(may_leave.any() and not may_leave.all())


def lone_note(what: str, codes: NDArray[np.int64], folds: Folds) -> tuple[str, ...]:
    """Say of what is chosen that some classes have no say in it, if that is so."""
    n_classes = len(np.unique(codes))
    n_judged = len(np.unique(np.concatenate([codes[left_out] for _, left_out in folds])))
    if n_judged == n_classes:
        return ()
    return (f"{what} judged on {n_judged} of {n_classes} classes: others have too few images",)


def _may_leave(codes: NDArray[np.int64], units: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Rows without which every class still has another unit: a row, or a group."""
    may_leave = np.ones(len(codes), dtype=bool)
    while True:
        n_units = _units_of_classes(codes[may_leave], units[may_leave])
        lone = [code for code, n in n_units.items() if n < 2]
        if not lone:
            return may_leave if len(n_units) > 1 else np.zeros_like(may_leave)
        # Its whole group stays, which may leave another class with one.
        may_leave &= ~np.isin(units, units[np.isin(codes, lone)])


def _units_of_classes(codes: NDArray[np.int64], units: NDArray[np.int64]) -> dict[int, int]:
    pairs = np.unique(np.column_stack([codes, units]), axis=0)
    classes, counts = np.unique(pairs[:, 0], return_counts=True)
    return dict(zip(classes.tolist(), counts.tolist(), strict=True))


def share_right(scores: NDArray[Any], codes: NDArray[np.int64]) -> float:
    """Accuracy of scores, (n_rows, n_outputs)."""
    n_outputs = scores.shape[1]
    flat = scores[:, 0] if n_outputs == 1 else scores
    return float((labels_of(flat, np.arange(max(n_outputs, 2))) == codes).mean())
