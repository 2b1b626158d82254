"""What a plan for many images and GPUs takes: bytes, hours, rates and money, before any is spent.

The rate is measured here on photographs that are made up, or given; all else is arithmetic, and
every line says what it stands on.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from featx.errors import FeatxError, UsageError
from featx.extract.estimate import images_per_second, stored_bytes, there
from featx.extract.job import prepare
from featx.extract.plan import Plan, Sources
from featx.progress import SILENT, Reporter
from featx.text import size_text

if TYPE_CHECKING:
    from featx.backbones import BackboneGroup
    from featx.extract.job import Job

__all__ = ["Scale", "forecast_plan"]

_N_MADE = 2048  # rows that may be timed: all are one photograph
_WIDTH, _HEIGHT = 500, 375  # pixels, near the mean of ImageNet's photographs
_PACKED = 4.0  # features of a last convolution, zstd: benchmarks/RESULTS.md, "The cache"
_BITS = 8


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How many images and GPUs, and what is known of them; None is measured or not asked.

    `image_bytes` is the mean size of a file, `disk_bytes` what caches may take, `network` bits per
    second of all machines together, `rate` images per second of one GPU, `price` of its hour.
    """

    n_images: int
    gpus: int = 1
    image_bytes: float = 110e3
    rate: float | None = None
    price: float | None = None
    disk_bytes: float | None = None
    network: float | None = None

    def __post_init__(self) -> None:
        for name in ("n_images", "gpus", "image_bytes", "rate", "price", "disk_bytes", "network"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{name} is {value}: give a number above 0")


def forecast_plan(plan: Plan, scale: Scale, reporter: Reporter = SILENT) -> list[str]:
    """Say what the caches of each backbone take, and where that does not fit.

    Weights that are not given are random: sizes and times do not depend on them.
    """
    plan = replace(plan, weights=plan.weights or "random")
    job = prepare(plan, reporter, _made_up)
    lines = [f"{scale.n_images:,} images, {scale.gpus:,} GPUs"]
    for name in plan.backbone:
        lines += _of_backbone(job, name, scale)
    return lines


def _of_backbone(job: Job, name: str, scale: Scale) -> Iterator[str]:
    group = job.open(name)
    fitted = job.fitted_to(group)
    dtype, n_bytes = job.plan.store_dtype, _stored(job.plan, group, scale)
    for member in group:
        size = stored_bytes(job.plan, scale.n_images, member)
        yield (
            f"{member.name}, layer {member.layer}, pool {member.pool}: {scale.n_images:,} x "
            f"{member.n_features:,} {dtype} = {size_text(size)}"
        )
    rate, source = scale.rate, "given"
    if rate is None:
        rate = images_per_second(fitted.engine, group, job.sources[0], dtype)
        where = ", ".join(f"{what} {is_}" for what, is_ in fitted.engine.describe().items())
        source = (
            f"measured here ({where}) on made-up photographs of {_WIDTH} x {_HEIGHT} pixels, and "
            "taken for each GPU: --rate gives another one"
        )
    if isnan(rate):
        raise UsageError("the batches are too large to be timed: give --rate or a --batch-size")
    yield f"{rate:,.1f} images/s of one GPU, {source}"
    yield from _times(scale, rate, n_bytes)
    yield from _fitting(job, name, scale, n_bytes)


def _stored(plan: Plan, group: BackboneGroup, scale: Scale) -> int:
    return sum(stored_bytes(plan, scale.n_images, member) for member in group)


def _times(scale: Scale, rate: float, n_bytes: int) -> Iterator[str]:
    n_read, all_rate = scale.n_images * scale.image_bytes, rate * scale.gpus
    seconds = scale.n_images / all_rate
    yield (
        f"network: images of {size_text(scale.image_bytes)} (assumed: --image-kb) are "
        f"{size_text(n_read)}, hashed first and then computed, so read twice"
    )
    read, written = 2 * n_read / seconds, n_bytes / seconds
    yield (
        f"at that rate {size_text(read)}/s are read and {size_text(written)}/s are written, by "
        f"one GPU's machine {size_text(read / scale.gpus)}/s and "
        f"{size_text(written / scale.gpus)}/s"
    )
    if scale.network is not None and (least := _BITS * (2 * n_read + n_bytes) / scale.network) > (
        seconds
    ):
        yield (
            f"the network does not keep up: {scale.network / 1e9:,.1f} Gbit/s move all bytes in "
            f"{least / 3600:,.1f} hours; the GPUs would need {seconds / 3600:,.1f}"
        )
        seconds = least
    yield f"time: {seconds / 3600:,.1f} hours, if nothing fails and no GPU waits for another"
    if scale.price is not None:
        hours = seconds / 3600 * scale.gpus
        yield f"money: {hours:,.0f} GPU hours x {scale.price:g} = {hours * scale.price:,.0f}"


def _fitting(job: Job, name: str, scale: Scale, n_bytes: int) -> Iterator[str]:
    folder = job.plan.cache_dir
    free, what = scale.disk_bytes, "given"
    if free is None:
        free, what = shutil.disk_usage(there(Path(folder))).free, f"free in {folder}"
    if n_bytes <= free:
        yield f"disk: {size_text(n_bytes)} of the {size_text(free)} that are {what}"
        return
    yield f"disk: {size_text(n_bytes)} do not fit into the {size_text(free)} that are {what}:"
    for words, other in _smaller(job, name):
        size = _stored(job.plan, other, scale)
        if size < n_bytes:
            verdict = "fits" if size <= free else "does not fit either"
            yield f"  {words}: {size_text(size)}, {verdict}"
    packed = n_bytes / _PACKED
    verdict = "fits" if packed <= free else "does not fit either"
    yield (
        f"  featx pack: about {size_text(packed)}, {verdict}; a ratio of {_PACKED:g} is assumed, "
        "and a shard is packed when it is done"
    )


def _smaller(job: Job, name: str) -> Iterator[tuple[str, BackboneGroup]]:
    """Open what takes fewer bytes: pooled, or of smaller images; a network may refuse either."""
    group = job.open(name)
    half = group.preprocessing.crop_px // 2
    pooled, small = replace(job.plan, pool="avg"), replace(job.plan, input_size=half)
    for words, plan in (("--pool avg", pooled), (f"--input-size {half}", small)):
        try:
            yield words, replace(job, plan=plan).open(name)
        except FeatxError:
            continue


def _made_up() -> Sources:
    """Make one photograph of clouds and grain, many times over."""
    from featx.sources import from_arrays

    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(40, 216, (12, 16, 3), np.uint8))
    clouds = np.asarray(coarse.resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC), np.int16)
    grain = rng.integers(-12, 13, clouds.shape, np.int16)
    stream = io.BytesIO()
    Image.fromarray((clouds + grain).clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    labels = np.arange(_N_MADE) % 2
    source = from_arrays([stream.getvalue()] * _N_MADE, labels, name="made-up")
    return Sources([source], {})
