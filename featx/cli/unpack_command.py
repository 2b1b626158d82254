"""``featx unpack``."""

from __future__ import annotations

from pathlib import Path

import click

from featx.cli.options import common_options
from featx.progress import Reporter

__all__ = ["command"]


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="Cache file.  [default: NAME.h5]"
)
@click.option("--overwrite", is_flag=True, help="Replace a cache of other features.")
@common_options
def command(file: Path, output: Path | None, overwrite: bool, reporter: Reporter) -> None:
    """Give back the cache that was packed into FILE, bit by bit the same.

    Every row is verified; the same command again goes on where an interrupted one
    stopped.
    """
    from featx.store.pack import unpack_cache

    report = unpack_cache(file, output, overwrite=overwrite, reporter=reporter)
    if report.is_new:
        click.echo(f"{report.path}: {report.n_bytes / 1e6:,.1f} MB in {report.seconds:.1f} s")
    else:
        click.echo(f"{report.path}: is there already, and the same")
