"""``featx verify``."""

from __future__ import annotations

from pathlib import Path

import click

from featx.cli.options import common_options
from featx.errors import CacheError
from featx.progress import Reporter

__all__ = ["command"]


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@common_options
def command(files: tuple[Path, ...], reporter: Reporter) -> None:
    """Read every byte of cache FILES and compare it with the digests inside.

    Prints what is damaged, by dataset and rows; exit code 1 where anything is.
    """
    from featx.store import verify_file

    n_damaged = 0
    for file in files:
        damages = verify_file(file, reporter)
        n_damaged += bool(damages)
        click.echo(f"{file}: {'DAMAGED' if damages else 'intact'}")
        for damage in damages:
            click.echo(f"  {damage}")
    if n_damaged:
        raise CacheError(
            f"{n_damaged} of {len(files)} files are damaged: run  featx repair FILE  on a cache; "
            "of a packed archive take another copy, or pack it again"
        )
