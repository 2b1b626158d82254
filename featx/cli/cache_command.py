"""``featx cache``: list, remove, tidy up, publish."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from featx.cli.options import cache_option, common_options
from featx.cli.output import echo
from featx.progress import Reporter
from featx.stops import check
from featx.text import count_of, size_text, text_table
from featx.urls import join, shown

__all__ = ["command"]

_UNITS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))


@click.group()
def command() -> None:
    """List, remove, tidy up or publish cache files."""


@command.command("list")
@cache_option
@common_options
def list_command(cache_dir: str, reporter: Reporter) -> None:
    """List every cache: size, age, what made it, and how far it is."""
    from featx.housekeeping import list_entries

    del reporter
    entries = list_entries(cache_dir)
    rows = [
        (str(e.path), e.state, size_text(e.n_bytes), _age(e.age_seconds), e.made_by)
        for e in entries
    ]
    if rows:
        _print_table([("file", "state", "size", "age", "made by"), *rows])
    n_bytes = sum(entry.n_bytes for entry in entries)
    echo(f"{count_of(len(entries), 'file')} in {cache_dir}, {size_text(n_bytes)}")


@command.command("rm")
@click.argument("names", nargs=-1, required=True)
@cache_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@common_options
def remove_command(names: tuple[str, ...], cache_dir: str, yes: bool, reporter: Reporter) -> None:
    """Remove caches and places of shards by NAMES, and what was begun of them; asks first.

    A cache that is being written is never removed. Programs that have a removed
    file open go on reading it.
    """
    from featx.housekeeping import list_entries, plan_removal, remove
    from featx.store.recognise import PLACE_MANIFEST

    del reporter
    paths = plan_removal(cache_dir, names)
    for entry in list_entries(cache_dir):
        if entry.path in paths or entry.path / PLACE_MANIFEST in paths:
            echo(f"{entry.path} ({entry.state}, {size_text(entry.n_bytes)}): {entry.made_by}")
    if _may(yes, f"remove {count_of(len(paths), 'file')} for good?"):
        echo(f"removed {len(paths)}, freed {size_text(remove(paths))}")


@command.command("gc")
@cache_option
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    default=7.0,
    show_default=True,
    metavar="DAYS",
    help="Leave what was written since.",
)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@common_options
def collect_command(cache_dir: str, older_than: float, yes: bool, reporter: Reporter) -> None:
    """Remove what stopped runs left: partial files, journals, locks, temporary files.

    Shows them and asks first. Finished caches, and files of others, stay.
    """
    from featx.housekeeping import find_garbage, remove

    garbage, notices = find_garbage(cache_dir, older_than)
    for notice in notices:
        reporter.say(notice)
    if not garbage:
        echo(f"nothing older than {older_than:g} days to remove in {cache_dir}")
        return
    rows = [(str(g.path), g.reason, size_text(g.n_bytes), _age(g.age_seconds)) for g in garbage]
    _print_table([("file", "what", "size", "age"), *rows])
    n_bytes = sum(item.n_bytes for item in garbage)
    if _may(yes, f"remove these {len(garbage)}, and free {size_text(n_bytes)}?"):
        freed = remove(item.path for item in garbage)
        echo(f"removed {len(garbage)}, freed {size_text(freed)}")


@command.command("publish")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("url")
@common_options
def publish_command(files: tuple[Path, ...], url: str, reporter: Reporter) -> None:
    """Write finished cache FILES, or places of shards, to the folder URL (s3:// or gs://).

    Every file is checked first, and gets its SHA-256 beside it. What is there already and equal
    is left; what is there with another content stays, and is an error.
    """
    from featx.errors import CacheError
    from featx.sources.transfer import publish
    from featx.store import verify_file
    from featx.store.recognise import files_below

    for file in files:
        if damages := verify_file(file, reporter):
            raise CacheError(f"{file} is not written: {damages[0].reason}")
        for path in files_below(file) if file.is_dir() else [file]:
            if path.is_file() and path.suffix != ".lock" and not path.name.startswith("."):
                target = join(url, path.relative_to(file.parent).as_posix())
                echo(f"{shown(target)}: SHA-256 {publish(path, target, reporter)}")


def _may(is_sure: bool, question: str) -> bool:
    if is_sure:
        return True
    try:
        is_sure = click.confirm(question)
    except click.Abort:
        check()
        echo("")  # the standard input ended: that is no answer
    if not is_sure:
        echo("nothing was removed (--yes does not ask)")
    return is_sure


def _age(seconds: float) -> str:
    for length, unit in _UNITS:
        if seconds >= 2 * length or length == 1:
            return f"{seconds / length:.0f} {unit}"
    return ""


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    echo(text_table(rows[0], rows[1:], has_rule=False))
