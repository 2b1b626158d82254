"""Results for experiment trackers: MLflow, TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from featx.errors import MissingExtraError
from featx.evaluate import FitResult
from featx.evaluate.scores import MEASURES
from featx.progress import SILENT, Reporter

__all__ = ["TRACKERS", "track"]

_PROJECT = "featx"
_SETTINGS = (
    *("data", "backbone", "weights", "layer", "pool", "input_size", "precision", "n_features"),
    *("clf", "scale", "class_weight", "per_class", "repeat", "seed", "C", "n_train", "n_test"),
)
_MEASURES = ("acc1", *MEASURES, "train_acc1", "cv_accuracy", "fit_seconds", "predict_seconds")


def track(
    fits: Iterable[FitResult], tracker: str, folder: Path, reporter: Reporter = SILENT
) -> int:
    """Give fits to a tracker, each once, by its id; return how many are new there.

    Fits that failed have no measures and are left out. Where a tracker keeps its runs is its own
    affair: ``MLFLOW_TRACKING_URI``, ``WANDB_MODE`` and the like; TensorBoard's go to
    ``FOLDER/tensorboard``.
    """
    fits = [fit for fit in fits if not fit.error]
    log = TRACKERS[tracker](folder)
    n_new = 0
    with reporter.bar(len(fits), tracker, "fit") as bar:
        for fit in fits:
            values = {name: getattr(fit, name) for name in _MEASURES}
            measures = {name: float(value) for name, value in values.items() if value is not None}
            n_new += log(fit, {name: getattr(fit, name) for name in _SETTINGS}, measures)
            bar.update()
    return n_new


_Log = Callable[[FitResult, dict[str, Any], dict[str, float]], bool]


def _mlflow(folder: Path) -> _Log:
    mlflow = _import("mlflow", "mlflow")
    mlflow.set_experiment(_PROJECT)

    def log(fit: FitResult, settings: dict[str, Any], measures: dict[str, float]) -> bool:
        is_this = f"tags.fit_id = '{fit.fit_id}'"
        if mlflow.search_runs(filter_string=is_this, max_results=1, output_format="list"):
            return False
        with mlflow.start_run(run_name=_title(fit), tags={"fit_id": fit.fit_id}):
            mlflow.log_params(settings)
            mlflow.log_metrics(measures)
        return True

    return log


def _tensorboard(folder: Path) -> _Log:
    writer_of = _import("torch.utils.tensorboard", "tensorboard").SummaryWriter

    def log(fit: FitResult, settings: dict[str, Any], measures: dict[str, float]) -> bool:
        place = folder / "tensorboard" / fit.fit_id
        if place.exists():
            return False
        plain = {k: v if isinstance(v, int | float) else str(v) for k, v in settings.items()}
        with writer_of(str(place)) as writer:
            writer.add_hparams(plain, measures, run_name=".")
        return True

    return log


def _wandb(folder: Path) -> _Log:
    wandb = _import("wandb", "wandb")

    def log(fit: FitResult, settings: dict[str, Any], measures: dict[str, float]) -> bool:
        # The same id again continues the same run, with the same values.
        run = wandb.init(
            project=_PROJECT,
            id=fit.fit_id[:32],
            name=_title(fit),
            config=settings,
            resume="allow",
            dir=str(folder),
            reinit="finish_previous",
        )
        is_new = not run.resumed
        run.log(measures)
        run.finish()
        return is_new

    return log


TRACKERS: dict[str, Callable[[Path], _Log]] = {
    "mlflow": _mlflow,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
"""Names of ``--log``."""


def _title(fit: FitResult) -> str:
    return f"{fit.data} {fit.backbone} {fit.clf} {fit.per_class} per class, seed {fit.seed}"


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(extra, extra, f"--log {extra}") from error
