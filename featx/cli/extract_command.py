"""``featx extract``."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import click

from featx.cli.json_output import echo_json, json_option
from featx.cli.options import (
    DATA_HELP,
    INPUT_SIZE,
    PER_CLASS,
    ListCommand,
    RenamedOption,
    bits_option,
    cache_option,
    class_options,
    cluster_options,
    code_option,
    common_options,
    engine_options,
    layout_options,
    list_option,
)
from featx.cli.output import echo
from featx.errors import UsageError
from featx.progress import Reporter
from featx.words import RAY, check_engine

__all__ = ["command"]


@click.command(cls=ListCommand)
@list_option("--backbone", required=True, help="Names, timm/NAME, or module:function.")
@click.option("--data", default="cifar10", show_default=True, help=DATA_HELP)
@list_option("--split", help="Splits to extract.  [default: all that the data have]")
@layout_options
@class_options
@list_option("--layer", help="Layers to cache, in one pass.  [default: the last feature map]")
@click.option(
    "--pool",
    default="none",
    show_default=True,
    help="none, avg, max, cls (class token) or avg+cls.",
)
@click.option("--input-size", type=INPUT_SIZE, help="[default: the size of the weights]")
@click.option("--crop-pct", type=float, help="Ratio of crop to resize, overrides the weights'.")
@click.option("--interpolation", help="Filter of the resize, overrides the weights'.")
@click.option("--mean", type=float, nargs=3, help="RGB mean, overrides the weights'.")
@click.option("--std", type=float, nargs=3, help="RGB deviation, overrides the weights'.")
@bits_option
@click.option(
    "--preprocess",
    default="correct",
    show_default=True,
    help="A mistake to make on purpose: half-range, divide-only, divide-twice, bgr or raw.",
)
@engine_options
@click.option(
    "--cache-per-class",
    "--per-class",
    "per_class",
    cls=RenamedOption,
    type=PER_CLASS,
    help="Cache only N training images a class.",
)
@click.option("--test-per-class", type=PER_CLASS, help="Cache only M test images a class.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of that draw.")
@cache_option
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace caches that were made differently; try failed rows again.",
)
@click.option(
    "--append",
    is_flag=True,
    help="Add new images to finished caches, mend damaged ones, try failed rows again: good rows "
    "are kept.",
)
@click.option(
    "--on-error",
    type=click.Choice(["skip", "raise"]),
    default="skip",
    show_default=True,
    help="Mark an image that cannot be decoded as failed, or stop.",
)
@click.option(
    "--shard",
    metavar="I/N",
    help="Compute the I-th of N shares, into a folder NAME.shards; other processes, on any machine "
    "that sees the folder, compute the others.",
)
@click.option(
    "--shard-rows",
    type=click.IntRange(1),
    help="Rows of each file in that folder.  [default: 8192]",
)
@cluster_options
@click.option(
    "--num-gpus-per-worker",
    "gpus_per_worker",
    type=click.FloatRange(0),
    help="With --engine ray.  [default: 1 where the cluster has GPUs]",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what would be computed, its bytes and how long it takes here; write nothing.",
)
@click.option("--profile", is_flag=True, help="Print where the time went, as a table.")
@code_option
@json_option
@common_options
def command(  # noqa: PLR0913
    *,
    reporter: Reporter,
    shard: str | None,
    shard_rows: int | None,
    dry_run: bool,
    profile: bool,
    allow_code: tuple[str, ...],
    as_json: bool,
    engine: str,
    address: str | None,
    gpus_per_worker: float | None,
    **options: Any,
) -> None:
    """Run a backbone once over a data set and cache its features.

    The same command again goes on where an interrupted one stopped.
    """
    from featx.extract import Plan, Share, estimate_plan, run_plan

    check_engine(engine, address)
    is_sharded = shard is not None or shard_rows is not None
    is_of_one_process = bool(shard or dry_run or profile)
    _check_options_of(engine == RAY, is_of_one_process, has_gpus=gpus_per_worker is not None)
    plan = Plan(**options, allow_code=(*options["backbone"], *allow_code))
    share = Share.parse("1/1" if shard is None else shard) if is_sharded else None
    if dry_run:
        for line in estimate_plan(plan, reporter, share=share, shard_rows=shard_rows):
            echo(line)
        return

    def tell(text: str) -> None:
        for line in text.splitlines():
            (reporter.say if as_json else echo)(line)

    if engine == RAY:
        from featx.extract import Cluster, run_on_ray  # like shards, it loads torch

        cluster = Cluster(address, gpus_per_worker)
        reports = run_on_ray(plan, cluster, shard_rows, reporter, tell=tell)
    elif share is not None:
        from featx.extract import run_shards

        reports = run_shards(plan, share, shard_rows, reporter, tell=tell, profile=profile)
    else:
        reports = run_plan(plan, reporter, tell=tell, profile=profile)
    if as_json:
        echo_json([asdict(replace(report, times=None)) for report in reports])


def _check_options_of(is_on_ray: bool, is_of_one_process: bool, *, has_gpus: bool) -> None:
    """Refuse options of the other engine."""
    if has_gpus and not is_on_ray:
        raise UsageError("--num-gpus-per-worker is for workers of Ray: give  --engine ray  too")
    if is_of_one_process and is_on_ray:
        raise UsageError("--shard, --dry-run and --profile are for one process: not --engine ray")
