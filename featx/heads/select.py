"""The penalty, chosen by cross-validation inside the subset and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from featx.heads.base import labels_of
from featx.heads.scaling import Array

__all__ = ["Folds", "fold_rows", "shares_right"]

Folds = list[tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Rows fitted and left out, fold by fold."""


def fold_rows(
    codes: NDArray[np.int64], folds: int, seed: int, groups: NDArray[np.int64] | None = None
) -> Folds:
    """Rows fitted and left out of every stratified fold.

    Parameters
    ----------
    codes : ndarray of int64, shape (n_rows,)
        Classes.
    folds : int
        Folds wanted; a class with fewer rows makes them fewer.
    seed : int
        Shuffles the rows.
    groups : ndarray of int64, shape (n_rows,), optional
        Rows of one group are kept together.

    Returns
    -------
    list of tuple of ndarray of int64
        Those of ``StratifiedKFold(shuffle=True, random_state=seed)``, with groups those of
        ``StratifiedGroupKFold`` that have every class among the rows fitted; empty where a
        class has a single row or group, or there is a single fold.
    """
    if groups is not None:
        return _group_folds(codes, folds, seed, groups)
    n_folds = min(folds, int(np.bincount(codes).min()))
    if n_folds < 2:
        return []
    splitter = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(codes)), codes))


def _group_folds(
    codes: NDArray[np.int64], folds: int, seed: int, groups: NDArray[np.int64]
) -> Folds:
    classes = np.unique(codes)
    n_folds = min(folds, *(len(np.unique(groups[codes == c])) for c in classes))
    if n_folds < 2:
        return []
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    found = splitter.split(np.zeros(len(codes)), codes, groups)
    return [(a, b) for a, b in found if len(b) and len(np.unique(codes[a])) == len(classes)]


def shares_right(scores: NDArray[Any], codes: NDArray[np.int64], folds: Folds) -> Array:
    """Accuracy of each fold on its left-out rows.

    Parameters
    ----------
    scores : ndarray, shape (n_rows, n_folds, n_outputs)
        Of each fold's fit, for all rows.
    codes : ndarray of int64, shape (n_rows,)
        Classes.
    folds : list of tuple of ndarray of int64
        As from `fold_rows`.

    Returns
    -------
    ndarray of float64, shape (n_folds,)
    """
    n_classes = max(scores.shape[2], 2)
    right = np.empty(len(folds))
    for fold, (_, left_out) in enumerate(folds):
        of_fold = scores[left_out, fold]
        flat = of_fold[:, 0] if scores.shape[2] == 1 else of_fold
        right[fold] = (labels_of(flat, np.arange(n_classes)) == codes[left_out]).mean()
    return right
