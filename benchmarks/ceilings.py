"""How fast this machine extracts, against how fast it could.

    python benchmarks/ceilings.py --backbone resnet50 squeezenet1_0 --runtime torch openvino

Decoding alone, the bare network, the disk alone, and all of it together, in turns: what holds an
extraction back.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from featx.arithmetic import true_float32
from featx.backbones import BackboneGroup
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
from featx.engines import LocalEngine
from featx.engines.loader import iter_pixels
from featx.engines.runtimes.base import DTYPES
from featx.errors import FeatxError, UsageError
from featx.evaluate import format_table
from featx.extract import Job, Plan, Settings, StageTimes, extract_many, prepare
from featx.extract.plan import open_sources
from featx.progress import SILENT, Reporter
from featx.sources import Source

_MATRIX = {"cpu": 2048, "cuda": 8192}
_WRITTEN_BYTES = 256 << 20


def per_second(step: Callable[[], object], seconds: float, n_each: int) -> float:
    """Repeat a step, and count what it does in a second."""
    started = time.perf_counter()
    for n in itertools.count(1):
        step()
        elapsed = time.perf_counter() - started
        if n >= 2 and elapsed >= seconds:
            return n * n_each / elapsed
    raise AssertionError


def forward_rate(
    engine: LocalEngine, group: BackboneGroup, dtype: str, seconds: float
) -> Callable[[], float]:
    """Prepare the bare forward loop: one batch, on the device already, over and over."""
    side = group.preprocessing.crop_px
    n = engine.batch_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, side, side, 3), generator=generator, dtype=torch.uint8)
    step = engine.open(group, dtype).bare(pixels)
    step()
    return lambda: per_second(step, seconds, n)


def decode_rate(engine: LocalEngine, group: BackboneGroup, source: Source) -> float:
    """Decode, and preprocess what the device does not, in the workers; drop the pixels."""
    loading, _ = engine.loading(group.preprocessing, source)
    batches = range(len(source) // engine.batch_size)
    pixels = iter_pixels(loading, batches, workers=engine.n_workers, n_held=0)
    times = [time.perf_counter() for _ in pixels]
    return (len(times) - 1) * engine.batch_size / (times[-1] - times[0])


def write_rate(folder: Path) -> float:
    """Write zeros to a file, make them durable, and delete it."""
    path = folder / f".bench-{os.getpid()}"
    block = np.zeros(8 << 20, np.uint8).data
    try:
        started = time.perf_counter()
        with path.open("xb", buffering=0) as stream:
            for _ in range(_WRITTEN_BYTES // len(block)):
                stream.write(block)
            os.fdatasync(stream.fileno())
        return _WRITTEN_BYTES / (time.perf_counter() - started)
    finally:
        path.unlink(missing_ok=True)


def matmul_rate(device: torch.device, precision: str, seconds: float) -> float:
    """Multiply large square matrices: about the most that the processor does."""
    n = _MATRIX[device.type]
    # Random numbers: a processor that multiplies ones needs less power, and clocks higher.
    generator = torch.Generator(device).manual_seed(0)
    dtype = DTYPES.get(precision, torch.float32)
    a = torch.rand((n, n), generator=generator, device=device).to(dtype)

    def step() -> None:
        with true_float32():
            a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    step()
    return per_second(step, seconds, 2 * n**3)


_COARSE_PX = 12
_NOISE = 6.0
_QUALITY = 90


def make_pictures(folder: Path, n_images: int, width: int, height: int, *, seed: int = 0) -> None:
    """Write pictures that are about as costly to decode as photographs.

    Smooth shapes with a little noise: some 0.2 bytes a pixel, as ImageNet's files have.
    """
    random = np.random.default_rng(seed)
    for i in range(n_images):
        coarse = random.integers(0, 256, (_COARSE_PX, _COARSE_PX, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth) + random.normal(0, _NOISE, (height, width, 1))
        path = folder / f"class{i % 2}" / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=_QUALITY)


_LEAST_BATCHES = 4


@dataclass(frozen=True)
class BenchRow:
    """One network in one precision on one runtime."""

    backbone: str
    precision: str
    runtime: str
    input_px: int
    batch_size: int
    forward: float
    decode: float
    write: float
    together: float
    ratio: float
    flops: float
    peak: float
    times: StageTimes

    @property
    def of_peak(self) -> float:
        """Share of a large matrix product's rate that the bare forward pass reaches."""
        return self.flops * self.forward / self.peak

    @property
    def ceiling(self) -> float:
        """The least of the three ceilings: what the whole cannot pass."""
        return min(self.forward, self.decode, self.write)

    @property
    def of_ceiling(self) -> float:
        """Share of the least ceiling that a whole extraction reaches."""
        return self.together / self.ceiling


def bench(
    plan: Plan,
    *,
    precisions: Sequence[str],
    runtimes: Sequence[str],
    seconds: float = 10.0,
    rounds: int = 3,
    folder: Path | None = None,
    reporter: Reporter = SILENT,
) -> Iterator[BenchRow]:
    """Measure every backbone in every precision on every runtime."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="featx-ceilings-") as scratch:
        disk = write_rate(Path(scratch))
        sources = cache(partial(open_sources, plan, reporter))
        for name in plan.backbone:
            group = None
            for precision, runtime in itertools.product(precisions, runtimes):
                each = replace(plan, backbone=(name,), precision=precision, runtime=runtime)
                job = prepare(each, reporter, sources)
                group = group or job.open(name)
                fitted = job.fitted_to(group)
                yield _Bench(fitted, group, Path(scratch), seconds, rounds).row(disk)


@dataclass(frozen=True)
class _Bench:
    """One measurement to be taken."""

    job: Job
    group: BackboneGroup
    scratch: Path
    seconds: float
    rounds: int

    @property
    def engine(self) -> LocalEngine:
        if not isinstance(self.job.engine, LocalEngine):
            raise UsageError("this measures one device: give one --device")
        return self.job.engine

    def row(self, disk: float) -> BenchRow:
        """Measure; `disk` is in bytes per second."""
        engine, group, member = self.engine, self.group, self.group[0]
        dtype = self.job.plan.store_dtype
        flops = _flops(group)
        forward = forward_rate(engine, group, dtype, self.seconds / 2)
        some = self._images(forward())
        turns = [(forward(), self._extract(some)) for _ in range(self.rounds)]
        return BenchRow(
            backbone=member.name,
            precision=engine.precision,
            runtime=engine.runtime,
            input_px=member.input_size,
            batch_size=engine.batch_size,
            forward=median(alone for alone, _ in turns),
            decode=decode_rate(engine, group, some),
            write=disk / (member.n_features * torch.finfo(getattr(torch, dtype)).bits / 8),
            together=median(times.images_per_second for _, times in turns),
            ratio=median(times.images_per_second / alone for alone, times in turns),
            flops=flops,
            peak=matmul_rate(engine.device, engine.precision, self.seconds / 5),
            times=turns[-1][1],
        )

    def _images(self, rate: float) -> Source:
        """Take as many images as the network computes in the time."""
        source, size = max(self.job.sources, key=len), self.engine.batch_size
        least = _LEAST_BATCHES * size
        if len(source) < least:
            raise UsageError(f"{len(source)} images are too few to measure: give at least {least}")
        n_images = max(least, int(rate * self.seconds / size) * size)
        return source.take(np.arange(min(n_images, len(source))))

    def _extract(self, source: Source) -> StageTimes:
        target = self.scratch / "bench.h5"
        settings = Settings(store_dtype=self.job.plan.store_dtype)
        [report] = extract_many(source, self.group, self.engine, [target], settings)
        target.unlink()
        if report.times is None:
            raise AssertionError("a new file has nothing to keep")
        return report.times


@torch.inference_mode()
def _flops(group: BackboneGroup) -> float:
    """Count the operations for one image."""
    side = group.preprocessing.crop_px
    device = next(group.network.parameters()).device
    pixels = torch.zeros((1, side, side, 3), dtype=torch.uint8, device=device)
    with FlopCounterMode(display=False) as counter:
        group.network(group.preprocessing.normalise(pixels))
    return float(counter.get_total_flops())


_GOOD = 0.95


def to_table(rows: Sequence[BenchRow]) -> pd.DataFrame:
    """Lay out measurements."""
    return pd.DataFrame(
        {
            "backbone": [row.backbone for row in rows],
            "input": [row.input_px for row in rows],
            "precision": [row.precision for row in rows],
            "runtime": [row.runtime for row in rows],
            "batch": [row.batch_size for row in rows],
            "decode": [f"{row.decode:,.1f}" for row in rows],
            "forward": [f"{row.forward:,.1f}" for row in rows],
            "write": [f"{row.write:,.1f}" for row in rows],
            "extract": [f"{row.together:,.1f}" for row in rows],
            "of ceiling": [f"{row.of_ceiling:.2f}" for row in rows],
            "of forward": [f"{row.ratio:.2f}" for row in rows],
            "of matmul": [f"{row.of_peak:.2f}" for row in rows],
        }
    )


def advise(row: BenchRow) -> str:
    """Say what holds a measurement back."""
    name = f"{row.backbone} {row.precision} {row.runtime}"
    reached = row.flops * row.forward / 1e9
    arithmetic = (
        f"{row.flops / 1e9:.1f} GFLOP an image, {reached:,.0f} GFLOP/s of the "
        f"{row.peak / 1e9:,.0f} of a large matrix product"
    )
    if row.ceiling < row.forward:
        what = "decoding" if row.decode == row.ceiling else "the disk"
        limit = (
            f"{what} allows {row.ceiling:,.1f} images/s, less than the network; "
            f"{row.of_ceiling:.0%} of that is reached"
        )
    elif row.ratio >= _GOOD:
        limit = "the network is all that one waits for"
    else:
        limit = f"{1 - row.ratio:.0%} below the bare network, which shares the cores with the rest"
    return f"{name}: {limit}; busiest: {row.times.advice()}. {arithmetic}"


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
def main(reporter: Reporter, folder: Path | None, **options: Any) -> None:
    """Measure extractions against the ceilings of this machine.

    Decoding alone, the bare forward pass on one resident batch, the disk alone, and a whole
    extraction, in turns; nothing is kept. Prints images per second, the ratios of the whole to the
    least of these ceilings and to the forward pass, and what holds it back.
    """
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


if __name__ == "__main__":
    try:
        main()
    except FeatxError as error:
        sys.exit(f"ceilings: {error}")
