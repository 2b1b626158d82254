"""``featx fit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli.failed import tell_failed
from featx.cli.json_output import echo_json, json_option
from featx.cli.options import (
    ListCommand,
    NumberOr,
    cache_option,
    class_options,
    cluster_options,
    common_options,
    fit_options,
    list_option,
    log_option,
    measures_option,
    reports_option,
    test_split_option,
)
from featx.cli.output import echo
from featx.progress import Reporter
from featx.text import count_of

if TYPE_CHECKING:
    from featx.evaluate import Leaks

__all__ = ["command"]


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
@list_option("--layer", help="Only caches of these layers.")
@list_option("--pool", help="Only caches with these poolings.")
@list_option("--input-size", type=int, help="Only caches of images of these sizes, in pixels.")
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
    help="Near-duplicates: less than this share of the usual distance.  [default: 0.7 or less]",
)
@click.option("--no-near", is_flag=True, help="The same as  --near off.")
@click.option("--leak-sheet", metavar="FILE.png", help="Draw the shared images, side by side.")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Of Gram matrices and linear heads: auto, cpu, cuda or cuda:N.",
)
@cluster_options
@cache_option
@reports_option
@click.option("--refit", is_flag=True, help="Fit again what reports/ has an answer to.")
@click.option("--save-models", is_flag=True, help="Keep every fitted head in reports/models/.")
@measures_option
@log_option
@json_option
@common_options
def command(  # noqa: PLR0913
    *,
    reporter: Reporter,
    cache_dir: str,
    reports_dir: str,
    measures: tuple[str, ...],
    trackers: tuple[str, ...],
    refit: bool,
    save_models: bool,
    leak_sheet: str | None,
    no_near: bool,
    as_json: bool,
    near: float | str | None,
    **options: Any,
) -> int:
    """Fit classifiers on few labelled images per class, on every finished cache.

    Prints one table; adds a row per fit to reports/results.csv and a JSON per fit.
    Fits that are there already are not made again: the same command goes on where an
    interrupted one stopped. A fit that fails is a row with its reason, is tried again the next
    time, and makes the exit code 1.
    """
    from featx.evaluate import CacheChoice, Settings, format_table, run_fit, summarise
    from featx.experiment import results_folder
    from featx.sources import ClassChoice

    clf = options.pop("clf")
    classes = ClassChoice.parse(*(options.pop(name) for name in ("classes", "drop", "map")))
    caches = CacheChoice(classes=classes, **{name: options.pop(name) for name in _CACHES})
    near = "off" if no_near else near or "auto"
    settings = Settings(heads=clf, allow_code=clf, near=near, **options)
    results = results_folder(reports_dir, clf, save_models, reporter)
    sheet = _Sheet(leak_sheet, reporter)
    pairs = caches.pairs_in(cache_dir, settings.per_class, reporter)
    fits, n_new = run_fit(
        pairs, settings, results, refit=refit, on_leaks=sheet.add, reporter=reporter
    )
    if trackers:
        from featx.tracking import track

        for name in trackers:
            reporter.say(f"{track(fits, name, results.folder, reporter)} fits are new in {name}")
    if as_json:
        echo_json([fit.row() for fit in fits])
        return tell_failed(fits, reporter)
    echo(format_table(summarise(fits, measures)))
    n_answered = len(fits) - n_new
    answered = (
        f"{count_of(n_answered, 'fit')} answered from {results.folder}/, " if n_answered else ""
    )
    what = f"{n_new} added" if n_answered else f"{count_of(n_new, 'fit')} added"
    echo(f"{answered}{what} to {results.table}, details in {results.folder / 'fits'}")
    if save_models:
        echo(f"{count_of(results.count(fits), 'model')} in {results.models}")
    sheet.tell()
    return tell_failed(fits, reporter)


_CACHES = (
    *("data", "backbone", "layer", "pool", "input_size"),
    *("train_data", "test_data", "test_split", "groups"),
)


class _Sheet:
    """The picture of ``--leak-sheet``, drawn anew with each pair of caches."""

    def __init__(self, path: str | None, reporter: Reporter) -> None:
        self.path, self.reporter = None if path is None else Path(path), reporter
        self.found: list[Leaks] = []
        self.n_drawn = 0

    def add(self, leaks: Leaks) -> None:
        from featx.report.leak_sheet import save_leak_sheet

        self.found.append(leaks)
        if self.path is not None:
            self.n_drawn = save_leak_sheet(self.found, self.path, self.reporter)

    def tell(self) -> None:
        if self.path is not None:
            drawn = f"{count_of(self.n_drawn, 'pair')} of images drawn in {self.path}"
            echo(drawn if self.n_drawn else f"no shared images: {self.path} is not written")
