"""Filling cache files with the features of a source, resumable at any moment."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featx.backbones import Backbone, BackboneGroup
from featx.engines import Engine
from featx.errors import SourceError
from featx.extract.fill import fill
from featx.extract.going_on import go_on
from featx.extract.plan import make_folder
from featx.extract.record import make_spec
from featx.extract.report import ExtractReport
from featx.extract.settings import Settings
from featx.progress import SILENT, Reporter
from featx.sources import Source
from featx.store import CacheSpec, CacheWriter, note_seconds
from featx.store.existing import is_reusable

__all__ = ["extract", "extract_many"]


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
