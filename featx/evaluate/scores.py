"""How good the predictions of a test split are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from featx.heads import Model
from featx.heads.base import labels_of
from featx.heads.scaling import Array

__all__ = [
    "ECE_BINS",
    "MEASURES",
    "Scores",
    "confusion_of",
    "expected_calibration_error",
    "has_confusion",
    "score",
]

ECE_BINS = 15
"""Bins of equal width, as in Guo et al."""

MEASURES = (
    *("acc1", "acc5", "recall", "macro_f1", "auroc", "average_precision", "log_loss", "ece"),
)
"""Columns of the table."""

_TOP = 5
_MOST_WRONG = 50
_CONFUSION, _CELLS = "confusion_matrix", "confusion_cells"


@dataclass(frozen=True)
class Scores:
    """Measures of one set of predictions, all but the losses between 0 and 1.

    Parameters
    ----------
    guess : ndarray of int64, shape (n_rows,)
        Predicted labels.
    acc1 : float
        Share of right answers.
    acc5 : float or None
        Share of rows whose class is among the five with the largest scores; None where there
        are five classes or fewer.
    recall : float
        Mean recall of the classes that were tested: balanced accuracy.
    macro_f1 : float
        Mean F1 of the classes that were tested or predicted.
    auroc, average_precision : float or None
        Area under the ROC curve, and average precision, of the decision scores of each class that
        was tested against the rest, averaged over these classes; of the second of two classes
        alone. None where one class was tested.
    log_loss : float or None
        Mean of -log p of the true class, in nats; None where the head gives no probabilities.
    ece : float or None
        See `expected_calibration_error`; None where the head gives no probabilities.
    detail : dict
        ``confusion_matrix`` (rows are true classes) or, where that is shorter,
        ``confusion_cells``, and for every class ``precision``, ``recall``, ``f1`` and
        ``support``; all plain lists. See `confusion_of`.
    """

    guess: NDArray[np.int64]
    acc1: float
    acc5: float | None
    recall: float
    macro_f1: float
    auroc: float | None
    average_precision: float | None
    log_loss: float | None
    ece: float | None
    detail: dict[str, Any] = field(repr=False)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is odd about the predictions, for the notes of a result."""
        only = np.unique(self.guess)
        n_tested = sum(n > 0 for n in self.detail["per_class"]["support"])
        if len(only) > 1 or n_tested < 2:
            return ()
        return (f"predicts one class for all test images: {self.detail['class_names'][only[0]]}",)

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of the table."""
        return {name: getattr(self, name) for name in MEASURES}


def score(
    truth: NDArray[np.int64], decisions: Array, model: Model, class_names: list[str]
) -> Scores:
    """Compare labels with what a model says of the rows."""
    guess = labels_of(decisions, model.classes_)
    labels = np.arange(len(class_names))
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, guess, labels=labels, zero_division=0
    )
    auroc, average_precision = _rankings(truth, decisions, model.classes_)
    probabilities = model.probabilities(decisions)
    log_loss, ece = _losses(truth, guess, probabilities, model.classes_)
    return Scores(
        guess=guess,
        acc1=float(accuracy_score(truth, guess)),
        acc5=_top_share(truth, decisions, model.classes_),
        recall=float(np.mean(recall[np.unique(truth)])),
        macro_f1=float(np.mean(f1[np.union1d(truth, guess)])),
        auroc=auroc,
        average_precision=average_precision,
        log_loss=log_loss,
        ece=ece,
        detail={
            "class_names": list(class_names),
            **_confusion(truth, guess, len(labels)),
            "per_class": {
                "precision": precision.tolist(),
                "recall": recall.tolist(),
                "f1": f1.tolist(),
                "support": support.tolist(),
            },
            **_confidences(truth != guess, decisions, probabilities),
        },
    )


def _confusion(
    truth: NDArray[np.int64], guess: NDArray[np.int64], n_classes: int
) -> dict[str, list[Any]]:
    """Count the pairs of true and guessed class: a matrix, or its cells, whichever is shorter.

    The number of test images decides, and no score: all fits of a question have one form.
    """
    cells, counts = np.unique(np.column_stack([truth, guess]), axis=0, return_counts=True)
    if 3 * len(truth) < n_classes**2:
        return {_CELLS: np.column_stack([cells, counts]).tolist()}
    return {_CONFUSION: coo_array((counts, cells.T), shape=(n_classes,) * 2).toarray().tolist()}


def confusion_of(detail: Mapping[str, Any]) -> coo_array:
    """Read the confusions of a record, (n_classes, n_classes): rows are true classes.

    ``confusion_cells`` holds (true class, guessed class, number of images), each pair once.
    """
    if _CONFUSION in detail:
        return coo_array(np.asarray(detail[_CONFUSION]))
    true, guessed, counts = np.array(detail[_CELLS]).T
    return coo_array((counts, (true, guessed)), shape=(len(detail["class_names"]),) * 2)


def has_confusion(detail: Mapping[str, Any]) -> bool:
    """Whether a record has the confusions of a fit; one that failed has none."""
    return _CONFUSION in detail or _CELLS in detail


def _top_share(
    truth: NDArray[np.int64], decisions: Array, classes: NDArray[np.int64]
) -> float | None:
    if len(classes) <= _TOP:
        return None
    # The first among equals, as in labels_of, so that acc5 is never below acc1.
    top = np.argsort(-decisions, axis=1, kind="stable")[:, :_TOP]
    return float((classes[top] == truth[:, None]).any(axis=1).mean())


def _rankings(
    truth: NDArray[np.int64], decisions: Array, classes: NDArray[np.int64]
) -> tuple[float | None, float | None]:
    tested = np.unique(truth)
    if len(tested) < 2:
        return None, None
    if len(classes) == 2:
        tested = classes[1:]
        second = decisions if decisions.ndim == 1 else decisions[:, 1] - decisions[:, 0]
        decisions = np.column_stack([-second, second])
    scores = np.zeros((len(truth), int(max(tested[-1], classes[-1])) + 1))  # 0 if never fitted
    scores[:, classes] = decisions
    areas = [_areas(truth == label, scores[:, label]) for label in tested]
    auroc, average_precision = np.mean(areas, axis=0).tolist()
    return auroc, average_precision


def _areas(is_class: NDArray[np.bool_], scores: Array) -> tuple[float, float]:
    """Area under the ROC curve, and average precision, of one class against the rest.

    The first is the share of pairs of a row of the class and one of the rest whose scores are in
    the right order, ties counting half. The second is the mean, over rows of the class, of the
    precision among rows that score as high or higher. Both are scikit-learn's; its functions take
    a millisecond a class for checks.
    """
    every, own = np.sort(scores), np.sort(scores[is_class])
    below, own_below = np.searchsorted(every, own), np.searchsorted(own, own)
    not_above = np.searchsorted(every, own, "right") - np.searchsorted(own, own, "right")
    n_rest = len(every) - len(own)
    area = float((below - own_below + not_above).mean() / 2 / n_rest)
    return area, float(((len(own) - own_below) / (len(every) - below)).mean())


def _confidences(
    is_wrong: NDArray[np.bool_], decisions: Array, probabilities: Array | None
) -> dict[str, Any]:
    """Sum up a calibration curve; name the test rows that are wrong with most confidence."""
    found: dict[str, Any] = {}
    if probabilities is not None:
        confidence = probabilities.max(axis=1)
        names = ("images", "right", "confidence")
        sums = _bins(~is_wrong, confidence)
        found["calibration"] = {k: v.tolist() for k, v in zip(names, sums, strict=True)}
    elif decisions.ndim == 1:
        confidence = np.abs(decisions)
    else:
        first, second = -np.partition(-decisions, 1, axis=1)[:, :2].T
        confidence = first - second
    rows = np.flatnonzero(is_wrong)
    rows = rows[np.argsort(-confidence[rows], kind="stable")[:_MOST_WRONG]]
    found["most_confident_wrong"] = {
        "confidence": "margin of the scores" if probabilities is None else "probability",
        "test_rows": [[int(row), float(confidence[row])] for row in rows],
    }
    return found


def _losses(
    truth: NDArray[np.int64],
    guess: NDArray[np.int64],
    probabilities: Array | None,
    classes: NDArray[np.int64],
) -> tuple[float | None, float | None]:
    if probabilities is None:
        return None, None
    ece = expected_calibration_error(guess == truth, probabilities.max(axis=1))
    return _log_loss(truth, probabilities, classes), ece


def _log_loss(truth: NDArray[np.int64], probabilities: Array, classes: NDArray[np.int64]) -> float:
    """Mean of -log p, with p cut off at the rounding error of 1 as in scikit-learn's log_loss.

    A class that was never fitted has the probability 0.
    """
    at = np.minimum(np.searchsorted(classes, truth), len(classes) - 1)
    p = np.where(classes[at] == truth, probabilities[np.arange(len(truth)), at], 0.0)
    eps = np.finfo(np.float64).eps
    return float(-np.log(np.clip(p, eps, 1 - eps)).mean())


def expected_calibration_error(is_right: NDArray[np.bool_], confidence: Array) -> float:
    r"""Mean distance of confidence from accuracy, over bins of equal confidence.

    ECE = sum over m of \|B_m\| / n \|acc(B_m) - conf(B_m)\|, where B_m are the rows whose
    confidence lies in ((m - 1) / M, m / M], with M = 15 (Guo, Pleiss, Sun and Weinberger, "On
    calibration of modern neural networks", ICML 2017, equations 2 to 5).
    """
    _, right, sure = _bins(is_right, confidence)
    # |B| / n |acc - conf| = |sum of right - sum of confidence| / n.
    return float(np.abs(right - sure).sum() / len(confidence))


def _bins(is_right: NDArray[np.bool_], confidence: Array) -> tuple[NDArray[Any], ...]:
    """Rows, right rows and the sum of confidence in each bin of confidence."""
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    right = np.bincount(bins, weights=is_right, minlength=ECE_BINS)
    sure = np.bincount(bins, weights=confidence, minlength=ECE_BINS)
    return np.bincount(bins, minlength=ECE_BINS).astype(np.float64), right, sure
