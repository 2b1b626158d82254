"""Filling a cache file with the features of a source, resumable at any moment."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featx.backbones import Backbone
from featx.engines import Engine, FeatureBatch
from featx.errors import CacheError, FeatxError, ImageError, SourceError
from featx.extract.record import make_spec
from featx.extract.settings import Settings
from featx.progress import SILENT, Reporter
from featx.sources import Source
from featx.store import CacheWriter

__all__ = ["ExtractReport", "extract"]

_MOST_WAITING_BATCHES = 2


@dataclass(frozen=True)
class ExtractReport:
    """What one extraction did.

    Parameters
    ----------
    path : Path
        The cache file.
    n_images : int
        Rows in it.
    n_computed : int
        Rows computed by this run; the others were there before.
    n_failed : int
        Images that could not be read.
    seconds : float
        Wall time of this run.
    n_bytes : int
        Size of the file.
    """

    path: Path
    n_images: int
    n_computed: int
    n_failed: int
    seconds: float
    n_bytes: int


def extract(
    source: Source,
    backbone: Backbone,
    engine: Engine,
    target: Path,
    settings: Settings,
    *,
    reporter: Reporter = SILENT,
) -> ExtractReport:
    """Compute the features of every image and write them to a cache file.

    What an earlier, interrupted run of the same question has committed is kept and
    only the rest is computed; a finished file is left as it is.

    Parameters
    ----------
    source : Source
        The images.
    backbone : Backbone
        The network at its feature point.
    engine : Engine
        What runs it.
    target : Path
        The cache file; its folder is made.
    settings : Settings
        The other choices.
    reporter : Reporter
        Shows the progress.

    Returns
    -------
    ExtractReport
        What was done.

    Raises
    ------
    CacheError
        If the file cannot be written, or was made with other settings.
    SourceError
        If no image at all could be read.
    ImageError
        If an image could not be read and that was to stop the run.
    """
    started = time.monotonic()
    _make_folder(target.parent)
    spec = make_spec(source, backbone, engine, settings, reporter=reporter)
    reuse = target if settings.reuse and target.exists() else None
    with CacheWriter.open(
        target, spec, overwrite=settings.overwrite, reuse=reuse, reporter=reporter
    ) as writer:
        for notice in writer.notices:
            reporter.say(notice)
        n_computed, failed = 0, writer.failed
        if not writer.is_complete:
            n_computed = int(writer.missing().sum())
            failed = _fill(writer, source, backbone, engine, settings.on_error, reporter)
            if len(failed) == len(source):
                first = min(failed)
                raise SourceError(
                    f"none of the {len(source):,} images of {source.name} {source.split} could be "
                    f"read; the first was {source.paths[first]}: {failed[first]}"
                )
            writer.finish()
    _report_failures(failed, source, target, reporter)
    return ExtractReport(
        path=target,
        n_images=len(source),
        n_computed=n_computed,
        n_failed=len(failed),
        seconds=time.monotonic() - started,
        n_bytes=target.stat().st_size,
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(
            f"the folder {folder} for cache files cannot be made: {os.strerror(error.errno or 0)}. "
            "Give another one with --cache DIR"
        ) from error


def _fill(
    writer: CacheWriter,
    source: Source,
    backbone: Backbone,
    engine: Engine,
    on_error: str,
    reporter: Reporter,
) -> dict[int, str]:
    """Compute every missing row; writing overlaps with computing."""
    missing = writer.missing()
    n_done = len(source) - int(missing.sum())
    if n_done:
        reporter.say(f"resuming: {n_done:,} of {len(source):,} images were done before")
    batches = np.unique(np.flatnonzero(missing) // engine.batch_size)
    failed = dict(writer.failed)
    waiting: deque[Future[None]] = deque()
    label = f"{source.name} {source.split}, {backbone.name}"
    with (
        ThreadPoolExecutor(1, "featx-writer") as pool,
        reporter.bar(len(source), label, initial=n_done) as bar,
    ):
        try:
            for batch in engine.run(backbone, source, batches.tolist(), dtype=writer.spec.dtype):
                if batch.failed and on_error == "raise":
                    row, reason = next(iter(batch.failed.items()))
                    raise ImageError(f"{source.paths[row]}: {reason}")
                failed.update(batch.failed)
                for part in _missing_parts(batch, missing):
                    waiting.append(pool.submit(writer.write, *part))
                    bar.update(len(part[1]))
                while len(waiting) > _MOST_WAITING_BATCHES:
                    waiting.popleft().result()
            while waiting:
                waiting.popleft().result()
        except BaseException:
            # Interrupted or failed: what was computed is kept for the next run.
            with suppress(FeatxError):
                pool.submit(writer.commit).result()
            raise
    return failed


def _missing_parts(
    batch: FeatureBatch, missing: np.ndarray
) -> Iterator[tuple[int, np.ndarray, dict[int, str]]]:
    """Split a batch into its runs of missing rows: all of it, but for an odd resume."""
    wanted = missing[batch.start : batch.start + len(batch.features)]
    edges = np.flatnonzero(np.diff(np.concatenate(([False], wanted, [False])).astype(np.int8)))
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        start, stop = batch.start + int(first), batch.start + int(last)
        reasons = {row: why for row, why in batch.failed.items() if start <= row < stop}
        yield start, batch.features[first:last], reasons


def _report_failures(
    failed: Mapping[int, str], source: Source, target: Path, reporter: Reporter
) -> None:
    if not failed:
        return
    shown = [f"{source.paths[row]} ({failed[row]})" for row in sorted(failed)[:3]]
    more = f", and {len(failed) - 3:,} more" if len(failed) > 3 else ""
    reporter.warn(
        f"{len(failed):,} of {len(source):,} images could not be read and are marked as failed: "
        f"{', '.join(shown)}{more}. All of them: featx info {target}"
    )
