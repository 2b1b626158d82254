"""Extractions measured against their own ceilings, in turns."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from featx.backbones import BackboneGroup
from featx.bench.ceilings import decode_rate, forward_rate, matmul_rate, write_rate
from featx.engines import LocalEngine
from featx.errors import UsageError
from featx.extract import Job, Plan, Settings, StageTimes, extract_many, prepare
from featx.progress import SILENT, Reporter

__all__ = ["BenchRow", "bench"]

_LEAST_BATCHES = 4


@dataclass(frozen=True)
class BenchRow:
    """One network in one precision on one runtime.

    Parameters
    ----------
    backbone, precision, runtime : str
        What ran.
    input_px, batch_size, n_workers, n_features : int
        How.
    forward : float
        Ceiling: images per second of the bare forward pass on one resident batch.
    decode : float
        Ceiling: images per second of decoding and preprocessing alone.
    write : float
        Ceiling: images per second that the disk takes, from one writer.
    together : float
        Images per second of a whole extraction, from files to a durable cache.
    ratio : float
        Of `together` to `forward`: the median of the rounds.
    flops : float
        Operations of the network for one image.
    peak : float
        Operations per second of a large matrix product.
    times : StageTimes
        Of the last extraction.
    """

    backbone: str
    precision: str
    runtime: str
    input_px: int
    batch_size: int
    n_workers: int
    n_features: int
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
    """Measure every backbone in every precision on every runtime.

    Parameters
    ----------
    plan : Plan
        Backbones, data, device and workers; one layer.
    precisions, runtimes : sequence of str
        As for ``--precision`` and ``--runtime``.
    seconds : float, default=10.0
        About how long an extraction takes; the bare forward pass takes half of it.
    rounds : int, default=3
        How often forward pass and extraction take turns.
    folder : Path, optional
        Where caches are written, and deleted again; a temporary folder by default.
    reporter : Reporter
        Says what is being measured.

    Yields
    ------
    BenchRow
        In the order backbones, precisions, runtimes.

    Raises
    ------
    FeatxError
        If a network cannot be opened or does not go with a runtime, or there are too few images.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="featx-bench-") as scratch:
        disk = write_rate(Path(scratch))
        for name, precision, runtime in itertools.product(plan.backbone, precisions, runtimes):
            each = replace(plan, backbone=(name,), precision=precision, runtime=runtime)
            job = prepare(each, reporter)
            group = job.open(name)
            job = job.fitted_to(group)
            if not isinstance(job.engine, LocalEngine):
                raise UsageError("featx bench measures one device: give one --device")
            yield _measure(job, group, job.engine, disk, Path(scratch), seconds, rounds)


def _measure(
    job: Job,
    group: BackboneGroup,
    engine: LocalEngine,
    disk: float,
    scratch: Path,
    seconds: float,
    rounds: int,
) -> BenchRow:
    dtype, member = job.plan.store_dtype, group[0]
    flops = _flops(group)
    forward = forward_rate(engine, group, dtype, seconds / 2)
    source = max(job.sources, key=len)
    n_batches = int(forward() * seconds / engine.batch_size)
    n_images = max(_LEAST_BATCHES, n_batches) * engine.batch_size
    if len(source) < _LEAST_BATCHES * engine.batch_size:
        raise UsageError(
            f"{len(source)} images are too few to measure: give at least "
            f"{_LEAST_BATCHES * engine.batch_size}"
        )
    some = source.take(np.arange(min(n_images, len(source))))
    settings = Settings(store_dtype=dtype)
    alone: list[float] = []
    together: list[float] = []
    ratios: list[float] = []
    times = StageTimes(0)
    for i in range(rounds):
        target = scratch / f"{i}.h5"
        alone.append(forward())
        [report] = extract_many(some, group, engine, [target], settings, reporter=SILENT)
        target.unlink()
        times = report.times or times
        together.append(times.images_per_second)
        ratios.append(together[-1] / alone[-1])
    return BenchRow(
        backbone=member.name,
        precision=engine.precision,
        runtime=engine.runtime,
        input_px=member.input_size,
        batch_size=engine.batch_size,
        n_workers=engine.n_workers,
        n_features=member.n_features,
        forward=median(alone),
        decode=decode_rate(engine, group, some),
        write=disk / (member.n_features * torch.finfo(getattr(torch, dtype)).bits / 8),
        together=median(together),
        ratio=median(ratios),
        flops=flops,
        peak=matmul_rate(engine.device, engine.precision, seconds / 5),
        times=times,
    )


@torch.inference_mode()
def _flops(group: BackboneGroup) -> float:
    """Count the operations for one image."""
    side = group.preprocessing.crop_px
    device = next(group.network.parameters()).device
    pixels = torch.zeros((1, side, side, 3), dtype=torch.uint8, device=device)
    with FlopCounterMode(display=False) as counter:
        group.network(group.preprocessing.normalise(pixels))
    return float(counter.get_total_flops())
