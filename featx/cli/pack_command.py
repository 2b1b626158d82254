"""``featx pack``."""

from __future__ import annotations

from pathlib import Path

import click

from featx.cli.options import common_options
from featx.progress import Reporter

__all__ = ["command"]


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="Archive.  [default: NAME.featx.h5]"
)
@click.option(
    "--codec",
    type=click.Choice(["gzip", "zstd"]),
    default="gzip",
    show_default=True,
    help="Any HDF5 reader knows gzip; zstd is faster, and needs the extra pack.",
)
@click.option("--level", type=int, help="1 to 9 (gzip), 1 to 22 (zstd).  [default: 4, zstd 1]")
@click.option("--overwrite", is_flag=True, help="Replace an archive of this name.")
@common_options
def command(
    file: Path,
    output: Path | None,
    codec: str,
    level: int | None,
    overwrite: bool,
    reporter: Reporter,
) -> None:
    """Write a compressed copy of the cache FILE, for archives.

    Every row is verified on the way; the cache itself stays as it is.
    """
    from featx.store.pack import pack_cache

    report = pack_cache(
        file, output, codec=codec, level=level, overwrite=overwrite, reporter=reporter
    )
    ratio = report.source_bytes / report.n_bytes
    click.echo(
        f"{report.path}: {report.source_bytes / 1e6:,.1f} MB became {report.n_bytes / 1e6:,.1f} MB "
        f"(ratio {ratio:.2f}) in {report.seconds:.1f} s"
    )
