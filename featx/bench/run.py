"""Extractions measured against their own ceilings, in turns."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
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
from featx.extract.plan import open_sources
from featx.progress import SILENT, Reporter
from featx.sources import Source

__all__ = ["BenchRow", "bench"]

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
    with tempfile.TemporaryDirectory(dir=folder, prefix="featx-bench-") as scratch:
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
            raise UsageError("featx bench measures one device: give one --device")
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
