"""``featx explore``."""

from __future__ import annotations

from pathlib import Path

import click

from featx.cli.options import NumberOr, common_options
from featx.cli.output import echo
from featx.progress import Reporter

__all__ = ["command"]

_LIMIT = 1_500


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "-f",
    "form",
    type=click.Choice(["page", "atlas"]),
    default="page",
    show_default=True,
    help="A page, or a Parquet file for Embedding Atlas.",
)
@click.option(
    "--map",
    "drawn",
    type=click.Choice(["pca", "umap"]),
    default="pca",
    show_default=True,
    help="How two dimensions are made; umap needs  pip install 'featx[umap]'.",
)
@click.option(
    "--limit",
    type=NumberOr("all", "N"),
    help=f"Images to look at, drawn at random.  [default: {_LIMIT:,} for a page, all for atlas]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write.  [default: reports/explore-NAME.html, or .parquet]",
)
@common_options
def command(
    file: Path, form: str, drawn: str, limit: int | str | None, out: Path | None, reporter: Reporter
) -> None:
    """Look at the images of the cache FILE: a map, neighbours, likely wrong labels, duplicates.

    The page is one file that opens in a browser from disk and needs no network. For large caches
    write  --format atlas  and open that with Embedding Atlas.
    """
    from featx.report.explore import look_at, write_atlas, write_map
    from featx.store import open_any

    most = limit or (_LIMIT if form == "page" else "all")
    path = out or Path("reports") / f"explore-{file.stem}.{'html' if form == 'page' else 'parquet'}"
    with open_any(file) as cache:
        found = look_at(cache, most if isinstance(most, int) else None, drawn, reporter)
        if form == "page":
            write_map(cache, found, path, drawn, reporter)
        else:
            write_atlas(cache, found, path, reporter)
    counts = (
        f"{len(found.rows):,} images, {len(found.suspects):,} likely wrong labels, "
        f"{len(found.twins):,} near-duplicates"
    )
    if form == "page":
        echo(f"{counts}: open {path} in a browser")
        return
    echo(f"{counts}: {path}; look at it with")
    echo(
        f"  pip install embedding-atlas && embedding-atlas {path} --x projection_x "
        "--y projection_y --neighbors neighbors --image image"
    )
