"""``featx extract``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli.options import (
    DATA_HELP,
    ListCommand,
    cache_option,
    class_options,
    common_options,
    list_option,
)
from featx.errors import UsageError
from featx.progress import Reporter

if TYPE_CHECKING:
    from featx.backbones import Backbone
    from featx.engines import LocalEngine
    from featx.extract import Sample
    from featx.sources import Source

__all__ = ["Plan", "command", "run"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that was typed after ``featx extract``, by the names of the options."""

    backbone: tuple[str, ...]
    data: str = "cifar10"
    split: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    map: tuple[str, ...] = ()
    weights: str | None = None
    layer: str | None = None
    pool: str = "none"
    input_size: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    precision: str = "fp32"
    store_dtype: str = "float16"
    batch_size: int | None = None
    workers: int | None = None
    device: str = "auto"
    per_class: int | None = None
    test_per_class: int | None = None
    seed: int = 0
    cache_dir: str = "cache"
    overwrite: bool = False
    on_error: str = "skip"
    append: bool = False

    @property
    def overrides(self) -> dict[str, Any]:
        """Changes to the weights' own preprocessing that were asked for."""
        names = ("input_size", "crop_pct", "interpolation", "mean", "std")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def request(self, backbone: str) -> dict[str, Any]:
        """Give what decides the features of one backbone, to be recorded and asked again.

        Parameters
        ----------
        backbone : str
            One of those typed.

        Returns
        -------
        dict
            Keyword arguments of `Plan`, as plain values; paths are absolute.
        """
        skipped = ("cache_dir", "overwrite", "append", "split", "device", "workers", "on_error")
        values = {k: v for k, v in asdict(self).items() if v is not None and k not in skipped}
        values["backbone"] = [backbone]
        for name in ("data", "weights"):
            if name in values and Path(values[name]).exists() and not _is_name(values[name]):
                values[name] = str(Path(values[name]).absolute())
        return values


@click.command(cls=ListCommand)
@list_option("--backbone", required=True, help="Names, as in  featx list backbones.")
@click.option("--data", default="cifar10", show_default=True, help=DATA_HELP)
@list_option("--split", help="Splits to extract.  [default: all that the data have]")
@class_options
@click.option("--weights", help="Tag (IMAGENET1K_V1), file (.pth, .safetensors), or random.")
@click.option("--layer", help="Tap point.  [default: the last convolutional feature map]")
@click.option(
    "--pool", default="none", show_default=True, help="none, avg, max, cls (class token) or avg+cls."
)
@click.option("--input-size", type=int, help="Pixels.  [default: the size of the weights]")
@click.option("--crop-pct", type=float, help="Ratio of crop to resize, overrides the weights'.")
@click.option("--interpolation", help="Filter of the resize, overrides the weights'.")
@click.option("--mean", type=float, nargs=3, help="RGB mean, overrides the weights'.")
@click.option("--std", type=float, nargs=3, help="RGB deviation, overrides the weights'.")
@click.option("--precision", default="fp32", show_default=True, help="fp32, bf16, fp16 or auto.")
@click.option(
    "--store-dtype",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="Type of the cached features.",
)
@click.option("--batch-size", "-b", type=int, help="Images at once.  [default: 16, on a GPU 128]")
@click.option("--workers", "-j", type=int, help="Decoding processes; 0 for none.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--per-class", type=click.IntRange(1), help="Cache only N training images a class.")
@click.option("--test-per-class", type=click.IntRange(1), help="Cache only M test images a class.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of that draw.")
@cache_option
@click.option("--overwrite", is_flag=True, help="Replace caches that were made differently.")
@click.option(
    "--append",
    is_flag=True,
    help="Add new images to finished caches, or mend damaged ones: good rows are kept.",
)
@click.option(
    "--on-error",
    type=click.Choice(["skip", "raise"]),
    default="skip",
    show_default=True,
    help="Mark an unreadable image as failed, or stop.",
)
@common_options
def command(reporter: Reporter, **options: Any) -> None:
    """Run a backbone once over a data set and cache its features.

    The same command again goes on where an interrupted one stopped.
    """
    run(Plan(**options), reporter)


def run(plan: Plan, reporter: Reporter, *, target: Path | None = None) -> None:
    """Extract every split of the data with every backbone.

    Parameters
    ----------
    plan : Plan
        What to do.
    reporter : Reporter
        Shows what is done.
    target : Path, optional
        The file, where it is one backbone and one split; named by its settings by default.
    """
    from featx.backbones import available_backbones
    from featx.engines import LocalEngine, resolve_device, resolve_precision
    from featx.errors import unknown_name
    from featx.extract import Sample, take_sample
    from featx.sources import ClassChoice, open_data

    for name in plan.backbone:
        if name not in available_backbones():
            raise unknown_name("backbone", name, available_backbones(), see="featx list backbones")
    device = resolve_device(plan.device)
    precision, why = resolve_precision(plan.precision, device)
    engine = LocalEngine(device, precision, plan.batch_size, plan.workers)
    classes = ClassChoice.parse(plan.classes, plan.drop, plan.map)
    sample = Sample(plan.per_class, plan.test_per_class, plan.seed, classes)
    splits = _chosen(open_data(plan.data, reporter=reporter), plan)
    sources = [take_sample(source, sample) for source in splits.values()]
    reporter.say(f"device {device}, precision {precision} ({why})")
    for name in plan.backbone:
        _extract_backbone(name, sources, engine, sample, plan, reporter, target)


def _is_name(word: str) -> bool:
    from featx.sources import available_data

    return word in available_data()


def _chosen(splits: Mapping[str, Source], plan: Plan) -> dict[str, Source]:
    unknown = [name for name in plan.split if name not in splits]
    if unknown:
        raise UsageError(
            f"{plan.data} has no split {unknown[0]!r}: choose from {', '.join(splits)}"
        )
    # Images without labels serve no fit: they are extracted where they are asked for.
    wanted = plan.split or [name for name in splits if name != "unlabeled" or len(splits) == 1]
    return {name: source for name, source in splits.items() if name in wanted}


def _extract_backbone(
    name: str,
    sources: list[Source],
    engine: LocalEngine,
    sample: Sample,
    plan: Plan,
    reporter: Reporter,
    target: Path | None,
) -> None:
    from featx.backbones import open_backbone
    from featx.extract import Settings, cache_path, extract

    settings = Settings(
        sample=sample,
        store_dtype=plan.store_dtype,
        overrides=plan.overrides,
        overwrite=plan.overwrite,
        on_error=plan.on_error,
        reuse=plan.append,
        request=plan.request(name),
    )
    backbone = open_backbone(
        name,
        weights=plan.weights,
        layer=plan.layer,
        pool=plan.pool,
        overrides=plan.overrides,
        reporter=reporter,
    )
    reporter.say(_describe(backbone))
    for source in sources:
        path = target or cache_path(Path(plan.cache_dir), source, backbone, engine, settings)
        report = extract(source, backbone, engine, path, settings, reporter=reporter)
        done = (
            f"{report.n_computed:,} images in {report.seconds:.1f} s"
            if report.n_computed
            else "was complete already"
        )
        size = f"{report.n_images:,} x {backbone.n_features:,} {plan.store_dtype}"
        click.echo(f"{report.path}: {size}, {report.n_bytes / 1e6:,.0f} MB, {done}")


def _describe(backbone: Backbone) -> str:
    shape = " x ".join(str(n) for n in backbone.feature_shape)
    return (
        f"{backbone.name}, weights {backbone.weights.label}, layer {backbone.layer}, "
        f"pool {backbone.pool}: {shape} = {backbone.n_features:,} features\n"
        f"preprocessing: {backbone.preprocessing.describe()}"
    )
