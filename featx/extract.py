"""From a source and a backbone to a finished cache file, resumable at any moment."""

from __future__ import annotations

import os
import platform
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from featx.backbones import Backbone
from featx.engines import Engine, FeatureBatch
from featx.errors import CacheError, FeatxError, ImageError, SourceError, UsageError
from featx.fewshot import draw_subset
from featx.images import DECODER
from featx.progress import SILENT, Reporter
from featx.sources import Source
from featx.store import CacheSpec, CacheWriter

__all__ = [
    "ExtractReport",
    "Sample",
    "Settings",
    "cache_path",
    "extract",
    "make_spec",
    "take_sample",
]

SCHEMA = 1
ON_ERROR = ("skip", "raise")
_MOST_WAITING_BATCHES = 2
_RECORDED_PACKAGES = ("featx", "torch", "torchvision", "numpy", "h5py", "Pillow")


@dataclass(frozen=True)
class Sample:
    """Which part of a data set is extracted.

    Parameters
    ----------
    per_class : int, optional
        Images per class of the train split (or of the only split); all by default.
    test_per_class : int, optional
        Images per class of the other splits; all by default.
    seed : int, default=0
        Of the draw.
    """

    per_class: int | None = None
    test_per_class: int | None = None
    seed: int = 0

    def for_split(self, split: str) -> int | None:
        """Images per class of one split; None for all."""
        return self.per_class if split in ("train", "all") else self.test_per_class

    def record(self) -> dict[str, int | None] | None:
        """Give what goes into the cache file; None where everything is extracted."""
        if self.per_class is None and self.test_per_class is None:
            return None
        return {
            "per_class": self.per_class,
            "test_per_class": self.test_per_class,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Settings:
    """Choices of an extraction that are neither the source's nor the backbone's.

    Parameters
    ----------
    sample : Sample
        Which part of the data set is extracted.
    store_dtype : str, default="float16"
        Type of the stored features, ``float16`` or ``float32``.
    overrides : mapping, optional
        Changes to the weights' preprocessing that were asked for; they name the file.
    overwrite : bool, default=False
        Whether a file made with other settings may be replaced.
    on_error : {"skip", "raise"}, default="skip"
        What to do about an image that cannot be read: mark its row as failed, or stop.

    Raises
    ------
    UsageError
        If `on_error` is unknown.
    """

    sample: Sample = field(default_factory=Sample)
    store_dtype: str = "float16"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    on_error: str = "skip"

    def __post_init__(self) -> None:
        if self.on_error not in ON_ERROR:
            allowed = ", ".join(ON_ERROR)
            raise UsageError(f"on-error {self.on_error!r} is unknown: choose from {allowed}")


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


def take_sample(source: Source, sample: Sample) -> Source:
    """Restrict a source to a stratified draw.

    Parameters
    ----------
    source : Source
        One split.
    sample : Sample
        How many images per class.

    Returns
    -------
    Source
        `source` itself where everything is wanted.

    Raises
    ------
    ProtocolError
        If a class has too few images.
    """
    per_class = sample.for_split(source.split)
    if per_class is None:
        return source
    rows = draw_subset(
        source.labels, per_class, seed=sample.seed, class_names=list(source.class_names)
    )
    return source.take(rows)


def cache_path(
    folder: Path, source: Source, backbone: Backbone, engine: Engine, settings: Settings
) -> Path:
    """Name of a cache file: the data, the backbone, and every choice that is not a default.

    Parameters
    ----------
    folder : Path
        Where caches lie.
    source : Source
        One split.
    backbone : Backbone
        The network at its feature point.
    engine : Engine
        What runs it; its arithmetic counts.
    settings : Settings
        The other choices.

    Returns
    -------
    Path
        ``FOLDER/DATA-SPLIT-BACKBONE[-CHOICES].h5``.
    """
    sample = settings.sample
    parts = [source.name, source.split]
    per_class = sample.for_split(source.split)
    if per_class is not None:
        parts.append(f"{per_class}perclass" + (f"-seed{sample.seed}" if sample.seed else ""))
    parts.append(backbone.name)
    if not backbone.weights.is_default:
        parts.append(backbone.weights.label)
    if not backbone.is_default_layer:
        parts.append(backbone.layer)
    if backbone.pool != "none":
        parts.append(backbone.pool)
    for name, value in settings.overrides.items():
        text = "_".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)
        parts.append(f"{value}px" if name == "input_size" else f"{name}{text}")
    numbers = (engine.precision, settings.store_dtype)
    parts += [part for part in numbers if part not in ("fp32", "float16")]
    return folder / ("-".join(re.sub(r"[^\w.+-]+", "_", part) for part in parts) + ".h5")


def make_spec(
    source: Source,
    backbone: Backbone,
    engine: Engine,
    settings: Settings,
    *,
    reporter: Reporter = SILENT,
) -> CacheSpec:
    """Everything about a cache that is known before the first image.

    Parameters
    ----------
    source : Source
        The images, already restricted to the sample.
    backbone : Backbone
        The network at its feature point.
    engine : Engine
        What runs it; of it only the arithmetic is part of the fingerprint.
    settings : Settings
        The other choices.
    reporter : Reporter
        Shows the hashing of the images.

    Returns
    -------
    CacheSpec
        With the identity from which the fingerprint is made.
    """
    digests = source.image_digests(reporter=reporter)
    identity = {
        "schema": SCHEMA,
        "source": {
            "content": source.content_id(digests),
            "n_images": len(source),
            "class_names": list(source.class_names),
        },
        "decoder": DECODER,
        **backbone.identity(),
        "precision": engine.precision,
        "store_dtype": settings.store_dtype,
    }
    weights = backbone.weights
    meta = {
        "data": source.name,
        "split": source.split,
        "sample": settings.sample.record(),
        "backbone": backbone.name,
        "weights": {"label": weights.label, "file": weights.file, "sha256": weights.sha256},
        "layer": backbone.layer,
        "pool": backbone.pool,
        "input_size": backbone.input_size,
        "preprocessing": {
            **backbone.preprocessing.identity(),
            "origin": backbone.preprocessing.origin,
        },
        "feature_shape": list(backbone.feature_shape),
        "n_features": backbone.n_features,
        "precision": engine.precision,
        "store_dtype": settings.store_dtype,
        "engine": engine.describe(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in _RECORDED_PACKAGES},
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return CacheSpec(
        identity=identity,
        meta=meta,
        labels=source.labels,
        class_names=source.class_names,
        paths=source.paths,
        n_features=backbone.n_features,
        dtype=settings.store_dtype,
    )


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
    with CacheWriter.open(target, spec, overwrite=settings.overwrite, reporter=reporter) as writer:
        for notice in writer.notices:
            reporter.warn(notice)
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
