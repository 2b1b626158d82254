"""The outcome of one fit: a row of the table, and the detail behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from featx.evaluate.intervals import share_interval
from featx.records import RecordError

__all__ = [
    "COLUMNS",
    "KEY_COLUMNS",
    "NEW_COLUMNS",
    "QUESTION_COLUMNS",
    "FitResult",
    "joined",
]

_BETWEEN = "; "

_NAMES = (
    *("data", "backbone", "weights", "layer", "pool", "input_size", "precision"),
    *("clf", "scale", "class_weight", "per_class"),
)
_ASKED = (
    *("C_asked", "folds", "holdout", "holdout_seed", "on_leak", "near", "groups", "first_seed"),
    "test_images",
)
KEY_COLUMNS = ("fit_id", *_NAMES, *_ASKED)
"""Columns of the table that say which fit a row is, and what it was asked for as."""

QUESTION_COLUMNS = (
    *_NAMES,
    *("n_features", "n_test", "train_fingerprint", "test_fingerprint"),
    *_ASKED,
    "question",
)
"""Columns of the table in which the draws of one question agree."""


def joined(notes: Iterable[str]) -> str:
    """Write notes as one text that can be taken apart again at semicolons."""
    return _BETWEEN.join(" ".join(note.replace(";", ":").split()) for note in notes)


@dataclass(frozen=True)
class FitResult:
    """One head, fitted on one subset and scored once.

    The fields but `detail` are columns of ``results.csv``, in that order; `row` has more.

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
    auroc, average_precision : float or None
        Areas under the curves of each class against the rest: see `Scores`. None in fits of an
        older featx too.
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
    auroc: float | None = field(default=None, kw_only=True)
    average_precision: float | None = field(default=None, kw_only=True)
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
    fit_id: str
    detail: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Names of folders need not be text, as tables must be.
        for name in ("data", "weights", "notes"):
            if isinstance(text := getattr(self, name), str):
                text = text.encode("utf-8", "backslashreplace").decode()
                object.__setattr__(self, name, text)

    @property
    def error(self) -> str:
        """Why the fit failed; empty where it did not. A fit that failed answers nothing."""
        return str(self.detail.get("error", ""))

    def row(self) -> dict[str, Any]:
        """Columns of the table: the fields, the interval of `acc1`, and what was asked.

        Returns
        -------
        dict
            ``acc1_low`` and ``acc1_high`` are the ends of the 95 % interval of one accuracy over
            test images (Wilson). What made no difference is None: a held-out share where there is
            a test split, leaks that were not dropped.
        """
        ends = (None, None) if self.acc1 is None else share_interval(self.acc1, self.n_test)
        return {
            **{name: getattr(self, name) for name in _FIELDS},
            **dict(zip(("acc1_low", "acc1_high"), ends, strict=True)),
            **self._asked(),
            "question": self.detail.get("question", ""),
            "train_images": self.detail.get("train_images_sha256", ""),
            "error": self.detail.get("error", ""),
        }

    def _asked(self) -> dict[str, Any]:
        settings, groups = self.detail.get("settings", {}), self.detail.get("groups")
        is_holdout = self.detail.get("is_holdout", False)
        has_dropped = settings.get("on_leak") == "drop" and self.detail.get("leaks", {}).get(
            "n_pairs"
        )
        penalty = settings.get("C")
        return {
            "C_asked": "searched" if penalty is None else repr(penalty).removesuffix(".0"),
            "folds": settings.get("folds"),
            "holdout": settings.get("holdout") if is_holdout else None,
            "holdout_seed": settings.get("holdout_seed") if is_holdout else None,
            "on_leak": "drop" if has_dropped else None,
            "near": str(settings.get("near")) if has_dropped else None,
            "groups": f"{groups['column']} {groups['sha256'][:8]}" if groups else None,
            "first_seed": settings.get("seed"),
            "test_images": self.detail.get("test_images_sha256", ""),
        }

    @property
    def key(self) -> tuple[object, ...]:
        """What a folder of results has once: a fit, under one set of names and settings."""
        row = self.row()
        return tuple(row[name] for name in KEY_COLUMNS)

    def record(self) -> dict[str, Any]:
        """Everything as plain values, for the fit's JSON."""
        return {"fit": {name: getattr(self, name) for name in _FIELDS}, **self.detail}

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
            If the columns are neither today's nor an older featx's, or a value is of another type.
        """
        row = record.get("fit")
        if not isinstance(row, dict) or tuple(row) not in (_FIELDS, _OLDER_FIELDS):
            raise RecordError("it is a fit of another version of featx, with other columns")
        result = cls(**row, detail={key: value for key, value in record.items() if key != "fit"})
        try:
            _check_types(result)
        except (AttributeError, KeyError, TypeError) as error:
            raise RecordError(f"it is no fit of featx: {error}") from error
        return result


_FIELDS = tuple(item.name for item in fields(FitResult) if item.name != "detail")
NEW_COLUMNS = ("auroc", "average_precision")
"""Columns that fits of an older featx do not have."""
_OLDER_FIELDS = tuple(name for name in _FIELDS if name not in NEW_COLUMNS)
COLUMNS = (*_FIELDS, "acc1_low", "acc1_high", *_ASKED, "question", "train_images", "error")
"""Columns of ``results.csv``."""

_HINTS = {name: hint for name, hint in get_type_hints(FitResult).items() if name in _FIELDS}
# JSON writes 1.0 as a float, and other programs as 1.
_TYPES = {name: hint | int if isinstance(0.0, hint) else hint for name, hint in _HINTS.items()}


def _check_types(result: FitResult) -> None:
    """Refuse what another program may have written, before it is in a table."""
    for name, hint in _TYPES.items():
        if not isinstance(getattr(result, name), hint):
            raise TypeError(f"{name} is {getattr(result, name)!r}")
    hash(result.key)
    kept = [result.detail[name] for name in ("predictions", "test_labels") if name in result.detail]
    if any(not isinstance(part, list) or len(part) != result.n_test for part in kept):
        raise TypeError(f"it has no prediction for each of {result.n_test} test images")
