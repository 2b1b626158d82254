"""The penalty, chosen by cross-validation inside the subset and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from featx.heads.base import CvCurve, labels_of
from featx.heads.scaling import Array

__all__ = ["cross_validate", "curve", "fold_rows"]

_WORK_BYTES = 1 << 30
_SOLVER_ARRAYS = 16


def fold_rows(
    codes: NDArray[np.int64], folds: int, seed: int, groups: NDArray[np.int64] | None = None
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
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
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    classes = np.unique(codes)
    n_folds = min(folds, *(len(np.unique(groups[codes == c])) for c in classes))
    if n_folds < 2:
        return []
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    found = splitter.split(np.zeros(len(codes)), codes, groups)
    return [(a, b) for a, b in found if len(b) and len(np.unique(codes[a])) == len(classes)]


def cross_validate(
    codes: NDArray[np.int64],
    grid: Array,
    folds: list[tuple[NDArray[np.int64], NDArray[np.int64]]],
    scores_of: Callable[[Array], Array],
) -> list[list[float]]:
    """Accuracy of every penalty on every fold.

    Parameters
    ----------
    codes : ndarray of int64, shape (n_rows,)
        Classes.
    grid : ndarray of float64, shape (n_penalties,)
        Penalties.
    folds : list of tuple of ndarray of int64
        As from `fold_rows`.
    scores_of : callable
        From weights (n_rows, n_problems) to scores (n_rows, n_problems, n_outputs), the
        weight 0 leaving a row out of the fit.

    Returns
    -------
    list of list of float, shape (n_penalties, n_folds)
    """
    combos = [(c, fold) for c in range(len(grid)) for fold in range(len(folds))]
    n_classes = int(codes.max()) + 1
    batch = max(1, _WORK_BYTES // (8 * _SOLVER_ARRAYS * len(codes) * n_classes))
    accuracy = np.zeros((len(grid), len(folds)))
    for start in range(0, len(combos), batch):
        part = combos[start : start + batch]
        weights = np.zeros((len(codes), len(part)))
        for column, (c, fold) in enumerate(part):
            weights[folds[fold][0], column] = grid[c]
        scores = scores_of(weights)
        for column, (c, fold) in enumerate(part):
            left_out = folds[fold][1]
            guess = _codes_of(scores[left_out, column])
            accuracy[c, fold] = (guess == codes[left_out]).mean()
    return [[float(value) for value in row] for row in accuracy]


def curve(grid: Array, accuracy: list[list[float]]) -> CvCurve:
    """Pack the result of `cross_validate`, with penalties of the raw features."""
    return CvCurve(tuple(float(c) for c in grid), tuple(tuple(row) for row in accuracy))


def _codes_of(scores: Array) -> NDArray[np.int64]:
    n_classes = max(scores.shape[1], 2)
    return labels_of(scores[:, 0] if scores.shape[1] == 1 else scores, np.arange(n_classes))
