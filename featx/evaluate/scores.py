"""How good the predictions of a test split are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

__all__ = ["score"]


def score(
    truth: NDArray[np.int64], guess: NDArray[np.int64], class_names: list[str]
) -> tuple[float, float, dict[str, Any]]:
    """Compare labels with predictions.

    Parameters
    ----------
    truth, guess : ndarray of int64, shape (n_rows,)
        Labels.
    class_names : list of str
        By label.

    Returns
    -------
    acc1 : float
        Share of right answers.
    macro_f1 : float
        Mean F1 of the classes that were tested or predicted.
    detail : dict
        ``confusion_matrix`` (rows are true classes), and for every class ``precision``,
        ``recall``, ``f1`` and ``support``; all plain lists.
    """
    labels = np.arange(len(class_names))
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, guess, labels=labels, zero_division=0
    )
    occurring = np.union1d(truth, guess)
    detail = {
        "class_names": list(class_names),
        "confusion_matrix": confusion_matrix(truth, guess, labels=labels).tolist(),
        "per_class": {
            "precision": precision.tolist(),
            "recall": recall.tolist(),
            "f1": f1.tolist(),
            "support": support.tolist(),
        },
    }
    return float(accuracy_score(truth, guess)), float(np.mean(f1[occurring])), detail
