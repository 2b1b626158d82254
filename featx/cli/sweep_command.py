"""``featx sweep``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from featx.atomic import replace_text
from featx.cli.failed import tell_failed
from featx.cli.options import (
    DATA_HELP,
    INPUT_SIZE,
    PER_CLASS,
    ListCommand,
    bits_option,
    cache_option,
    class_options,
    code_option,
    common_options,
    engine_options,
    fit_options,
    layout_options,
    list_option,
    reports_option,
    test_split_option,
)
from featx.cli.output import echo
from featx.errors import UsageError
from featx.progress import Reporter

__all__ = ["command"]

_FIT = ("repeats", "C", "folds", "scale", "class_weight", "n_jobs")
_AXES = ("input_size", "layer", "pool", "preprocess")


@click.command(cls=ListCommand)
@list_option("--backbone", required=True, help="Names, as for  featx extract.")
@list_option("--input-size", type=INPUT_SIZE, help="Sizes to compare.", callback=None)
@list_option("--layer", help="Layers to compare, in one pass.", callback=None)
@list_option("--pool", help="Ways of pooling to compare.", callback=None)
@list_option(
    "--preprocess",
    callback=None,
    help="Mistakes to compare: correct half-range divide-only divide-twice bgr raw.",
)
@bits_option
@click.option("--data", default="cifar10", show_default=True, help=DATA_HELP)
@layout_options
@class_options
@engine_options
@fit_options
@click.option("--cache-per-class", type=PER_CLASS, help="Cache only N training images a class.")
@click.option("--test-per-class", type=PER_CLASS, help="Cache only M test images a class.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all draws.")
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Draw accuracy and cost (.png, .svg)."
)
@test_split_option
@cache_option
@reports_option
@code_option
@common_options
def command(reporter: Reporter, plot: Path | None, reports_dir: str, **options: Any) -> int:
    """Extract, fit and time several input sizes, layers, poolings or mistakes.

    Give one of --input-size, --layer, --pool and --preprocess several values. Prints one
    table; writes one row per fit to reports/sweep-*.csv, and to reports/ what  featx fit
    writes. The same command again goes on where an interrupted one stopped.
    """
    from featx.evaluate import ResultsFolder, Settings, format_table
    from featx.extract import Plan
    from featx.sweep import Axes, sweep, to_frame, to_table

    axes = Axes(**{name: options.pop(name) for name in _AXES})
    if not axes.varied and len(options["backbone"]) < 2:
        raise UsageError(
            "nothing is varied: give --input-size, --layer, --pool or --preprocess several values"
        )
    options["allow_code"] += (*options["backbone"], *options["clf"])
    settings = Settings(
        heads=options.pop("clf"),
        allow_code=options["allow_code"],
        per_class=options.pop("per_class"),
        seed=options["seed"],
        **{name: options.pop(name) for name in _FIT},
    )
    test_split = options.pop("test_split")
    plan = Plan(per_class=options.pop("cache_per_class"), **options)
    results = ResultsFolder(reports_dir, reporter)
    rows = sweep(
        plan,
        axes,
        settings,
        test_split=test_split,
        reporter=reporter,
        tell=reporter.say,
        results=results,
    )
    varied = axes.varied or ("layer",)
    table = to_table(rows, varied)
    echo(format_table(table, ("input", "layer", "pool", "dim")))
    path = _csv_path(Path(reports_dir), plan, varied)
    replace_text(path, to_frame(rows).to_csv(index=False))
    echo(f"one row a fit: {path}")
    if plot is not None:
        from featx.sweep.plot import save_plot

        save_plot(table, varied, plot)
        echo(f"picture: {plot}")
    return tell_failed([fit for row in rows for fit in row.fits], reporter)


def _csv_path(folder: Path, plan: Any, varied: tuple[str, ...]) -> Path:
    """Name the table; a name that is taken gets a number, so that nothing is overwritten."""
    words = [*varied, Path(plan.data).name, *plan.backbone]
    stem = "sweep-" + "-".join(re.sub(r"[^\w.+-]+", "_", word) for word in words)
    path, n = folder / f"{stem}.csv", 1
    while path.exists():
        n += 1
        path = folder / f"{stem}-{n}.csv"
    return path
