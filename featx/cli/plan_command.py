"""``featx plan``."""

from __future__ import annotations

from typing import Any

import click

from featx.cli.options import ListCommand, cache_option, common_options, engine_options, list_option
from featx.cli.output import echo
from featx.progress import Reporter

__all__ = ["command"]


@click.command(cls=ListCommand)
@list_option("--backbone", required=True, help="Names, timm/NAME, or module:function.")
@click.option("--images", type=float, required=True, help="Number of images: 100e6.")
@click.option("--gpus", type=int, default=1, show_default=True, help="GPUs, on any machines.")
@list_option("--layer", help="Layers to cache.  [default: the last feature map]")
@click.option("--pool", default="none", show_default=True, help="none, avg, max, cls or avg+cls.")
@click.option("--input-size", type=int, help="Pixels.  [default: the size of the weights]")
@click.option("--rate", type=float, help="Images/s of one GPU.  [default: measured here]")
@click.option("--price", type=float, help="Of one hour of one GPU, in any currency.")
@click.option(
    "--image-kb", type=float, default=110.0, show_default=True, help="Mean size of a file, in kB."
)
@click.option("--disk", type=float, metavar="TB", help="For caches.  [default: free in --cache]")
@click.option("--network", type=float, metavar="GBIT", help="Gbit/s of all machines together.")
@engine_options
@cache_option
@common_options
def command(  # noqa: PLR0913
    reporter: Reporter,
    *,
    images: float,
    gpus: int,
    rate: float | None,
    price: float | None,
    image_kb: float,
    disk: float | None,
    network: float | None,
    **options: Any,
) -> None:
    """Say what many images take on many GPUs: bytes, hours, rates, money; nothing is written."""
    from featx.errors import UsageError
    from featx.extract import Plan, Scale, forecast_plan

    if not 1 <= images < 1e15:
        raise UsageError(f"--images is {images:g}: give a number of at least 1, as in  100e6")
    scale = Scale(
        n_images=int(images),
        gpus=gpus,
        image_bytes=1e3 * image_kb,
        rate=rate,
        price=price,
        disk_bytes=None if disk is None else 1e12 * disk,
        network=None if network is None else 1e9 * network,
    )
    plan = Plan(**options, allow_code=options["backbone"])
    for line in forecast_plan(plan, scale, reporter):
        echo(line)
