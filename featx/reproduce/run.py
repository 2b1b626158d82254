"""Running a recipe: extraction and fits, sweeps, heads that move, and trainings.

Also what the user puts in place of what a recipe names, and what this machine lacks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from featx.backbones import check_backbone, load_network, outline
from featx.errors import FeatxError, SourceError, UsageError
from featx.evaluate import (
    FitResult,
    Pair,
    ResultsFolder,
    choose_classes,
    cross_pairs,
    pair_caches,
    run_fit,
)
from featx.extract import ExtractReport, Plan, run_plan
from featx.networks import count, is_network
from featx.plugins import named_by
from featx.progress import Reporter
from featx.records import RecordError, read_older_too
from featx.reproduce.outcome import FINE_TUNED, FROZEN, SCRATCH, Cost, Outcome, outcomes_of
from featx.reproduce.recipe import FULL, PRETRAINED, SCALES, Recipe
from featx.sources import ClassChoice, open_data
from featx.store import Cache, seconds_of
from featx.sweep import SweepRow, sweep
from featx.train import TrainResult, run_train

__all__ = ["Needs", "Options", "read_pairs", "run_recipe", "total_seconds"]

_KIND = "seconds of extractions"


def total_seconds(reports: Sequence[ExtractReport], folder: Path) -> float | None:
    """Give the time of all of some extractions; None where one is not known."""
    older = _of_older_versions(folder / "extraction-seconds.json")
    total = 0.0
    for report in reports:
        with Cache.open(report.path) as cache:
            seconds = seconds_of(cache.path, cache.fingerprint) or older.get(cache.fingerprint)
        if seconds is None:
            return None
        total += seconds
    return total


def _of_older_versions(path: Path) -> dict[str, float]:
    """Read what an older featx kept in the folder of results."""
    try:
        values = read_older_too(_KIND, path)
        return {str(k): float(v) for k, v in values.get("seconds", values).items()}
    except (OSError, ValueError, TypeError, AttributeError, RecordError):
        return {}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Choices for a run of recipes."""

    scale: str = FULL
    data: Mapping[str, str] = field(default_factory=dict)
    backbone: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    cache_dir: str = "cache"
    reports_dir: str = "reports"
    device: str = "auto"
    workers: int | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise UsageError(f"scale is {self.scale!r}: choose from {', '.join(SCALES)}")

    @property
    def machine(self) -> dict[str, Any]:
        """What extraction and training take alike."""
        chosen = {"device": self.device, "workers": self.workers}
        return chosen if self.precision is None else {**chosen, "precision": self.precision}

    def apply(self, recipe: Recipe) -> Recipe:
        """Give a recipe at the scale, with everything replaced that is to be."""
        recipe = recipe.at_scale(self.scale)
        data = recipe.data
        changes: dict[str, Any] = {
            name: self.data[value]
            for name in ("data", "moved_to")
            if (value := getattr(data, name)) in self.data
        }
        recipe = replace(recipe, data=replace(data, **changes))
        said: list[str] = []
        parts = {name: self._part(name, dict(p), said) for name, p in recipe.parts.items()}
        return replace(recipe, parts=parts, replaced=tuple(dict.fromkeys(said)))

    def _part(self, name: str, part: dict[str, Any], said: list[str]) -> dict[str, Any]:
        key = {"extract": "backbone", "train": "network", "pretrain": "network"}.get(name)
        if key is None:
            return part
        before = part[key][0] if isinstance(part[key], tuple) else part[key]
        after = self.backbone.get(before, before)
        if after != before:
            said.append(f"{after} in place of {before}")
            part[key] = (after,) if isinstance(part[key], tuple) else after
            # Layers are those of the network that was replaced.
            part.pop("layer", None)
            part.pop("weights", None)
        if after in self.weights:
            part["weights"] = self.weights[after]
            # A file may hold the very weights of the recipe.
            if self.weights[after].partition(":")[0] == "random":
                said.append("random weights")
        return part


def read_pairs(option: str, words: Iterable[str]) -> dict[str, str]:
    """Read words ``NAME=VALUE``."""
    pairs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise UsageError(
                f"{option} {word!r}: write NAME=VALUE, as in {option} {_EXAMPLES[option]}"
            )
        pairs[name] = value
    return pairs


_EXAMPLES = {
    "--data": "cifar10=/data/cifar10",
    "--backbone": "vgg16=squeezenet1_0",
    "--weights": "vgg16=vgg16.pth",
}


Tell = Callable[[str], object]


def run_recipe(recipe: Recipe, options: Options, reporter: Reporter, tell: Tell) -> list[Outcome]:
    """Run a recipe; what earlier runs have done is not done again."""
    with named_by(recipe.path):
        return _Run(recipe, options, reporter, tell).outcomes()


@dataclass(frozen=True)
class _Run:
    recipe: Recipe
    options: Options
    reporter: Reporter
    tell: Tell

    def outcomes(self) -> list[Outcome]:
        recipe = self.recipe
        if recipe.has("pretrain"):
            return replace(self, recipe=_with_file(recipe, self._pretrained()))._main()
        return self._main()

    def _main(self) -> list[Outcome]:
        recipe = self.recipe
        found: list[Outcome] = []
        if recipe.has("train"):
            found += _of_training(recipe, self._train("train"))
        if recipe.has("sweep"):
            found += self._swept()
        elif recipe.data.moved_to is not None:
            found += self._moved()
        elif recipe.has("extract"):
            found += self._extracted(is_first=not recipe.has("train"))
        return found

    def _train(self, part: str, **more: object) -> list[TrainResult]:
        machine = {**self.options.machine, "reports_dir": self.options.reports_dir}
        return run_train(self.recipe.train_plan(part, **machine, **more), self.reporter, self.tell)

    def _pretrained(self) -> Path:
        results = self._train("pretrain", save=True)
        path = results[0].checkpoint
        if path is None:
            raise UsageError(f"{self.recipe.name}: [pretrain] gave no file")
        return path

    def _plan(self, **changes: object) -> Plan:
        machine = {**self.options.machine, "cache_dir": self.options.cache_dir}
        return self.recipe.plan(**machine, **changes)

    def _caches(self, plan: Plan) -> tuple[list[Cache], float | None]:
        """Extract; give the caches, and the seconds that all of it took."""
        reports = run_plan(plan, self.reporter, tell=self.reporter.say)
        seconds = total_seconds(reports, Path(self.options.reports_dir))
        return [Cache.open(report.path) for report in reports], seconds

    def _extracted(self, *, is_first: bool) -> list[Outcome]:
        plan = self._plan()
        caches, seconds = self._caches(plan)
        pairs, alone = pair_caches(caches)
        for notice in alone:
            self.reporter.warn(notice)
        found = []
        for pair in pairs:
            cost = _cost(plan, pair, seconds)
            fits = self._fit(pair)
            found += outcomes_of(self.recipe, "", fits, cost, kind=FROZEN, is_first=is_first)
        _close(caches)
        return found

    def _fit(self, pair: Pair) -> list[FitResult]:
        settings = self.recipe.settings(self.options.device)
        results = ResultsFolder(self.options.reports_dir, self.reporter)
        return run_fit([pair], settings, results, reporter=self.reporter)[0]

    def _swept(self) -> list[Outcome]:
        rows = sweep(
            self._plan(),
            self.recipe.axes(),
            self.recipe.settings(self.options.device),
            reporter=self.reporter,
            tell=self.reporter.say,
            results=ResultsFolder(self.options.reports_dir, self.reporter),
        )
        found = []
        for row in rows:
            plan = self._plan(backbone=(row.backbone,), preprocess=row.preprocess)
            cost = _cost_of_row(plan, row)
            variant = _variant(self.recipe, row)
            is_first = row.preprocess != "correct" or "preprocess" not in self.recipe.axes().varied
            if row.problem:
                line = Outcome.not_run(self.recipe, row.problem)
                found.append(replace(line, variant=variant))
            else:
                found += outcomes_of(self.recipe, variant, row.fits, cost, is_first=is_first)
        return found

    def _moved(self) -> list[Outcome]:
        """Fit on each of two data sets and test on both, over their shared classes."""
        data = self.recipe.data
        plans = [self._plan(data=name, drop=(), map=()) for name in (data.data, data.moved_to)]
        both = [self._caches(plan) for plan in plans]
        caches = [cache for found, _ in both for cache in found]
        names = [str(found[0].meta["data"]) for found, _ in both]
        choice = ClassChoice.parse(data.classes, data.drop, data.map)
        found = []
        for train, seconds in zip(names, [time for _, time in both], strict=True):
            for test in names:
                for pair in _pairs(caches, train, test, choice, names):
                    cost = _cost(plans[0], pair, seconds)
                    fits = self._fit(pair)
                    found += outcomes_of(self.recipe, f"{train} to {test}", fits, cost)
        _close(caches)
        return found


def _pairs(
    caches: Sequence[Cache], train: str, test: str, choice: ClassChoice, names: Sequence[str]
) -> list[Pair]:
    if train != test:
        return cross_pairs(caches, train, test, choice)[0]
    # The same classes as where the heads move.
    other = next(name for name in names if name != train)
    moved = cross_pairs(caches, train, other, choice)[0]
    pairs, _ = pair_caches([cache for cache in caches if cache.meta["data"] == train])
    return [choose_classes(pair, _shared(pair, moved[0], choice)) for pair in pairs]


def _shared(pair: Pair, moved: Pair, choice: ClassChoice) -> ClassChoice:
    """Choose the classes of a pair that moved, of which some may bear those names already."""
    present = pair.train.class_names
    rename = {old: new for old, new in choice.rename.items() if old in present}
    return ClassChoice(keep=tuple(moved.train.class_names), rename=rename)


def _with_file(recipe: Recipe, path: Path) -> Recipe:
    """Put the file of a pretrained network where the recipe wants it."""
    parts = {name: dict(values) for name, values in recipe.parts.items()}
    if parts.get("train", {}).get("network") == PRETRAINED:
        parts["train"]["network"] = str(path)
    if PRETRAINED in parts.get("extract", {}).get("backbone", ()):
        parts["extract"]["backbone"] = (str(path),)
    return replace(recipe, parts=parts)


def _of_training(recipe: Recipe, results: Sequence[TrainResult]) -> list[Outcome]:
    first, plan = results[0], recipe.train_plan()
    cost = Cost(n_layers=first.n_layers, n_parameters=first.n_parameters)
    tuned = FROZEN if plan.freeze == "all" and plan.unfreeze_after is None else FINE_TUNED
    kind = SCRATCH if is_network(plan.network) else tuned
    return outcomes_of(recipe, "", [result.fit for result in results], cost, kind=kind)


def _variant(recipe: Recipe, row: SweepRow) -> str:
    varied = recipe.axes().varied
    words = []
    if "input_size" in varied:
        words.append(f"{row.input_size} px" + (" (native)" if row.is_native else ""))
    words += [getattr(row, name) for name in ("layer", "pool", "preprocess") if name in varied]
    return ", ".join(words)


def _cost(plan: Plan, pair: Pair, seconds: float | None) -> Cost:
    meta = pair.train.meta
    return _counted(
        plan,
        str(meta["layer"]),
        int(meta["input_size"]),
        Cost(extract_seconds=seconds, n_features=int(meta["n_features"])),
    )


def _cost_of_row(plan: Plan, row: SweepRow) -> Cost:
    if row.problem:
        return Cost()
    n_images = sum(fit.n_test for fit in row.fits[:1])
    per_image = 1 / row.images_per_second if row.images_per_second > 0 else None
    n_images += max((fit.n_train for fit in row.fits), default=0)
    seconds = None if per_image is None else per_image * n_images
    cost = Cost(extract_seconds=seconds, n_features=row.n_features)
    return _counted(plan, row.layer, row.input_size, cost)


def _counted(plan: Plan, layer: str, input_px: int, cost: Cost) -> Cost:
    """Add layers and parameters up to the feature point, counted without values."""
    loaded = outline(plan.backbone[0], {"input_size": input_px}, plan.allow_code)
    counts = count(loaded.tap(input_px).cut(layer))
    return replace(cost, n_layers=counts.n_layers, n_parameters=counts.n_parameters)


def _close(caches: Sequence[Cache]) -> None:
    for cache in caches:
        cache.close()


class Needs:
    """Looks for the data and weights of recipes, each of them once.

    What is not here is downloaded where that is possible.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self._answers: dict[tuple[str, str], str] = {}

    def missing(self, recipe: Recipe) -> list[str]:
        """Say what is missing for a recipe."""
        found = [self._data(name) for name in (recipe.data.data, recipe.data.moved_to) if name]
        found += [self._weights(recipe, name, weights) for name, weights in _backbones(recipe)]
        return [line for line in found if line]

    def _ask(self, key: tuple[str, str], check: Callable[[], object]) -> str:
        if key not in self._answers:
            try:
                check()
                self._answers[key] = ""
            except FeatxError as error:
                self._answers[key] = " ".join([str(error), *getattr(error, "__notes__", ())])
        return self._answers[key]

    def _data(self, name: str) -> str:
        def check() -> None:
            try:
                open_data(name, download=False, reporter=self.reporter)
            except SourceError:
                open_data(name, reporter=self.reporter)

        problem = self._ask(("data", name), check)
        return problem and f"data {name}: {problem} (or say where it lies: --data {name}=FOLDER)"

    def _weights(self, recipe: Recipe, name: str, weights: str | None) -> str:
        def check() -> None:
            check_backbone(name)
            with named_by(recipe.path):
                load_network(name, weights, {}, self.reporter, recipe.allow_code)

        problem = self._ask((name, weights or ""), check)
        instead = f"--weights {name}=FILE, --backbone {name}=OTHER"
        return problem and f"weights of {name}: {problem} (here: {instead})"


def _backbones(recipe: Recipe) -> Iterable[tuple[str, str | None]]:
    """Give the backbones with weights, not the networks that are trained from scratch."""
    for part, key in (("extract", "backbone"), ("train", "network"), ("pretrain", "network")):
        values = recipe.parts.get(part, {})
        names = values.get(key, ())
        for name in names if isinstance(names, tuple) else (names,):
            if name != PRETRAINED and not is_network(name):
                yield name, values.get("weights")
