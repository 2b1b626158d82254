"""The missing rows of cache files: computed batch by batch, written while the next is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from featx.backbones import BackboneGroup
from featx.engines import Engine, FeatureBatch
from featx.engines.loader import worker_deaths_named
from featx.errors import FeatxError, ImageError
from featx.extract.hint import Hint
from featx.extract.times import StageTimes
from featx.progress import Reporter
from featx.sources import Source
from featx.stops import check
from featx.store import CacheWriter
from featx.store.threads import give_way

__all__ = ["fill"]

_MOST_WAITING_BATCHES = 2


def fill(
    writers: Sequence[CacheWriter],
    source: Source,
    group: BackboneGroup,
    engine: Engine,
    on_error: str,
    reporter: Reporter,
) -> StageTimes:
    """Compute and write every row that any of the files lacks."""
    missing = [writer.missing() for writer in writers]
    wanted = np.logical_or.reduce(missing)
    n_done = len(source) - int(wanted.sum())
    if n_done:
        reporter.say(f"resuming: {n_done:,} of {len(source):,} images were done before")
    batches = np.unique(np.flatnonzero(wanted) // engine.batch_size).tolist()
    dtype = writers[0].spec.dtype
    waiting: deque[Future[None]] = deque()
    times = StageTimes(engine.n_workers)
    hint = Hint(engine, group, source, dtype, reporter)
    label = f"{source.name} {source.split}, {group[0].name}"
    with (
        ThreadPoolExecutor(1, "featx-writer", give_way) as pool,
        reporter.bar(len(source), label, initial=n_done) as bar,
    ):
        try:
            with worker_deaths_named():
                for parts in engine.run_many(group, source, batches, dtype=dtype):
                    check()
                    _check(parts[0], source, writers[0].spec.image_digests, on_error)
                    waiting.append(pool.submit(_write, writers, parts, missing, times))
                    start, n_rows = parts[0].start, len(parts[0].features)
                    times.add(n_rows, parts[0].seconds)
                    bar.update(int(wanted[start : start + n_rows].sum()), times.note())
                    hint.look(parts, times, len(batches))
                    while len(waiting) > _MOST_WAITING_BATCHES:
                        waiting.popleft().result()
                while waiting:
                    waiting.popleft().result()
            times.finish()
        except BaseException as error:
            # Interrupted or failed: what was computed is kept for the next run.
            _keep(writers, pool)
            n_kept = min(len(source) - int(writer.missing().sum()) for writer in writers)
            if isinstance(error, FeatxError) and n_kept:
                error.add_note(
                    f"{n_kept:,} of {len(source):,} images are done and kept: the same command "
                    "goes on from there"
                )
            raise
    return times


def _keep(writers: Sequence[CacheWriter], pool: ThreadPoolExecutor) -> None:
    """Make what was written durable, behind what waits."""
    for writer in writers:
        with suppress(FeatxError):
            pool.submit(writer.commit).result()


def _check(batch: FeatureBatch, source: Source, digests: np.ndarray, on_error: str) -> None:
    source.require_unchanged(batch.start, batch.digests, digests)
    if batch.failed and on_error == "raise":
        row, reason = next(iter(batch.failed.items()))
        raise ImageError(f"{source.paths[row]}: {reason}")


def _write(
    writers: Sequence[CacheWriter],
    parts: Sequence[FeatureBatch],
    missing: Sequence[np.ndarray],
    times: StageTimes,
) -> None:
    with times.writing():
        for writer, batch, lacking in zip(writers, parts, missing, strict=True):
            for start, rows, failed in _missing_runs(batch, lacking):
                writer.write(start, rows, failed)


def _missing_runs(
    batch: FeatureBatch, missing: np.ndarray
) -> Iterator[tuple[int, np.ndarray, dict[int, str]]]:
    """Split a batch into its runs of missing rows: all of it, but for an odd resume."""
    wanted = missing[batch.start : batch.start + len(batch.features)]
    edges = np.flatnonzero(np.diff(np.concatenate(([False], wanted, [False])).astype(np.int8)))
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        start, stop = batch.start + int(first), batch.start + int(last)
        reasons = {row: why for row, why in batch.failed.items() if start <= row < stop}
        yield start, batch.features[first:last], reasons
