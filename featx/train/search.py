"""Random search of settings, by scikit-learn, on a validation part of the training images."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import loguniform
from sklearn.exceptions import FitFailedWarning
from sklearn.model_selection import RandomizedSearchCV

from featx.errors import ProtocolError
from featx.evaluate.draws import Subset
from featx.fewshot import split_holdout
from featx.networks import SEARCH_SPACE, get_network
from featx.progress import Reporter
from featx.train.batches import PixelSet
from featx.train.candidate import Candidate, read_outcomes
from featx.train.estimator import make_classifier
from featx.train.optimisation import get_optimizer
from featx.train.plan import TrainPlan
from featx.train.question import TrainQuestion

__all__ = ["Found", "search_settings"]

SEARCHED = "cnn-search"
_RATES = (0.001, 0.1)
_OPTIMIZERS = ("Nesterov", "Adam", "RMSprop")
_SHARE = 0.2
_ALL_DIVERGED = (
    "every training of the search diverged: search for more settings, or give a larger --batch-size"
)


@dataclass(frozen=True)
class Found:
    """What a search found."""

    best: TrainPlan
    tried: tuple[Mapping[str, Any], ...]
    n_fitted: int
    n_watching: int

    def record(self) -> dict[str, Any]:
        """Give it as plain values."""
        return {
            "tried": [dict(line) for line in self.tried],
            "n_fitted": self.n_fitted,
            "n_watching": self.n_watching,
        }

    def table(self) -> str:
        """Align the candidates as plain text, the best first."""
        frame = pd.DataFrame(self.tried)
        frame["accuracy"] = [_share(value) for value in frame["accuracy"]]
        return str(frame.to_string(index=False, float_format=lambda value: f"{value:.3g}"))


def _share(value: float | None) -> str:
    return "diverged" if value is None or np.isnan(value) else f"{value:.1%}"


def space_of(plan: TrainPlan) -> dict[str, Any]:
    """Distributions of what is searched."""
    optimizers = [get_optimizer(name, None, plan.weight_decay) for name in _OPTIMIZERS]
    space: dict[str, Any] = {"lr": loguniform(*_RATES), "optimizer": optimizers}
    if plan.network.partition("(")[0] != SEARCHED:
        return space
    spec = get_network(plan.network)
    choices = itertools.product(*SEARCH_SPACE.values())
    settings = (dict(zip(SEARCH_SPACE, values, strict=True)) for values in choices)
    return space | {"module__text": [spec.with_settings(**each).text for each in settings]}


def search_settings(
    question: TrainQuestion,
    subset: Subset,
    device: torch.device,
    memory: Path,
    reporter: Reporter,
) -> Found:
    """Train with settings drawn at random, and find those that are best on a part left out.

    A fifth of each class of the subset is left out of all of these trainings and judges them;
    the test images play no part. Early stopping, where it is asked for, takes its own validation
    part of the rest.
    """
    plan = question.plan
    images = question.training_images(subset)
    parts = split_holdout(images.labels, _SHARE, seed=subset.seed)
    label = f"search for {plan.network}, {subset.per_class} per class"
    with reporter.bar(plan.search, label, "setting") as bar:

        def accuracy(net: Candidate, X: NDArray[np.uint8], y: NDArray[np.int64]) -> float:
            right = net.judge(X, y)
            bar.update(1, _share(right))
            return right

        search = RandomizedSearchCV(
            make_classifier(
                question, subset.seed, device, Candidate, memory=memory, reporter=reporter
            ),
            space_of(plan),
            n_iter=plan.search,
            scoring=accuracy,
            cv=[parts],
            refit=False,
            random_state=subset.seed,
            error_score=np.nan,
        )
        with warnings.catch_warnings():
            # A training that diverges is a bad candidate; all of them are an error, below.
            warnings.simplefilter("ignore", FitFailedWarning)
            warnings.filterwarnings("ignore", "One or more of the test scores", UserWarning)
            _run(search, images)
        bar.update(plan.search - bar.done)
    tried = sorted(read_outcomes(memory), key=lambda line: -(line["accuracy"] or 0.0))
    if tried[0]["accuracy"] is None:
        raise ProtocolError(_ALL_DIVERGED)
    return Found(_best(plan, tried[0]), tuple(tried), len(parts[0]), len(parts[1]))


def _run(search: RandomizedSearchCV, images: PixelSet) -> None:
    try:
        search.fit(images.pixels[images.rows], images.labels)
    except ValueError as error:
        if not isinstance(error.__cause__, ProtocolError) and "fits failed" not in str(error):
            raise
        raise ProtocolError(_ALL_DIVERGED) from error


def _best(plan: TrainPlan, line: Mapping[str, Any]) -> TrainPlan:
    network = line.get("network", plan.network)
    return replace(plan, search=0, lr=line["lr"], optimizer=line["optimizer"], network=network)
