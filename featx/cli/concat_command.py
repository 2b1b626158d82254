"""``featx concat``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import click

from featx.cli.options import cache_option, common_options
from featx.cli.output import echo
from featx.progress import Reporter

__all__ = ["command"]


@click.command()
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--name", help="What the features are called.  [default: the names joined by +]")
@cache_option
@click.option("--overwrite", is_flag=True, help="Replace a cache of other features.")
@common_options
def command(
    files: tuple[Path, ...], name: str | None, cache_dir: str, overwrite: bool, reporter: Reporter
) -> None:
    """Put the features of the caches FILES, of the same images, side by side.

    Images are found by the digests of their bytes; labels and order are those of the first file.
    """
    from featx.concat import concat_caches
    from featx.store import open_any

    with ExitStack() as stack:
        caches = [stack.enter_context(open_any(file)) for file in files]
        made = stack.enter_context(
            concat_caches(
                caches, backbone=name, folder=cache_dir, overwrite=overwrite, reporter=reporter
            )
        )
        file = Path(cache_dir, made.path.name)
        echo(f"{file}: {len(made):,} x {made.n_features:,} {made.X.stored_dtype.name}")
