"""Random search of settings, judged on a part of the training images."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from scipy.stats import loguniform
from sklearn.model_selection import ParameterSampler

from featx.atomic import replace_text, set_aside
from featx.errors import ProtocolError, UsageError
from featx.evaluate.question import Subset
from featx.fewshot import split_holdout
from featx.fingerprint import fingerprint
from featx.memory import is_out_of_memory
from featx.networks import SEARCH_SPACE, get_network
from featx.progress import Reporter
from featx.records import ENDING, RecordError, read_record, record_text
from featx.stops import check
from featx.train.checkpoint import Checkpoint
from featx.train.classifier import DivergedError
from featx.train.images import PixelSet
from featx.train.plan import TrainPlan
from featx.train.question import TrainQuestion

__all__ = ["Found", "search_settings"]

SEARCHED = "cnn-search"
_SETTINGS = ("network", "optimizer", "lr")  # fields of the plan; the network only of `SEARCHED`
_RATES = (0.001, 0.1)
_OPTIMIZERS = ("Nesterov", "Adam", "RMSprop")
_SHARE = 0.2
_OUTCOMES, _KIND = "outcomes.json", "outcomes of a search"
_ALL_DIVERGED = (
    "every training of the search diverged: search for more settings, or give a larger --batch-size"
)


@dataclass(frozen=True)
class Found:
    """What a search found."""

    best: TrainPlan
    tried: tuple[Mapping[str, Any], ...]  # the best first
    n_fitted: int
    n_watching: int

    def record(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "tried": [dict(line) for line in self.tried],
            "n_fitted": self.n_fitted,
            "n_watching": self.n_watching,
        }

    def table(self) -> str:
        """Write the settings as an aligned table, the best first."""
        frame = pd.DataFrame(self.tried)
        frame["accuracy"] = [_share(value) for value in frame["accuracy"]]
        return str(frame.to_string(index=False, float_format=lambda value: f"{value:.3g}"))


def _share(value: float | None) -> str:
    return "diverged" if value is None or pd.isna(value) else f"{value:.1%}"


def space_of(plan: TrainPlan) -> dict[str, Any]:
    """Return the distribution, or the list of values, of each setting that is searched."""
    space: dict[str, Any] = {"lr": loguniform(*_RATES), "optimizer": list(_OPTIMIZERS)}
    if plan.network.partition("(")[0] != SEARCHED:
        return space
    spec = get_network(plan.network)
    choices = itertools.product(*SEARCH_SPACE.values())
    settings = (dict(zip(SEARCH_SPACE, values, strict=True)) for values in choices)
    return space | {"network": [spec.with_settings(**each).text for each in settings]}


def search_settings(
    question: TrainQuestion,
    subset: Subset,
    device: torch.device,
    folder: Path,
    reporter: Reporter,
) -> Found:
    """Train with settings drawn at random, and find those with the best validation accuracy.

    A fifth of each class of the subset is left out of all these trainings and judges them; the
    test images are not used. Early stopping, where it is asked for, takes its own validation part
    from the rest. What is done is kept in `folder`, so that an interrupted search goes on there.
    """
    plan = question.plan
    images = question.training_images(subset)
    fitted, judging = split_holdout(images.labels, _SHARE, seed=subset.seed)
    outcomes = _Outcomes(folder, reporter)
    trials = _Trials(
        question, subset.seed, device, images.take(fitted), images.take(judging), outcomes
    )
    sampler = ParameterSampler(space_of(plan), plan.search, random_state=subset.seed)
    problem: Exception | None = None
    label = f"search for {plan.network}, {subset.per_class} per class"
    with reporter.bar(plan.search, label, "setting") as bar:
        for values in sampler:
            drawn = values | {"lr": float(values["lr"])}
            settings = {name: drawn[name] for name in _SETTINGS if name in drawn}
            try:
                bar.update(1, _share(trials.accuracy(settings)))
            except Exception as error:
                if not (isinstance(error, UsageError) or is_out_of_memory(error)):
                    raise
                problem = error
                reporter.warn(f"left out of the search: {settings}: {error}")
    tried = sorted(outcomes.lines, key=lambda line: -(line["accuracy"] or 0.0))
    if not tried and problem is not None:
        raise problem
    if tried[0]["accuracy"] is None:
        raise ProtocolError(_ALL_DIVERGED)
    return Found(_with(plan, tried[0]), tuple(tried), len(fitted), len(judging))


def _with(plan: TrainPlan, settings: Mapping[str, Any]) -> TrainPlan:
    """Return the plan of one training with these settings."""
    chosen = {name: settings[name] for name in _SETTINGS if name in settings}
    return replace(plan, search=0, **chosen)


class _Outcomes:
    """What is known of the settings of a search, in a file."""

    def __init__(self, folder: Path, reporter: Reporter) -> None:
        self.path, self.reporter = folder / _OUTCOMES, reporter
        self._by_key: dict[str, dict[str, Any]] = {}
        if not self.path.exists():
            return
        try:
            self._by_key = dict(read_record(_KIND, self.path)["outcomes"])
        except RecordError as error:
            kept = f"it is kept as {set_aside(self.path)} until the search ends"
            again = "and its settings are tried again"
            reporter.warn(f"{self.path} is not used: {error}: {kept}, {again}")

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Settings, accuracy and seconds of each training."""
        return list(self._by_key.values())

    def find(self, key: str) -> dict[str, Any] | None:
        """Find the outcome of settings by their fingerprint; None where they were not tried."""
        return self._by_key.get(key)

    def add(self, key: str, outcome: dict[str, Any]) -> None:
        """Keep an outcome; the accuracy of a training that diverged is None."""
        check()
        self._by_key[key] = outcome
        replace_text(self.path, record_text(_KIND, {"outcomes": self._by_key}))


@dataclass(frozen=True)
class _Trials:
    """Trainings with given settings, judged on images that were left out."""

    question: TrainQuestion
    seed: int
    device: torch.device
    fitted: PixelSet
    judging: PixelSet
    outcomes: _Outcomes

    def accuracy(self, settings: Mapping[str, Any]) -> float | None:
        """Find the accuracy of settings, or train with them; None where training diverged."""
        key = fingerprint(dict(settings))
        outcome = self.outcomes.find(key) or self._train(key, settings)
        accuracy: float | None = outcome["accuracy"]
        return accuracy

    def _train(self, key: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        question, plan = self.question, _with(self.question.plan, settings)
        file = self.outcomes.path.with_name(f"candidate{ENDING}")
        with Checkpoint(file, key, self.outcomes.reporter) as checkpoint:
            net = question.classifier(plan, self.seed, self.device, [checkpoint])
            accuracy: float | None = None
            with suppress(DivergedError):
                accuracy = float(net.fit(self.fitted).score(self.judging, self.judging.labels))
        seconds = sum(line.get("dur", 0.0) for line in net.history)
        outcome = {**settings, "accuracy": accuracy, "seconds": seconds}
        self.outcomes.add(key, outcome)
        file.unlink(missing_ok=True)
        return outcome
