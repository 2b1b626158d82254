"""``featx reports``: list, prune."""

from __future__ import annotations

from pathlib import Path

import click

from featx.cli.options import (
    ListCommand,
    cache_option,
    common_options,
    measures_option,
    reports_option,
)
from featx.cli.output import echo
from featx.errors import CacheError, UsageError
from featx.progress import Reporter
from featx.text import count_of, size_text

__all__ = ["command"]

_MOST_SHOWN = 20


@click.group()
def command() -> None:
    """List kept fits, or remove those that nothing reads any more."""


@command.command("list", cls=ListCommand)
@measures_option
@reports_option
@common_options
def list_command(measures: tuple[str, ...], reports_dir: str, reporter: Reporter) -> None:
    """Print one table of every fit and training that --reports keeps.

    One line for each question: draws of other settings, or of another --seed, are lines of their
    own.
    """
    from featx.evaluate import ResultsFolder, format_table, read_results, summarise
    from featx.evaluate.systems import find_idle

    results = ResultsFolder(_folder(reports_dir), reporter)
    table = summarise(read_results(reports_dir, reporter=reporter), measures)
    echo(format_table(table))
    n_idle, n_all = len(find_idle(results)), len(results.all_rows())
    idle = f"; {n_idle} are idle:  featx reports prune  removes them" if n_idle else ""
    fits, size = count_of(n_all, "fit"), size_text(results.n_bytes())
    echo(f"{fits} in {results.folder / 'fits'}, {size}{idle}")


@command.command("prune")
@click.argument("systems", nargs=-1, metavar="[SYSTEMS]")
@click.option("--gone", is_flag=True, help="Also fits on caches that are not in --cache any more.")
@cache_option
@reports_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@common_options
def prune_command(
    systems: tuple[str, ...],
    gone: bool,
    cache_dir: str,
    reports_dir: str,
    yes: bool,
    reporter: Reporter,
) -> None:
    """Remove the JSON files of fits that give no line of the table; asks first.

    These are fits that were made again later, and damaged files. With SYSTEMS, in the words of
    featx compare (svm, data=photos,clf=mlp), the fits of these in their place. Models and curves
    stay.
    """
    from featx.catalog import fingerprints
    from featx.evaluate import ResultsFolder
    from featx.evaluate.systems import find_idle, find_named

    if gone and systems:
        raise UsageError("--gone is for fits of any system: leave the words out, or --gone")
    if gone and not Path(cache_dir).is_dir():
        raise CacheError(f"there is no cache folder {cache_dir}: name it with --cache DIR")
    results = ResultsFolder(_folder(reports_dir), reporter)
    today = fingerprints(cache_dir) if gone else None
    found = find_named(results, systems) if systems else find_idle(results, today)
    if not found:
        echo(f"nothing to remove in {reports_dir}")
        return
    for name, reason in list(found.items())[:_MOST_SHOWN]:
        echo(f"{results.folder / 'fits' / name}: {reason}")
    if len(found) > _MOST_SHOWN:
        echo(f"and {len(found) - _MOST_SHOWN} more")
    if yes or click.confirm(f"remove {count_of(len(found), 'file')} for good?"):
        echo(f"removed {len(found)}, freed {size_text(results.remove(found))}")
    else:
        echo("nothing was removed (--yes does not ask)")


def _folder(reports_dir: str) -> Path:
    path = Path(reports_dir)
    if not path.is_dir():
        raise UsageError(f"there is no folder {path}: run  featx fit  first, or name --reports DIR")
    return path
