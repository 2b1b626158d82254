"""The outcome of one training: a fit like those of heads, and its curves."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featx.atomic import replace_text
from featx.errors import FeatxError
from featx.evaluate import FitResult
from featx.evaluate.question import Subset
from featx.evaluate.result import joined
from featx.evaluate.scores import score
from featx.heads.base import labels_of, softmax_of
from featx.heads.scaling import NONE, Array
from featx.train.plan import TrainPlan
from featx.train.question import TrainQuestion

__all__ = [
    "Scored",
    "TrainResult",
    "Trained",
    "remarks_of",
    "save_curves",
    "save_curves_plot",
    "to_fit",
]

_PACKAGES = ("featx", "torch", "numpy")
_SIZE_INCHES = (10.0, 4.2)
_NAMES = {"train": "training", "valid": "validation"}
_TITLES = {"loss": "loss", "acc": "accuracy"}


@dataclass(frozen=True)
class Trained:
    """What a training produced, except the weights."""

    curves: tuple[Mapping[str, Any], ...]  # one per epoch, as `NetworkClassifier.history`
    best_epoch: int  # of the weights that were kept, counted from 1
    has_stopped: bool  # early
    n_fitted: int  # images
    n_watching: int  # images of the validation part
    n_layers: int
    n_frozen: int  # layers
    n_parameters: int
    n_trainable: int  # parameters in the first epoch
    n_statistics: int  # running means and variances
    device: str

    @property
    def seconds(self) -> float:
        """Time of all epochs."""
        return float(sum(line["dur"] for line in self.curves))

    @property
    def seconds_per_epoch(self) -> float:
        """Median time of an epoch: a slow first epoch does not change it."""
        return float(np.median([line["dur"] for line in self.curves]))

    def record(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**asdict(self), "curves": [dict(line) for line in self.curves]}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Trained:
        """Read what `record` returned."""
        return cls(**{**record, "curves": tuple(record["curves"])})


@dataclass(frozen=True)
class TrainResult:
    """One training: a row of the table of results, and what only trainings have.

    Parameters
    ----------
    fit : FitResult
        The result, like that of a head; `featx compare` compares both.
    trained : Trained
        Curves, counts and times.
    checkpoint : Path or None
        File of the trained network, if it was asked for. It can be used as a backbone.
    is_known : bool
        Whether ``reports/`` had the answer already.
    """

    fit: FitResult
    trained: Trained
    checkpoint: Path | None = None
    is_known: bool = False

    @property
    def curves(self) -> tuple[Mapping[str, Any], ...]:
        """See `Trained`."""
        return self.trained.curves

    @property
    def n_layers(self) -> int:
        """Number of layers with parameters."""
        return self.trained.n_layers

    @property
    def n_parameters(self) -> int:
        """Number of parameters of the network."""
        return self.trained.n_parameters

    @property
    def seconds_per_epoch(self) -> float:
        """Median time of an epoch."""
        return self.trained.seconds_per_epoch


@dataclass(frozen=True)
class Logits:
    """Scores of a network, with the methods of a head that evaluation calls."""

    classes_: NDArray[np.int64]
    decisions: Array

    def decision_function(self, X: Any) -> Array:
        """Return the scores, which are known already."""
        del X
        return self.decisions

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return the labels of the largest scores."""
        return labels_of(self.decision_function(X), self.classes_)

    def probabilities(self, scores: Array) -> Array:
        """Compute the softmax."""
        return softmax_of(scores)


@dataclass(frozen=True)
class Scored:
    """Scores of a trained network."""

    decisions: Array
    train_acc1: float
    predict_seconds: float


def remarks_of(plan: TrainPlan, trained: Trained) -> list[str]:
    """Return sentences about options that had no effect."""
    n_epochs = len(trained.curves)
    if plan.unfreeze_after is None or n_epochs > plan.unfreeze_after:
        return []
    what = f"early stopping ended the training after {n_epochs} epochs"
    return [f"{what}, before --unfreeze-after {plan.unfreeze_after}: nothing was unfrozen"]


def to_fit(
    question: TrainQuestion, subset: Subset, trained: Trained, scored: Scored, extra: dict[str, Any]
) -> FitResult:
    """Make the result of a training, in the form of a head's."""
    pair = question.pair
    model = Logits(np.arange(len(question.class_names)), scored.decisions)
    scores = score(question.truth, scored.decisions, model, question.class_names)
    return FitResult(
        **question.names(),
        scale=NONE,
        class_weight=None,
        per_class=str(subset.per_class),
        repeat=subset.repeat,
        seed=subset.seed,
        C=None,
        cv_accuracy=None,
        train_acc1=scored.train_acc1,
        **scores.columns,
        n_train=len(subset.rows),
        n_test=len(question.test_rows),
        fit_seconds=trained.seconds,
        predict_seconds=scored.predict_seconds,
        n_iter=len(trained.curves),
        converged=trained.has_stopped or not question.plan.patience,
        notes=joined([*question.remarks, *remarks_of(question.plan, trained), *scores.remarks]),
        train_fingerprint=pair.train.fingerprint,
        test_fingerprint=pair.test.fingerprint,
        subset_sha256=subset.sha256,
        featx_version=version("featx"),
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        fit_id=question.fit_id(subset),
        detail={
            "predictions": scores.guess.tolist(),
            **scores.detail,
            **question.record(subset),
            **question.asked(question.head, subset),
            "train_acc1_is": "TRAINING score: accuracy on the rows that the network was fitted on",
            "trained": trained.record(),
            **extra,
            "versions": {
                "python": platform.python_version(),
                **{package: version(package) for package in _PACKAGES},
            },
        },
    )


def save_curves(curves: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write one line per epoch."""
    frame = pd.DataFrame(list(curves)).rename(columns={"dur": "seconds"})
    replace_text(path, frame.to_csv(index=False))


def save_curves_plot(curves: Sequence[Mapping[str, Any]], best_epoch: int, path: Path) -> None:
    """Draw loss and accuracy of the training part and of the validation part."""
    from matplotlib.figure import Figure

    frame = pd.DataFrame(list(curves))
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    for axes, (kind, title) in zip(figure.subplots(1, 2), _TITLES.items(), strict=True):
        for part, name in _NAMES.items():
            if f"{part}_{kind}" in frame:
                axes.plot(frame["epoch"], frame[f"{part}_{kind}"], label=name)
        axes.axvline(best_epoch, color="grey", linestyle=":", label="weights kept")
        axes.set_xlabel("epoch")
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    try:
        figure.savefig(path)
    except OSError as error:
        raise FeatxError(f"cannot write {path}: {error.strerror or error}") from error
