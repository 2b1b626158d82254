"""``featx bench``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from featx.cli.options import (
    DATA_HELP,
    INPUT_SIZE,
    ListCommand,
    code_option,
    common_options,
    layout_options,
    list_option,
)
from featx.cli.output import echo
from featx.progress import Reporter

__all__ = ["command"]

_SIZE = (500, 375)


@click.command(cls=ListCommand)
@list_option("--backbone", required=True, help="Names, as for  featx extract.")
@click.option("--data", help=f"{DATA_HELP}  [default: pictures made for it]")
@click.option(
    "--images", type=click.IntRange(64), default=512, show_default=True, help="Pictures to make."
)
@click.option(
    "--image-size",
    type=click.IntRange(8),
    nargs=2,
    default=_SIZE,
    show_default=True,
    help="Their width and height in pixels.",
)
@click.option(
    "--weights", default="random", show_default=True, help="As for featx extract; rates are alike."
)
@click.option("--weights-key", help="Entry of the file, as in featx extract.")
@click.option("--layer", help="Layer.  [default: the last feature map]")
@click.option("--pool", default="none", show_default=True, help="As for featx extract.")
@click.option("--input-size", type=INPUT_SIZE, help="[default: the size of the weights]")
@list_option("--precision", default=("fp32",), show_default=True, help="fp32 bf16 fp16 auto.")
@list_option(
    "--runtime", default=("torch",), show_default=True, help="torch compile openvino auto."
)
@click.option(
    "--store-dtype",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="Type of the features.",
)
@click.option("--batch-size", "-b", type=int, help="Images at once.")
@click.option("--workers", "-j", type=int, help="Decoding processes; 0 for none.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--seconds", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Per extraction."
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="In turns.")
@click.option(
    "--cache",
    "folder",
    type=click.Path(path_type=Path),
    help="Folder on the disk to measure.  [default: the temporary one]",
)
@layout_options
@code_option
@common_options
def command(reporter: Reporter, folder: Path | None, **options: Any) -> None:
    """Measure extractions against the ceilings of this machine.

    Decoding alone, the bare forward pass on one resident batch, the disk alone, and a whole
    extraction, in turns; nothing is kept. Prints images per second, the ratios of the whole to the
    least of these ceilings and to the forward pass, and what holds it back.
    """
    from featx.bench import advise, bench, make_pictures, to_table
    from featx.evaluate import format_table
    from featx.extract import Plan

    n_images, (width, height) = options.pop("images"), options.pop("image_size")
    choices = {name: options.pop(name) for name in ("seconds", "rounds")}
    lists = {f"{name}s": options.pop(name) for name in ("precision", "runtime")}
    layer = options.pop("layer")
    with tempfile.TemporaryDirectory(prefix="featx-pictures-") as pictures:
        if options["data"] is None:
            reporter.say(f"making {n_images} pictures of {width} x {height} pixels")
            make_pictures(Path(pictures), n_images, width, height)
            options["data"] = pictures
        options["allow_code"] += options["backbone"]
        plan = Plan(**options, layer=(layer,) if layer else ())
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        rows = list(bench(plan, **lists, **choices, folder=folder, reporter=reporter))
    table = to_table(rows)
    echo(format_table(table, table.columns))
    echo("decode, forward, write: images/s of each alone; extract: of all together")
    for row in rows:
        echo(advise(row))
