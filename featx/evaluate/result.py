"""The outcome of one fit: a row of the table, and the detail behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from featx.evaluate.records import RecordError

__all__ = ["COLUMNS", "FitResult", "joined"]

_BETWEEN = "; "


def joined(notes: Iterable[str]) -> str:
    """Write notes as one text that can be taken apart again at semicolons."""
    return _BETWEEN.join(" ".join(note.replace(";", ":").split()) for note in notes)


@dataclass(frozen=True)
class FitResult:
    """One head, fitted on one subset and scored once.

    The fields but `detail` are the columns of ``results.csv``, in that order.

    Parameters
    ----------
    data, backbone, weights, layer, pool, input_size, precision : str or int
        As recorded in the train cache.
    n_features : int
        Dimension.
    clf : str
        Head.
    scale : str
        Scaling of the features.
    class_weight : str or None
        Weights of the classes.
    per_class : str
        Labelled images of each class, or ``all``.
    repeat, seed : int
        Number and seed of the draw.
    C : float or None
        Penalty of the raw features.
    cv_accuracy : float or None
        Best mean of the cross-validation inside the subset.
    train_acc1 : float or None
        TRAINING score: accuracy on the very rows that were fitted on. Says how closely a head
        fits its subset, and nothing about new images.
    acc1 : float or None
        Accuracy on the test rows, between 0 and 1, as all that follows. None, as all measures
        are, where the fit failed: see `error`.
    acc5 : float or None
        Share whose class is among the five largest scores; None up to five classes.
    recall : float or None
        Mean of the recall of every class: balanced accuracy.
    macro_f1 : float or None
        Mean of the F1 of every class.
    log_loss, ece : float or None
        In nats, and expected calibration error; None where the head gives no probabilities.
    n_train, n_test : int
        Rows.
    fit_seconds : float
        Cross-validation and final fit, without reading rows and the Gram matrix that fits share.
        Fits that ran side by side shared the cores.
    predict_seconds : float
        Reading the test rows and their decision scores.
    n_iter : int
        Of the final fit.
    converged : bool
        Of the final fit.
    notes : str
        What a reader must know, joined by semicolons.
    train_fingerprint, test_fingerprint, subset_sha256 : str
        What was fitted and tested.
    featx_version, created : str
        Version, and time in UTC.
    fit_id : str
        Names what was fitted, on what, and how; equal for a repetition of the same fit.
    detail : mapping
        Everything else that the fit's JSON file holds.
    """

    data: str
    backbone: str
    weights: str
    layer: str
    pool: str
    input_size: int
    precision: str
    n_features: int
    clf: str
    scale: str
    class_weight: str | None
    per_class: str
    repeat: int
    seed: int
    C: float | None
    cv_accuracy: float | None
    train_acc1: float | None
    acc1: float | None
    acc5: float | None
    recall: float | None
    macro_f1: float | None
    log_loss: float | None
    ece: float | None
    n_train: int
    n_test: int
    fit_seconds: float
    predict_seconds: float
    n_iter: int
    converged: bool
    notes: str
    train_fingerprint: str
    test_fingerprint: str
    subset_sha256: str
    featx_version: str
    created: str
    # Last, so that a row torn by a crash lacks it and is recognised.
    fit_id: str
    detail: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Names of folders need not be text, as tables must be.
        for name in ("data", "weights", "notes"):
            text = str(getattr(self, name)).encode("utf-8", "backslashreplace").decode()
            object.__setattr__(self, name, text)

    @property
    def error(self) -> str:
        """Why the fit failed; empty where it did not. A fit that failed answers nothing."""
        return str(self.detail.get("error", ""))

    def row(self) -> dict[str, Any]:
        """Columns of the table."""
        return {name: getattr(self, name) for name in COLUMNS}

    def record(self) -> dict[str, Any]:
        """Everything as plain values, for the fit's JSON."""
        return {"fit": self.row(), **self.detail}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> FitResult:
        """Rebuild a result from what `record` gave.

        Parameters
        ----------
        record : mapping
            Plain values.

        Returns
        -------
        FitResult

        Raises
        ------
        RecordError
            If the columns are others than today's.
        """
        row = record.get("fit")
        if not isinstance(row, dict) or tuple(row) != COLUMNS:
            raise RecordError("it is a fit of another version of featx, with other columns")
        return cls(**row, detail={key: value for key, value in record.items() if key != "fit"})


COLUMNS = tuple(item.name for item in fields(FitResult) if item.name != "detail")
