"""What a recipe gave: one line of the table of its source."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from featx.evaluate import FitResult, summarise
from featx.evaluate.intervals import Ends, both_intervals, share_interval
from featx.reproduce.recipe import Recipe

__all__ = ["FINE_TUNED", "FROZEN", "OUTCOME_COLUMNS", "SCRATCH", "Cost", "Outcome", "outcomes_of"]

FROZEN, FINE_TUNED, SCRATCH = "frozen features", "fine-tuned networks", "networks from scratch"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a system takes, beside its fits."""

    extract_seconds: float | None = None
    n_layers: int | None = None
    n_parameters: int | None = None
    n_features: int | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A line of the table: one system at one number of images per class."""

    source: str
    recipe: str
    system: str
    variant: str
    scale: str
    kind: str = ""
    scored: str = "test"
    per_class: str = ""
    reported_per_class: str = ""
    reported_accuracy: float | None = None
    reported_seconds: float | None = None
    reported_layers: int | None = None
    reported_features: int | None = None
    accuracy: float | None = None
    low_draws: float | None = None
    high_draws: float | None = None
    low_test: float | None = None
    high_test: float | None = None
    repeats: int = 0
    n_test: int = 0
    n_classes: int = 0
    extract_seconds: float | None = None
    fit_seconds: float | None = None
    n_layers: int | None = None
    n_parameters: int | None = None
    n_features: int | None = None
    replaced: str = ""
    problem: str = ""
    created: str = ""
    featx_version: str = ""

    @property
    def name(self) -> str:
        """System and variant, and whether the user replaced something of it."""
        name = f"{self.system}: {self.variant}" if self.variant else self.system
        return f"{name} (replaced)" if self.replaced else name

    @property
    def is_chance(self) -> bool:
        """Whether it is not clearly better than guessing, for classes of one size."""
        known = self.accuracy is not None and self.n_classes > 0
        return known and self.interval[0] <= 1 / self.n_classes

    @property
    def draws(self) -> Ends | None:
        """Interval over draws, if there were several."""
        return _ends(self.low_draws, self.high_draws)

    @property
    def test(self) -> Ends | None:
        """Interval over test images, if it is of these."""
        return _ends(self.low_test, self.high_test)

    @property
    def interval(self) -> Ends:
        """The 95 % interval of draws and test images together."""
        return both_intervals(self.accuracy or 0.0, self.draws, self.test)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Outcome:
        """Read plain values, also of a featx that kept half-widths in place of ends."""
        values = dict(record)
        half, is_older = values.pop("half_draws", None), values.pop("half_test", None) is not None
        accuracy = values.get("accuracy")
        if accuracy is not None and half is not None:
            ends = both_intervals(accuracy, (accuracy - half, accuracy + half))
            values |= dict(zip(("low_draws", "high_draws"), ends, strict=True))
        if accuracy is not None and is_older:
            ends = share_interval(accuracy, values["n_test"])
            values |= dict(zip(("low_test", "high_test"), ends, strict=True))
        return cls(**values)

    @classmethod
    def not_run(cls, recipe: Recipe, problem: str) -> Outcome:
        """Say that a recipe was not run, and why."""
        return cls(**_of_recipe(recipe), variant="", problem=problem)


def _ends(low: float | None, high: float | None) -> Ends | None:
    return None if low is None or high is None else (low, high)


_WHAT = ("draws", "test")
OUTCOME_COLUMNS = tuple(f.name for f in fields(Outcome))


def outcomes_of(
    recipe: Recipe,
    variant: str,
    fits: Sequence[FitResult],
    cost: Cost,
    *,
    kind: str = "",
    is_first: bool = True,
) -> list[Outcome]:
    """Make the lines of some fits that differ in head, size of subset and draw only.

    Where what was reported is of the training split, each line has a second one: the accuracy on
    the very images that were fitted on.
    """
    lines = []
    heads = _short([fit.clf for fit in fits])
    for (head, k), group in _grouped(fits).items():
        name = ", ".join(word for word in (variant, heads[head]) if word)
        if failed := [fit.error for fit in group if fit.error]:
            # A mean over some of the draws is not what was to be measured.
            lines.append(replace(Outcome.not_run(recipe, failed[0]), variant=name, per_class=k))
            continue
        shared = {**_of_recipe(recipe, is_first), **asdict(cost), **_measured(group)}
        shared |= {"variant": name, "per_class": k, "kind": kind}
        if recipe.reported.split == "train" and is_first:
            test = shared | {"reported_accuracy": None, "reported_seconds": None}
            lines += [Outcome(**shared | _on_training(group)), Outcome(**test)]
        else:
            lines.append(Outcome(**shared))
    return lines


def _short(heads: Sequence[str]) -> dict[str, str]:
    """Name heads as briefly as tells them apart: not at all, without settings, or whole."""
    whole = dict.fromkeys(heads)
    if len(whole) < 2:
        return dict.fromkeys(whole, "")
    names = [head.partition("(")[0] for head in whole]
    return {
        head: name if names.count(name) == 1 else head
        for head, name in zip(whole, names, strict=True)
    }


def _grouped(fits: Sequence[FitResult]) -> dict[tuple[str, str], list[FitResult]]:
    groups: dict[tuple[str, str], list[FitResult]] = {}
    for fit in fits:
        groups.setdefault((fit.clf, fit.per_class), []).append(fit)
    return groups


def _measured(fits: Sequence[FitResult]) -> dict[str, Any]:
    line = summarise(fits).iloc[0]
    ends = {f"{end}_{what}": line[f"{what} {end}"] for what in _WHAT for end in ("low", "high")}
    return {
        "accuracy": float(line["accuracy"]),
        **{name: None if math.isnan(value) else float(value) for name, value in ends.items()},
        "fit_seconds": float(line["seconds"]),
        "repeats": len(fits),
        "n_test": fits[0].n_test,
        "n_classes": len(set(fits[0].detail["test_labels"])),
    }


def _on_training(fits: Sequence[FitResult]) -> dict[str, Any]:
    return {
        "scored": "train",
        "accuracy": sum(fit.train_acc1 or 0.0 for fit in fits) / len(fits),
        **dict.fromkeys(("low_draws", "high_draws", "low_test", "high_test")),
        "n_test": fits[0].n_train,
    }


def _of_recipe(recipe: Recipe, is_first: bool = True) -> dict[str, Any]:
    own: dict[str, Any] = {
        "source": recipe.system.source,
        "recipe": recipe.name,
        "system": recipe.system.title,
        "scale": recipe.scale,
        "replaced": ", ".join(recipe.replaced),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "featx_version": version("featx"),
    }
    if not is_first:
        return own
    reported = recipe.reported
    return own | {
        "reported_per_class": "" if reported.per_class is None else str(reported.per_class),
        "reported_accuracy": reported.accuracy,
        "reported_seconds": reported.seconds,
        "reported_layers": reported.layers,
        "reported_features": reported.features,
    }
