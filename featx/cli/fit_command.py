"""``featx fit``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from featx.cli.options import ListCommand, PerClass, cache_option, common_options, list_option
from featx.errors import CacheError, unknown_name
from featx.progress import Reporter

if TYPE_CHECKING:
    from featx.evaluate import Pair
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
    holdout: float = 0.2
    data: tuple[str, ...] = ()
    backbone: tuple[str, ...] = ()
    cache_dir: str = "cache"
    reports_dir: str = "reports"


@click.command(cls=ListCommand)
@list_option("--clf", default=("svm",), show_default="svm", help="Heads: svm, logreg, mlp.")
@list_option("--per-class", type=PerClass(), required=True, help="Training images a class, or all.")
@click.option("--repeats", type=int, default=5, show_default=True, help="Draws of the subset.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first draw.")
@click.option("--C", "C", type=float, help="Penalty.  [default: chosen inside each subset]")
@click.option("--folds", type=int, default=5, show_default=True, help="Folds for choosing C.")
@click.option(
    "--holdout",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.2,
    show_default=True,
    help="Share held out where there is no test split.",
)
@list_option("--data", help="Only caches of these data sets.")
@list_option("--backbone", help="Only caches of these backbones.")
@cache_option
@click.option(
    "--reports", "reports_dir", default="reports", show_default=True, help="Folder of results."
)
@common_options
def command(reporter: Reporter, **options: Any) -> None:
    """Fit classifiers on few labelled images per class, on every finished cache.

    Prints one table; adds a row per fit to reports/results.csv and a JSON per fit.
    """
    run(Choice(**options), reporter)


def run(choice: Choice, reporter: Reporter) -> None:
    """Fit, print the table and keep the results.

    Parameters
    ----------
    choice : Choice
        What to do.
    reporter : Reporter
        Shows what is done.
    """
    from featx.evaluate import ResultsFolder, Settings, evaluate, format_table, summarise

    settings = Settings(
        heads=choice.clf,
        per_class=choice.per_class,
        repeats=choice.repeats,
        seed=choice.seed,
        C=choice.C,
        folds=choice.folds,
        holdout=choice.holdout,
    )
    pairs = _pairs(choice, reporter)
    results = ResultsFolder(choice.reports_dir)
    fits = []
    for pair in pairs:
        fits += evaluate(pair, settings, reporter=reporter, sink=lambda fit, _: results.add(fit))
    click.echo(format_table(summarise(fits)))
    click.echo(f"{len(fits)} fits added to {results.table}, details in {results.folder / 'fits'}")


def _pairs(choice: Choice, reporter: Reporter) -> list[Pair]:
    from featx.catalog import open_complete
    from featx.evaluate import pair_caches

    caches, notices = open_complete(choice.cache_dir)
    for name in ("data", "backbone"):
        caches = _only(caches, name, getattr(choice, name), choice.cache_dir)
    pairs, alone = pair_caches(caches)
    for notice in [*notices, *alone]:
        reporter.warn(notice)
    if not pairs:
        raise CacheError(
            f"{choice.cache_dir} holds no finished cache to fit on: run  featx extract "
            "--backbone NAME  first, for the train and the test split"
        )
    return pairs


def _only(caches: list[Cache], name: str, wanted: tuple[str, ...], folder: str) -> list[Cache]:
    present = {str(cache.meta[name]) for cache in caches}
    for value in wanted:
        if value not in present:
            hint = unknown_name(f"{name} in {folder}", value, present)
            raise CacheError(f"{hint}; extract it with  featx extract")
    return [cache for cache in caches if not wanted or cache.meta[name] in wanted]
