"""Filling cache files with the features of a source, resumable at any moment.

Missing rows are computed with the batch size of those that are there, or it is said that they are
not. Each file records what made it: the identity that is fingerprinted, and more for people.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones import Backbone, BackboneGroup
from featx.engines import Engine
from featx.errors import CacheError, SourceError
from featx.extract.fill import fill
from featx.extract.plan import make_folder
from featx.extract.report import ExtractReport
from featx.extract.settings import Settings, images_identity
from featx.images import DECODER
from featx.progress import SILENT, Reporter
from featx.sources import Source
from featx.store import Cache, CacheSpec, CacheWriter, find_begun, note_seconds
from featx.store.existing import is_reusable

__all__ = ["extract", "extract_many", "go_on", "make_spec"]

SCHEMA = 1
_RECORDED_PACKAGES = ("featx", "torch", "torchvision", "numpy", "h5py", "Pillow")


def make_spec(
    source: Source,
    backbone: Backbone,
    engine: Engine,
    settings: Settings,
    digests: np.ndarray,
    content: str,
) -> CacheSpec:
    """Everything about a cache that is known before the first image."""
    return CacheSpec(
        identity=_identity(source, backbone, engine, settings, content),
        meta=_record(source, backbone, engine, settings),
        labels=source.labels,
        class_names=source.class_names,
        paths=source.paths,
        n_features=backbone.n_features,
        dtype=settings.store_dtype,
        image_digests=digests,
    )


def _identity(
    source: Source, backbone: Backbone, engine: Engine, settings: Settings, content: str
) -> dict[str, Any]:
    """Everything that changes the values of the features, and nothing else."""
    return {
        "schema": SCHEMA,
        "source": images_identity(source, content),
        "decoder": DECODER,
        **backbone.identity(),
        **engine.identity(),
        "store_dtype": settings.store_dtype,
    }


def _packages(backbone: Backbone, engine: Engine) -> list[str]:
    """Name the packages whose code has a part in the features."""
    kinds = {type(module).__module__.partition(".")[0] for module in backbone.network.modules()}
    others = {"timm": "timm" in kinds, "openvino": engine.runtime == "openvino"}
    return [*_RECORDED_PACKAGES, *(name for name, is_used in others.items() if is_used)]


def _record(
    source: Source, backbone: Backbone, engine: Engine, settings: Settings
) -> dict[str, Any]:
    """Collect what a person, and a repair, want to know beside the identity."""
    weights = backbone.weights
    return {
        "data": source.name,
        "split": source.split,
        "sample": settings.sample.record(),
        "backbone": backbone.name,
        "weights": {
            "label": weights.label,
            "file": weights.file,
            "sha256": weights.sha256,
            "file_sha256": weights.file_sha256,
            "key": weights.key,
        },
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
            **{name: version(name) for name in _packages(backbone, engine)},
        },
        "request": dict(settings.request),
        "splits": dict(settings.splits),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


_EARLIER = "earlier_batch_sizes"


def go_on(
    engine: Engine,
    group: BackboneGroup,
    targets: Sequence[Path],
    specs: Sequence[CacheSpec],
    reused: Sequence[Path | None],
    *,
    reporter: Reporter,
) -> tuple[Engine, list[CacheSpec]]:
    """Take up the batch size of the rows that a run resumes or reuses, and record any other.

    Features of one image differ in their last digits between batch sizes: the kernels for
    matrix products and convolutions depend on the shape.
    """
    known = [
        _batch_sizes(target, spec, reuse)
        for target, spec, reuse in zip(targets, specs, reused, strict=True)
    ]
    latest = [sizes[0] for sizes in known if sizes]
    if latest:
        engine = engine.going_on_with(group, latest[0])
    if others := sorted({*latest} - {engine.batch_size}):
        reporter.say(
            f"some rows are there already, computed with batch size {', '.join(map(str, others))}; "
            f"the rest is computed with {engine.batch_size}: the last digits of features depend on "
            f"it. To go on as before, give  --batch-size {others[0]}"
        )
    recorded = []
    for spec, sizes in zip(specs, known, strict=True):
        earlier = sorted({*sizes} - {engine.batch_size})
        record = engine.describe() | ({_EARLIER: earlier} if earlier else {})
        recorded.append(replace(spec, meta={**spec.meta, "engine": record}))
    return engine, recorded


def _batch_sizes(target: Path, spec: CacheSpec, reuse: Path | None) -> list[int]:
    """Give the batch sizes of the rows that are there, the last one first."""
    meta = find_begun(target, spec)
    if meta is None and reuse is not None:
        try:
            with Cache.open(reuse) as cache:
                meta = cache.meta
        except CacheError:  # missing, or damaged: its record is not believed
            return []
    record = (meta or {}).get("engine")
    if not isinstance(record, Mapping):
        return []
    earlier = record.get(_EARLIER)
    found = [record.get("batch_size"), *(earlier if isinstance(earlier, list) else [])]
    return [n for n in found if isinstance(n, int) and n > 0]


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
    """
    group = BackboneGroup.of(backbone)
    [report] = extract_many(source, group, engine, [target], settings, reporter=reporter)
    return report


def extract_many(
    source: Source,
    group: BackboneGroup,
    engine: Engine,
    targets: Sequence[Path],
    settings: Settings,
    *,
    digests: NDArray[np.uint8] | None = None,
    reporter: Reporter = SILENT,
) -> list[ExtractReport]:
    """Fill several cache files in one pass of a network; see `extract`."""
    started = time.monotonic()
    digests = source.image_digests(reporter=reporter) if digests is None else digests
    content = source.content_id(digests)
    specs = [make_spec(source, one, engine, settings, digests, content) for one in group]
    reused = [_reused(*pair, settings) for pair in zip(targets, specs, strict=True)]
    engine, specs = go_on(engine, group, targets, specs, reused, reporter=reporter)
    with ExitStack() as stack:
        writers = [
            _open_writer(stack, *given, settings, reporter)
            for given in zip(targets, specs, reused, strict=True)
        ]
        n_computed = [int(writer.missing().sum()) for writer in writers]
        times = None
        if any(n_computed):
            times = fill(writers, source, group, engine, settings.on_error, reporter)
        for writer in writers:
            if not settings.is_part:
                _require_an_image(writer.failed, source)
            writer.finish()
    seconds = time.monotonic() - started
    for writer, n in zip(writers, n_computed, strict=True):
        if n == len(source):
            note_seconds(writer.target, writer.spec.fingerprint, seconds)
    # The same images fail for every layer; a file that was complete before does not tell them.
    told = max(writers, key=lambda writer: len(writer.failed))
    _report_failures(told.failed, source, told.target, reporter)
    return [
        ExtractReport(
            path=target,
            n_images=len(source),
            n_features=writer.spec.n_features,
            dtype=writer.spec.dtype,
            n_computed=n,
            n_failed=len(writer.failed),
            seconds=seconds,
            n_bytes=writer.target.stat().st_size,
            times=times if n else None,
            n_reused=writer.n_reused,
        )
        for target, writer, n in zip(targets, writers, n_computed, strict=True)
    ]


def _reused(target: Path, spec: CacheSpec, settings: Settings) -> Path | None:
    """Choose the file whose rows are taken over: the one that is there, where that is wanted."""
    is_wanted = settings.reuse and target.exists()
    return target if is_wanted or is_reusable(target, spec, overwrite=settings.overwrite) else None


def _open_writer(
    stack: ExitStack,
    target: Path,
    spec: CacheSpec,
    reuse: Path | None,
    settings: Settings,
    reporter: Reporter,
) -> CacheWriter:
    make_folder(target.parent)
    overwrite = settings.overwrite
    writer = CacheWriter.open(target, spec, overwrite=overwrite, reuse=reuse, reporter=reporter)
    stack.enter_context(writer)
    writer.take_unfinished(reporter)
    for notice in writer.notices:
        reporter.say(notice)
    return writer


def _require_an_image(failed: Mapping[int, str], source: Source) -> None:
    if len(failed) == len(source):
        first = min(failed)
        raise SourceError(
            f"none of the {len(source):,} images of {source.name} {source.split} could be "
            f"read; the first was {source.paths[first]}: {failed[first]}"
        )


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
