"""What an extraction would compute and write, and how long it takes: nothing is written."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featx.errors import CacheError
from featx.extract.job import prepare
from featx.extract.plan import Plan, Share
from featx.progress import SILENT, Reporter
from featx.store.shards import Manifest, heights_of, place_of
from featx.text import count_of, size_text, time_text

if TYPE_CHECKING:
    from featx.backbones import Backbone, BackboneGroup
    from featx.engines import Engine
    from featx.sources import Source

__all__ = ["estimate_plan", "images_per_second", "there"]

_MOST_TIMED = 64  # batches
_ENOUGH_SECONDS = 2.0


def images_per_second(
    engine: Engine, group: BackboneGroup, source: Source, dtype: str = "float32"
) -> float:
    """Time some batches behind a first one that warms up; NaN for fewer than two batches."""
    from featx.engines.loader import worker_deaths_named

    n_batches = min(_MOST_TIMED, len(source) // engine.batch_size)
    if n_batches < 2:
        return float("nan")
    some = source.take(np.arange(n_batches * engine.batch_size))
    times: list[float] = []
    with worker_deaths_named():
        for _ in engine.run_many(group, some, range(n_batches), dtype=dtype):
            times.append(time.perf_counter())
            if times[-1] - times[0] > _ENOUGH_SECONDS:
                break
    return (len(times) - 1) * engine.batch_size / (times[-1] - times[0])


def estimate_plan(
    plan: Plan,
    reporter: Reporter = SILENT,
    *,
    share: Share | None = None,
    shard_rows: int | None = None,
) -> list[str]:
    """Say what each file would hold, how many bytes that is, and how long it takes here.

    Files that are there already count as missing: which of their rows are good is known only when
    all images are hashed. With a share, only its shards count.
    """
    job = prepare(plan, reporter)
    lines, n_bytes, seconds, n_shards = [], 0, 0.0, 0
    for name in plan.backbone:
        group = job.open(name)
        fitted = job.fitted_to(group)
        n_images = 0
        for source in job.sources:
            files = fitted.targets(group, source)
            n_rows, texts = len(source), [_there_text(path) for path in files]
            if share is not None:
                files = [place_of(path) for path in files]
                heights, there_already = heights_of(files[0], len(source), shard_rows)
                own = [i for i in share.of(range(n_shards + len(heights))) if i >= n_shards]
                n_rows = sum(heights[i - n_shards] for i in own)
                n_there = sum(i - n_shards in there_already for i in own)
                text = f" in {len(own):,} of {count_of(len(heights), 'shard')}"
                text += f", {n_there:,} of them there already" if n_there else ""
                texts = [text] * len(files)
                n_shards += len(heights)
            for path, member, text in zip(files, group, texts, strict=True):
                size = stored_bytes(plan, n_rows, member)
                shape = f"{n_rows:,} x {member.n_features:,} {plan.store_dtype}"
                lines.append(f"{path}: {shape}, {size_text(size)}{text}")
                n_bytes += size
            n_images += n_rows
        largest = max(job.sources, key=len)
        rate = images_per_second(fitted.engine, group, largest, plan.store_dtype)
        seconds += n_images / rate
        if not isnan(rate):
            lines.append(f"{name}: {rate:,.1f} images/s here, measured on a few batches")
    free = shutil.disk_usage(there(Path(plan.cache_dir))).free
    lines.append(f"together {size_text(n_bytes)}, of {size_text(free)} free in {plan.cache_dir}")
    if n_bytes > free:
        lines.append(
            "that does not fit: give --pool avg, a smaller --input-size or an earlier --layer, or "
            "another --cache"
        )
    lines.append(_time_text(seconds))
    return lines


def _there_text(path: Path) -> str:
    if path.exists():
        return " (is there already: rows that are good are kept)"
    place = place_of(path)
    with suppress(CacheError):
        if not Manifest.read(place).missing(place):
            return f" ({place} is complete: where its images are the same, nothing is computed)"
    return ""


def stored_bytes(plan: Plan, n_images: int, member: Backbone) -> int:
    """Count the bytes of the features of one layer in its file."""
    return n_images * member.n_features * np.dtype(plan.store_dtype).itemsize


def there(folder: Path) -> Path:
    """Give the folder, or the first one around it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def _time_text(seconds: float) -> str:
    if isnan(seconds):
        return "fewer than two batches of images: too few to say how long it takes"
    return f"{time_text(seconds)} here"
