"""``featx import``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featx.cli.options import cache_option, common_options
from featx.cli.output import echo
from featx.progress import Reporter

__all__ = ["command"]


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="What the features are called, as a backbone is.")
@click.option("--data", required=True, help="Name of the data set; splits of one name are paired.")
@click.option("--split", help="train, val or test.  [default: the array split, or all]")
@click.option("--features", help="Array or column of features.  [default: features, X, ...]")
@click.option("--labels", help="Array, column or file of classes.  [default: labels, y, ...]")
@click.option("--paths", help="Array, column or file of images' paths.  [default: paths, ...]")
@click.option("--splits", help="Array, column or file of splits.  [default: split, ...]")
@click.option("--images", help="Folder of the images, relative to which paths are: hashes them.")
@click.option("--made-by", help="Program or network that made the features; part of what they are.")
@click.option(
    "--store-dtype",
    type=click.Choice(["float16", "float32"]),
    help="Type of the features.  [default: float16 where they are that, else float32]",
)
@cache_option
@click.option("--overwrite", is_flag=True, help="Replace caches of other features.")
@common_options
def command(file: Path, reporter: Reporter, **options: Any) -> None:
    """Make caches of features that another program computed.

    FILE is .npz, .npy, .parquet or .h5: features (N, D) and labels (N), as  featx export  writes
    them. With them fit, compare and the search for leaks work as with any other cache.
    """
    from featx.feature_files import open_features
    from featx.own_features import import_features

    names = {key: options.pop(key) for key in ("features", "labels", "paths", "splits")}
    with open_features(file, **names) as found:
        for cache in import_features(
            found,
            backbone=options["name"],
            data=options["data"],
            split=options["split"],
            images=options["images"],
            made_by=options["made_by"],
            dtype=options["store_dtype"],
            folder=options["cache_dir"],
            overwrite=options["overwrite"],
            reporter=reporter,
        ):
            path = Path(options["cache_dir"], cache.path.name)
            shape = f"{len(cache):,} x {cache.n_features:,} {cache.X.stored_dtype.name}"
            echo(f"{path}: {shape}, {len(cache.class_names)} classes")
            cache.close()
