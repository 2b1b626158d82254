"""``featx merge``."""

from __future__ import annotations

from pathlib import Path

import click

from featx.cli.options import common_options
from featx.cli.output import echo
from featx.progress import Reporter
from featx.text import size_text

__all__ = ["command"]


@click.command()
@click.argument("place", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="Cache file.  [default: NAME.h5]"
)
@click.option("--overwrite", is_flag=True, help="Replace a cache of other features.")
@common_options
def command(place: Path, output: Path | None, overwrite: bool, reporter: Reporter) -> None:
    """Write one cache file of all shards of PLACE, a folder NAME.shards.

    Every row is verified on the way; the shards stay as they are. The same command again goes on
    where an interrupted one stopped.
    """
    from featx.store.merge import merge_shards

    file, is_new = merge_shards(place, output, overwrite=overwrite, reporter=reporter)
    state = size_text(file.stat().st_size) if is_new else "is there already, of the same rows"
    echo(f"{file}: {state}")
