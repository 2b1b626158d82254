"""Train a network on every subset of a question, and score each training once."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from featx.atomic import replace_text
from featx.backbones import TrainedRecord, save_trained
from featx.backbones.trained import read_contents
from featx.engines import resolve_device, resolve_precision
from featx.errors import WeightsError
from featx.evaluate import FitResult, ResultsFolder
from featx.evaluate.question import Subset
from featx.memory import available_bytes
from featx.networks import count
from featx.progress import SILENT, Bar, Reporter
from featx.records import ENDING
from featx.stops import check, heard
from featx.train.checkpoint import Checkpoint
from featx.train.classifier import Callback, NetworkClassifier
from featx.train.images import Decoder
from featx.train.plan import TrainPlan
from featx.train.question import (
    TrainQuestion,
    check_frozen,
    check_network,
    open_recipe,
    open_sources,
)
from featx.train.result import (
    Scored,
    Trained,
    TrainResult,
    remarks_of,
    save_curves,
    save_curves_plot,
    to_fit,
)
from featx.train.search import Found, search_settings

__all__ = ["run_train"]

_SHARE_OF_MEMORY = 0.5


def run_train(
    plan: TrainPlan, reporter: Reporter = SILENT, tell: Callable[[str], object] = print
) -> list[TrainResult]:
    """Train and score, once for each size of subset and each draw.

    Parameters
    ----------
    plan : TrainPlan
        What to do.
    reporter : Reporter
        Shows progress, notices and warnings.
    tell : callable, default=print
        Is called with one line of text about each training.

    Returns
    -------
    list of TrainResult
        By draw, then by size. A training whose answer is in the folder of results is not done
        again; one that was interrupted continues after its last complete epoch.

    Raises
    ------
    FeatxError
        Of any kind, from wrong names to a loss that is no longer finite.
    """
    with heard():
        check_network(plan)
        device = resolve_device(plan.device)
        precision, why = resolve_precision(plan.precision, device)
        reporter.say(f"device {device}, precision {precision} ({why})")
        sources = open_sources(plan, reporter)
        recipe = open_recipe(plan, list(sources.values()), reporter)
        check_frozen(plan, recipe)
        reporter.say(f"preprocessing: {recipe.preprocessing.describe()}")
        decoder = Decoder(recipe.preprocessing, _workers(plan, device), _most_bytes(plan), reporter)
        question = TrainQuestion(plan, sources, recipe, decoder, precision)
        job = _Job(question, device, ResultsFolder(plan.reports_dir, reporter), reporter, tell)
        return [job.answer(subset) for subset in question.subsets]


def _workers(plan: TrainPlan, device: torch.device) -> int:
    return (1 if device.type == "cpu" else 8) if plan.workers is None else plan.workers


def _most_bytes(plan: TrainPlan) -> int:
    if plan.image_memory_gb is not None:
        return int(plan.image_memory_gb * 1e9)
    return int(_SHARE_OF_MEMORY * available_bytes())


class _EpochBar(Callback):
    """Shows epochs and losses as a bar, or as plain lines."""

    def __init__(self, reporter: Reporter, label: str) -> None:
        self.reporter, self.label = reporter, label

    def on_train_begin(self, net: NetworkClassifier) -> None:
        """Show the bar."""
        done = len(net.history)
        self.bar: Bar = self.reporter.bar(net.max_epochs, self.label, "epoch", initial=done)
        self.bar.__enter__()

    def on_epoch_end(self, net: NetworkClassifier) -> None:
        """Show the losses."""
        last = net.history[-1]
        note = f"loss {last['train_loss']:.3f}, accuracy {last['train_acc']:.1%}"
        if "valid_loss" in last:
            note += f"; validation {last['valid_loss']:.3f}, {last['valid_acc']:.1%}"
        self.bar.update(1, note)

    def on_train_end(self, net: NetworkClassifier) -> None:
        """End the bar."""
        del net
        self.bar.__exit__(None, None, None)


@dataclass(frozen=True)
class _Job:
    """The trainings of one question."""

    question: TrainQuestion
    device: torch.device
    results: ResultsFolder
    reporter: Reporter
    tell: Callable[[str], object]

    @property
    def plan(self) -> TrainPlan:
        return self.question.plan

    def _file(self, folder: str, subset: Subset, ending: str) -> Path:
        question = self.question
        words = (
            str(question.pair.train.meta["data"]),
            question.recipe.text,
            f"k{subset.per_class}",
        )
        stem = "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", word)[:40].strip("_") for word in words)
        name = question.fit_id(subset)
        place = Path(self.plan.reports_dir) / folder
        # An existing file may have another name: of a copy of the data, or another draw number.
        there = sorted(place.glob(f"*-{name}{ending}"))
        return there[0] if there else place / f"{stem}-r{subset.repeat}-{name}{ending}"

    def answer(self, subset: Subset) -> TrainResult:
        """Find the training of a draw in the results, or do it."""
        known = None if self.plan.refit else self._known(subset)
        result = known or self._trained(subset)
        if known is not None:
            self.results.complete([result.fit])
        self.tell(_line(result))
        return result

    def _known(self, subset: Subset) -> TrainResult | None:
        path = self._file("networks", subset, ENDING)
        if self.plan.save and not self._is_saved(path):
            return None
        found = next(self.results.find(self.question.fit_id(subset)), None)
        if found is None:
            return None
        found = self.question.as_asked(found, self.question.head, subset)
        trained = Trained.from_record(found.detail["trained"])
        self._save_curves(trained, subset)
        return TrainResult(found, trained, path if path.exists() else None, is_known=True)

    def _is_saved(self, path: Path) -> bool:
        if not path.exists():
            return False
        try:
            read_contents(path)
        except WeightsError as error:
            self.reporter.warn(f"trained again: {error}")
            return False
        return True

    def _trained(self, subset: Subset) -> TrainResult:
        question, plan = self.question, self.plan
        extra: dict[str, Any] = {}
        search_folder = self._file("searches", subset, ".unfinished")
        if plan.search:
            found = search_settings(question, subset, self.device, search_folder, self.reporter)
            self._tell_search(found, subset)
            plan, extra = found.best, {"search": found.record()}
        net = self._fitted(plan, subset)
        check()  # before anything is recorded: the user's network may have swallowed a stop
        trained = self._outcome(net, subset)
        for remark in remarks_of(plan, trained):
            self.reporter.warn(remark)
        fit = to_fit(question, subset, trained, self._scored(net, subset), extra)
        check()
        path = self._save(net, subset, plan, fit) if plan.save else None
        self._save_curves(trained, subset)
        self.results.add(fit)
        self._file("checkpoints", subset, ENDING).unlink(missing_ok=True)
        shutil.rmtree(search_folder, ignore_errors=True)
        return TrainResult(fit, trained, path)

    def _fitted(self, plan: TrainPlan, subset: Subset) -> NetworkClassifier:
        question, file = self.question, self._file("checkpoints", subset, ENDING)
        label = f"training {question.recipe_of(plan).text}, {subset.per_class} per class"
        with Checkpoint(file, question.fit_id(subset), self.reporter) as checkpoint:
            callbacks = [checkpoint, _EpochBar(self.reporter, label)]
            net = question.classifier(plan, subset.seed, self.device, callbacks)
            return net.fit(question.training_images(subset))

    def _tell_search(self, found: Found, subset: Subset) -> None:
        path = self._file("searches", subset, ".csv")
        replace_text(path, pd.DataFrame(found.tried).to_csv(index=False))
        self.tell(found.table())
        self.tell(f"judged on {found.n_watching:,} training images left out; {path}")

    def _outcome(self, net: NetworkClassifier, subset: Subset) -> Trained:
        fitted, watched = net.split(self.question.training_images(subset))
        counts = count(net.module_)
        return Trained(
            curves=tuple(net.history),
            best_epoch=net.best_epoch_,
            has_stopped=net.has_stopped_,
            n_fitted=len(fitted),
            n_watching=0 if watched is None else len(watched),
            n_layers=counts.n_layers,
            n_frozen=net.first_frozen_.n_frozen,
            n_parameters=counts.n_parameters,
            n_trainable=net.first_frozen_.n_trainable,
            n_statistics=counts.n_statistics,
            device=str(net.device),
        )

    def _scored(self, net: NetworkClassifier, subset: Subset) -> Scored:
        fitted, _ = net.split(self.question.training_images(subset))
        train_acc1 = float((net.predict(fitted) == fitted.labels).mean())
        started = time.perf_counter()
        decisions = net.decision_function(self.question.test_images)
        return Scored(decisions, train_acc1, time.perf_counter() - started)

    def _save(
        self, net: NetworkClassifier, subset: Subset, plan: TrainPlan, fit: FitResult
    ) -> Path:
        recipe = self.question.recipe_of(plan)
        backbone = recipe.backbone
        path = self._file("networks", subset, ENDING)
        training = {"acc1": fit.acc1, "per_class": fit.per_class, "fit_id": fit.fit_id}
        record = TrainedRecord(
            class_names=tuple(self.question.class_names),
            preprocessing=recipe.preprocessing,
            network=recipe.text if backbone is None else None,
            backbone=None if backbone is None else backbone.name,
            layer=None if backbone is None else backbone.layer,
            top=recipe.top,
            variant=None if backbone is None else " ".join(backbone.variant) or None,
            training={**training, "asked": plan.asked()},
        )
        save_trained(path, net.module_, record)
        return path

    def _save_curves(self, trained: Trained, subset: Subset) -> None:
        path = self._file("curves", subset, ".csv")
        save_curves(trained.curves, path)
        if self.plan.plot:
            save_curves_plot(trained.curves, trained.best_epoch, path.with_suffix(".png"))


def _line(result: TrainResult) -> str:
    fit, trained = result.fit, result.trained
    what = f"{fit.backbone}, {fit.per_class} per class, draw {fit.repeat}: {fit.acc1 or 0.0:.1%}"
    how = (
        f"{len(trained.curves)} epochs of {trained.seconds_per_epoch:.2g} s, weights of epoch "
        f"{trained.best_epoch}, {trained.n_trainable:,} of {trained.n_parameters:,} parameters"
    )
    known = ", known already" if result.is_known else ""
    return f"{what} ({how}{known})" + (f" in {result.checkpoint}" if result.checkpoint else "")
