"""The outcome of one fit: a row of the table, and the detail behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["COLUMNS", "FitResult"]


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
    acc1, macro_f1 : float
        On the test rows, between 0 and 1.
    n_train, n_test : int
        Rows.
    fit_seconds : float
        Cross-validation and final fit, without reading rows and their Gram matrix.
    predict_seconds : float
        Reading and scoring the test rows.
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
    acc1: float
    macro_f1: float
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

    def row(self) -> dict[str, Any]:
        """Columns of the table."""
        return {name: getattr(self, name) for name in COLUMNS}


COLUMNS = tuple(item.name for item in fields(FitResult) if item.name != "detail")
