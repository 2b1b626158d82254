"""``featx fit``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli.failed import tell_failed
from featx.cli.options import (
    ListCommand,
    NumberOr,
    cache_option,
    class_options,
    common_options,
    fit_options,
    list_option,
    measures_option,
    test_split_option,
)
from featx.errors import CacheError, UsageError, unknown_name
from featx.progress import Reporter

if TYPE_CHECKING:
    from featx.evaluate import FitResult, Leaks, Pair, Settings
    from featx.heads import Fit
    from featx.predict import ModelsFolder
    from featx.store import Cache

__all__ = ["Choice", "command", "run"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Everything that was typed after ``featx fit``, by the names of the options."""

    clf: tuple[str, ...]
    per_class: tuple[int | str, ...]
    repeats: int = 5
    seed: int = 0
    C: float | None = None
    folds: int = 5
    scale: str = "none"
    class_weight: str | None = None
    n_jobs: int = 1
    device: str = "auto"
    holdout: float = 0.2
    test_split: str | None = None
    data: tuple[str, ...] = ()
    backbone: tuple[str, ...] = ()
    train_data: str | None = None
    test_data: str | None = None
    classes: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    map: tuple[str, ...] = ()
    groups: str | None = None
    on_leak: str = "warn"
    near: float | str = "auto"
    leak_sheet: str | None = None
    cache_dir: str = "cache"
    reports_dir: str = "reports"
    refit: bool = False
    save_models: bool = False
    measures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.train_data is None) != (self.test_data is None):
            raise UsageError("--train-data and --test-data go together: name both data sets")
        if self.train_data is not None and self.data:
            raise UsageError("--data is for fits within a data set: leave it out, or --train-data")

    def settings(self) -> Settings:
        """Give what `evaluate` takes."""
        from featx.evaluate import Settings

        return Settings(
            heads=self.clf,
            per_class=self.per_class,
            repeats=self.repeats,
            seed=self.seed,
            C=self.C,
            folds=self.folds,
            scale=self.scale,
            class_weight=self.class_weight,
            n_jobs=self.n_jobs,
            device=self.device,
            holdout=self.holdout,
            on_leak=self.on_leak,
            near=self.near,
            allow_code=self.clf,
        )


@click.command(cls=ListCommand)
@fit_options
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first draw.")
@click.option(
    "--holdout",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.2,
    show_default=True,
    help="Share held out where there is no test split.",
)
@test_split_option
@list_option("--data", help="Only caches of these data sets.")
@list_option("--backbone", help="Only caches of these backbones.")
@click.option("--train-data", help="Fit on this data set, test on that of --test-data.")
@click.option("--test-data", help="Test on this data set, on the classes that both have.")
@class_options
@click.option(
    "--groups",
    metavar="[TABLE:]COLUMN",
    help="Keep images of one group (a patient, a video) on one side of every split.",
)
@click.option(
    "--on-leak",
    type=click.Choice(["warn", "drop", "raise"]),
    default="warn",
    show_default=True,
    help="Where training and test share an image: tell, leave it out of training, or stop.",
)
@click.option(
    "--near",
    type=NumberOr("off", "SHARE", float),
    help="Near twins: less than this share of the usual distance.  [default: 0.7 or less]",
)
@click.option("--no-near", is_flag=True, help="The same as  --near off.")
@click.option("--leak-sheet", metavar="FILE.png", help="Draw the shared images, side by side.")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Of Gram matrices and linear heads: auto, cpu, cuda or cuda:N.",
)
@cache_option
@click.option(
    "--reports", "reports_dir", default="reports", show_default=True, help="Folder of results."
)
@click.option("--refit", is_flag=True, help="Fit again what reports/ has an answer to.")
@click.option("--save-models", is_flag=True, help="Keep every fitted head in reports/models/.")
@measures_option
@common_options
def command(reporter: Reporter, no_near: bool, **options: Any) -> int:
    """Fit classifiers on few labelled images per class, on every finished cache.

    Prints one table; adds a row per fit to reports/results.csv and a JSON per fit.
    Fits that are there already are not made again: the same command goes on where an
    interrupted one stopped. A fit that fails is a row with its reason, is tried again the next
    time, and makes the exit code 1.
    """
    near = options.pop("near")
    options["near"] = "off" if no_near else near or "auto"
    return run(Choice(**options), reporter)


def run(choice: Choice, reporter: Reporter) -> int:
    """Fit, print the table and keep the results."""
    from featx.evaluate import ResultsFolder, evaluate, format_table, summarise

    settings = choice.settings()
    pairs = _pairs(choice, reporter)
    models = _models(choice, reporter) if choice.save_models else None
    results = models or ResultsFolder(choice.reports_dir, reporter)
    sheet = _Sheet(choice.leak_sheet, reporter)
    fits: list[FitResult] = []
    added: list[FitResult] = []

    def keep(pair: Pair, result: FitResult, fit: Fit | None) -> None:
        if models is None or fit is None:
            results.add(result)
        else:
            models.add_fit(pair, result, fit)
        added.append(result)

    for pair in pairs:
        fits += evaluate(
            pair,
            settings,
            reporter=reporter,
            sink=partial(keep, pair),
            on_leaks=sheet.add,
            known=None if choice.refit else results,
        )
    click.echo(format_table(summarise(fits, choice.measures)))
    results.complete(fits)
    n_answered = len(fits) - len(added)
    answered = f"{n_answered} fits answered from {results.folder}/, " if n_answered else ""
    what = f"{len(added)} added" if n_answered else f"{len(added)} fits added"
    click.echo(f"{answered}{what} to {results.table}, details in {results.folder / 'fits'}")
    if models is not None:
        click.echo(f"{models.count(fits)} models in {models.models}")
    sheet.tell()
    return tell_failed(fits, reporter)


def _models(choice: Choice, reporter: Reporter) -> ModelsFolder:
    from featx.predict import ModelsFolder

    ModelsFolder.check_heads(choice.clf)
    return ModelsFolder(choice.reports_dir, reporter)


class _Sheet:
    """The picture of ``--leak-sheet``, drawn anew with each pair of caches."""

    def __init__(self, path: str | None, reporter: Reporter) -> None:
        self.path, self.reporter = None if path is None else Path(path), reporter
        self.found: list[Leaks] = []
        self.n_drawn = 0

    def add(self, leaks: Leaks) -> None:
        from featx.evaluate import save_leak_sheet

        self.found.append(leaks)
        if self.path is not None:
            self.n_drawn = save_leak_sheet(self.found, self.path, self.reporter)

    def tell(self) -> None:
        if self.path is not None:
            drawn = f"{self.n_drawn} pairs of images drawn in {self.path}"
            click.echo(drawn if self.n_drawn else f"no shared images: {self.path} is not written")


def _pairs(choice: Choice, reporter: Reporter) -> list[Pair]:
    from featx.catalog import open_complete
    from featx.evaluate import add_groups, choose_classes, cross_pairs, pair_caches
    from featx.evaluate.pairs import with_enough_images
    from featx.sources import ClassChoice

    classes = ClassChoice.parse(choice.classes, choice.drop, choice.map)
    caches, notices = open_complete(choice.cache_dir)
    caches = _only(caches, "backbone", choice.backbone, choice.cache_dir)
    if choice.train_data is not None and choice.test_data is not None:
        names = choice.train_data, choice.test_data
        caches = _only(caches, "data", names, choice.cache_dir)
        pairs, alone = cross_pairs(caches, *names, classes, choice.test_split)
    else:
        caches = _only(caches, "data", choice.data, choice.cache_dir)
        pairs, alone = pair_caches(caches, choice.test_split)
        pairs, small = with_enough_images(pairs, choice.per_class)
        alone += small
        pairs = [choose_classes(pair, classes) for pair in pairs]
    for notice in [*notices, *alone]:
        reporter.warn(notice)
    if not pairs:
        raise CacheError(
            f"{choice.cache_dir} holds no finished caches to fit and test on: "
            + (alone[0] if alone else "run  featx extract --backbone NAME  first")
        )
    return [add_groups(pair, choice.groups) for pair in pairs] if choice.groups else pairs


def _only(caches: list[Cache], name: str, wanted: tuple[str, ...], folder: str) -> list[Cache]:
    present = {str(cache.meta[name]) for cache in caches}
    kept: set[str] = set()
    for value in wanted:
        # A name of timm as it was typed stands for every tag of it that was extracted.
        found = {other for other in present if other == value or other.startswith(f"{value}.")}
        if not found:
            hint = unknown_name(f"{name} in {folder}", value, present)
            raise CacheError(f"{hint}; extract it with  featx extract")
        kept |= {value} if value in present else found
    return [cache for cache in caches if not wanted or cache.meta[name] in kept]
