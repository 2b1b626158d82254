"""``featx compare``."""

from __future__ import annotations

import click

from featx.cli.json_output import echo_json, json_option
from featx.cli.options import (
    PER_CLASS,
    ListCommand,
    cache_option,
    common_options,
    list_option,
    reports_option,
)
from featx.progress import Reporter

__all__ = ["command"]


@click.command(cls=ListCommand, least=2)
@click.argument("systems", nargs=-1, required=True, metavar="A B...")
@list_option("--data", help="Only fits on these data sets.")
@list_option("--backbone", help="Only fits of these backbones.")
@list_option("--layer", help="Only fits of these layers.")
@list_option("--clf", "--head", help="Only fits of these heads.")
@list_option("--per-class", type=PER_CLASS, help="Only fits on so many images a class.")
@click.option(
    "--format",
    "-f",
    "form",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
    help="What to print.",
)
@json_option
@cache_option
@reports_option
@common_options
def command(
    systems: tuple[str, ...],
    form: str,
    as_json: bool,
    cache_dir: str,
    reports_dir: str,
    reporter: Reporter,
    **filters: tuple[str, ...],
) -> None:
    """Compare systems on the same draws and the same test images, from what  featx fit  kept.

    Each of A, B, ... is one or more words, joined by commas, that name values of a system:
    svm, resnet50,svm, input_size=96. All pairs are compared; every value that they leave
    open (three backbones, two sizes of subset) makes a comparison of its own, and p values are
    corrected for their number. Of fits on several caches of one name, those on a cache that is
    in --cache today are compared.
    """
    from featx.catalog import fingerprints
    from featx.evaluate import compare, format_comparison

    today = fingerprints(cache_dir)
    systems = tuple(system.rstrip(", ") for system in systems)  # "svm, logreg", as in a sentence
    frame = compare(systems, reports_dir, where=filters, today=today, reporter=reporter)
    form = "json" if as_json else form
    if form == "csv":
        click.echo(frame.to_csv(index=False), nl=False)
    elif form == "json":
        echo_json(frame.to_dict("records"))
    else:
        click.echo(format_comparison(frame))
