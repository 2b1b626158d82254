"""``featx reproduce``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli.options import (
    ListCommand,
    cache_option,
    code_option,
    common_options,
    list_option,
    reports_option,
)
from featx.cli.output import echo
from featx.errors import FeatxError, UsageError
from featx.progress import Reporter
from featx.stops import check
from featx.text import text_table

if TYPE_CHECKING:
    from featx.reproduce import Options, Outcome, Recipe

__all__ = ["command"]


@click.command(cls=ListCommand)
@click.argument("names", nargs=-1, metavar="[NAMES]")
@click.option("--list", "is_list", is_flag=True, help="List the recipes and stop.")
@click.option("--all", "is_all", is_flag=True, help="Run every recipe that featx brings.")
@click.option(
    "--scale",
    type=click.Choice(["full", "small"]),
    default="full",
    show_default=True,
    help="small: fewer images and epochs, for machines without a GPU.",
)
@list_option("--data", metavar="NAME=PLACE", help="Where a data set lies: cifar10=FOLDER.")
@list_option("--backbone", metavar="NAME=OTHER", help="Another backbone in place of a recipe's.")
@list_option("--weights", metavar="NAME=FILE", help="Weights of a backbone: file, tag or random.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--precision", help="fp32, bf16, fp16 or auto.  [default: the recipe's]")
@click.option("--workers", "-j", type=int, help="Decoding processes; 0 for none.")
@cache_option
@reports_option
@code_option
@common_options
def command(
    names: tuple[str, ...],
    is_list: bool,
    is_all: bool,
    allow_code: tuple[str, ...],
    reporter: Reporter,
    **options: Any,
) -> int:
    """Run published systems again, and print what was reported beside what is measured.

    NAMES are names of recipes, beginnings of names (klimack-recio runs all of that source), or
    TOML files of your own. What a recipe needs is looked for, and downloaded where it is not
    here, before anything runs. The same command again goes on where an interrupted one stopped.
    """
    from featx.reproduce import Options, all_recipes, find_recipes, read_pairs

    for name in ("data", "backbone", "weights"):
        options[name] = read_pairs(f"--{name}", options[name])
    chosen = Options(**options)
    if is_all and names:
        raise UsageError("--all runs every recipe: leave the names out, or --all")
    allow_code += tuple(chosen.backbone.values())
    recipes = find_recipes(names, allow_code) if names else list(all_recipes())
    if is_list:
        echo(_listed(recipes))
        return 0
    if not (names or is_all):
        raise UsageError("name recipes, or give --all; see  featx reproduce --list")
    return _run([chosen.apply(recipe) for recipe in recipes], chosen, reporter)


def _listed(recipes: Sequence[Recipe]) -> str:
    header = ("recipe", "source", "system", "per class", "reported", "time, s")
    rows = [
        (
            recipe.name,
            recipe.system.source,
            recipe.system.title,
            "" if recipe.reported.per_class is None else str(recipe.reported.per_class),
            "" if recipe.reported.accuracy is None else f"{recipe.reported.accuracy:g}",
            "" if recipe.reported.seconds is None else f"{recipe.reported.seconds:,.0f}",
        )
        for recipe in recipes
    ]
    return text_table(header, rows, has_rule=False)


def _run(recipes: Sequence[Recipe], options: Options, reporter: Reporter) -> int:
    from featx.reproduce import Needs, Outcome, save_recipe, save_source

    needs = Needs(reporter)
    missing = {recipe.name: needs.missing(recipe) for recipe in recipes}
    _tell_missing(missing)
    if all(missing.values()):
        return 1
    n_failed = sum(bool(lines) for lines in missing.values())
    folder = Path(options.reports_dir)
    tables = {}
    for i, recipe in enumerate(recipes, 1):
        reporter.say(f"recipe {i} of {len(recipes)}: {recipe.name}, scale {recipe.scale}")
        if missing[recipe.name]:
            outcomes = [Outcome.not_run(recipe, "; ".join(missing[recipe.name]))]
        else:
            outcomes = _outcomes(recipe, options, reporter)
            n_failed += any(outcome.problem for outcome in outcomes)
        # After each recipe, so that an interrupted run keeps what is done.
        save_recipe(folder, recipe, outcomes)
        source = recipe.system.source
        tables[source] = save_source(folder, source, reporter)
    for table in tables.values():
        echo(f"\n{table.text}\ntable: {table.csv}, {table.txt}")
    return int(n_failed > 0)


def _tell_missing(missing: dict[str, list[str]]) -> None:
    lines: dict[str, list[str]] = {}
    for name, problems in missing.items():
        for problem in problems:
            lines.setdefault(problem, []).append(name)
    for problem, names in lines.items():
        echo(f"missing for {', '.join(names)}: {problem}", err=True)


def _outcomes(recipe: Recipe, options: Options, reporter: Reporter) -> list[Outcome]:
    from featx.reproduce import Outcome, run_recipe

    try:
        return run_recipe(recipe, options, reporter, reporter.say)
    except FeatxError as error:
        check()
        reporter.warn(f"{recipe.name}: {error}")
        return [Outcome.not_run(recipe, str(error))]
