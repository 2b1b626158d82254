"""Extraction by shards: any process computes some of them, and none needs to know the others.

All that processes share is the folder: a manifest that the first one writes, and the lock and the
journal of each shard. A `Shard` can be pickled; a `ShardJob` opens data and network once and
computes one shard after the other, in this process or in a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featx.errors import CacheBusyError, CacheError, CacheMismatchError, UsageError
from featx.extract.job import Job, prepare
from featx.extract.plan import Plan, Share, make_folder
from featx.extract.run import extract_many, make_spec
from featx.progress import SILENT, Reporter
from featx.store import Cache, ShardedCache
from featx.store.existing import has_rows
from featx.store.reuse import without_source
from featx.store.shards import (
    Manifest,
    begin_place,
    height_of,
    list_digests,
    place_of,
    require_shard,
)
from featx.text import count_of

if TYPE_CHECKING:
    from featx.backbones import BackboneGroup
    from featx.extract.report import ExtractReport
    from featx.sources import Source

__all__ = ["Shard", "ShardJob", "describe_place", "run_shards"]


_DONE, _DAMAGED, _OPEN = "done", "damaged", "open"
_NO_DIGESTS = np.zeros((0, 32), np.uint8)


@dataclass(frozen=True)
class Shard:
    """Some rows of one split, of one backbone at one or more layers: a unit of work."""

    backbone: str
    split: str
    number: int
    start: int
    stop: int
    files: tuple[Path, ...]
    """The file of each layer."""


@dataclass
class _Opened:
    """What is needed for the shards of one backbone, opened once."""

    job: Job
    group: BackboneGroup
    places: dict[str, list[Path]]
    manifests: dict[str, list[Manifest]]


class ShardJob:
    """A plan with its data opened, whose shards are computed one at a time.

    A worker process makes its own: ``ShardJob.open(plan).run(shard)``.
    """

    def __init__(self, job: Job, shard_rows: int | None = None) -> None:
        self._job, self._shard_rows = job, shard_rows
        self._opened: dict[str, _Opened] = {}

    @classmethod
    def open(
        cls, plan: Plan, shard_rows: int | None = None, reporter: Reporter = SILENT
    ) -> ShardJob:
        """Check the names of a plan, and open its data and its device."""
        if shard_rows is not None and shard_rows < 1:
            raise UsageError(f"shard-rows is {shard_rows}: give 1 or more")
        make_folder(Path(plan.cache_dir))
        return cls(prepare(plan, reporter), shard_rows)

    def require(self, path: Path) -> None:
        """Refuse a place, or a shard of one, that this plan does not fill."""
        found = []
        for name in self._job.plan.backbone:
            group = self._job.open(name)
            job = self._job.fitted_to(group)
            found += [place for source in job.sources for place in _places(job, group, source)]
        if not any(_is_in(path, place) for place in found):
            names = ", ".join(place.name for place in found)
            raise UsageError(
                f"{path} is not where the command that made it puts it: give its folder that name "
                f"again ({names})"
            )

    def places(self) -> list[Path]:
        """Name the place of each split and layer; their manifests are written, or taken up."""
        opened = [self._open(name) for name in self._job.plan.backbone]
        return [p for one in opened for s in self._job.sources for p in one.places[s.split]]

    def shards(self) -> Iterator[Shard]:
        """Give all units of work, in order; the same for every process."""
        for name in self._job.plan.backbone:
            opened = self._open(name)
            for source in self._job.sources:
                manifest = opened.manifests[source.split][0]
                for number in range(manifest.n_shards):
                    start, stop = manifest.rows(number)
                    file = manifest.file_name(number)
                    files = tuple(place / file for place in opened.places[source.split])
                    yield Shard(name, source.split, number, start, stop, files)

    def run(self, shard: Shard) -> list[ExtractReport] | None:
        """Compute one shard, or go on with it; None where it is finished and every byte is right.

        Damaged rows of a finished shard are computed again, the others are kept. A
        `CacheBusyError` where another process computes it.
        """
        opened = self._open(shard.backbone)
        [source] = [s for s in self._job.sources if s.split == shard.split]
        rows = np.arange(shard.start, shard.stop)
        part = replace(source.take(rows), part=f" rows {shard.start}-{shard.stop}")
        digests = part.image_digests(reporter=self._job.reporter)
        manifests = opened.manifests[shard.split]
        states = {
            self._state(file, manifest, shard, part, digests)
            for file, manifest in zip(shard.files, manifests, strict=True)
        }
        if states == {_DONE}:
            return None
        settings = opened.job.settings(opened.group, self._job.splits.listed)
        is_mended = _DAMAGED in states
        return extract_many(
            part,
            opened.group,
            opened.job.engine,
            shard.files,
            replace(settings, reuse=settings.reuse or is_mended, is_part=True),
            digests=digests,
            reporter=self._job.reporter,
        )

    def _state(
        self, file: Path, manifest: Manifest, shard: Shard, part: Source, digests: np.ndarray
    ) -> str:
        if not file.exists():
            return _OPEN
        plan = self._job.plan
        try:
            with Cache.open(file) as cache:
                require_shard(manifest, shard.number, cache)
                is_again = bool(cache.errors) and (plan.append or plan.overwrite)
                if is_again or not has_rows(cache, part.paths, part.labels, digests):
                    return _OPEN
                return _DAMAGED if cache.verify() else _DONE
        except CacheMismatchError:
            return _OPEN  # the usual way says what differs, or replaces it
        except CacheError:
            return _DAMAGED

    def _open(self, name: str) -> _Opened:
        """Open a backbone, and write or take up the manifests of its places."""
        if name not in self._opened:
            group = self._job.open(name)
            job = self._job.fitted_to(group)
            places = {source.split: _places(job, group, source) for source in job.sources}
            manifests = {
                source.split: self._begin(job, group, source, places[source.split])
                for source in job.sources
            }
            job = _going_on(job, group, manifests)
            self._opened = {name: _Opened(job, group, places, manifests)}  # one network at a time
        return self._opened[name]

    def _begin(
        self, job: Job, group: BackboneGroup, source: Source, places: Sequence[Path]
    ) -> list[Manifest]:
        plan, listed = job.plan, self._job.splits.listed
        settings = job.settings(group, listed)
        found = []
        for place, member in zip(places, group, strict=True):
            height = height_of(place, self._shard_rows)
            spec = make_spec(source, member, job.engine, settings, _NO_DIGESTS, "")
            wanted = Manifest(
                identity=without_source(spec.identity),
                meta=spec.meta,
                class_names=list(source.class_names),
                n_rows=len(source),
                n_features=spec.n_features,
                dtype=spec.dtype,
                shard_rows=height,
                listed=list_digests(source.paths, source.labels, height),
            )
            how = {"grows": plan.append, "overwrite": plan.overwrite}
            found.append(begin_place(place, wanted, tell=job.reporter.warn, **how))
        return found


def run_shards(
    plan: Plan,
    share: Share | None = None,
    shard_rows: int | None = None,
    reporter: Reporter = SILENT,
    *,
    tell: Callable[[str], object] = print,
    profile: bool = False,
    only: Path | None = None,
) -> list[ExtractReport]:
    """Compute the shards of one share that are not finished, and say what the places lack then.

    Of these only one shard, or those of one place, where its file or folder is named.
    """
    share = share or Share()
    job = ShardJob.open(plan, shard_rows, reporter)
    if only is not None:
        job.require(only)
    done: list[ExtractReport] = []
    n_known = 0
    for shard in share.of(job.shards()):
        if only is not None and not any(_is_in(file, only) for file in shard.files):
            continue
        try:
            reports = job.run(shard)
        except CacheBusyError as error:
            tell(f"left to its process: {error}")
            continue
        n_known += reports is None
        for report in reports or ():
            tell(str(report))
            done.append(report)
        if profile and reports and reports[0].times is not None:
            tell(reports[0].times.table())
    if n_known:
        tell(f"{count_of(n_known, 'shard')} of this share finished before, every byte as written")
    for place in job.places():
        tell(describe_place(place))
    return done


def describe_place(place: Path) -> str:
    """Say whether a place is complete, or what it lacks; a complete one is made ready to read."""
    try:
        manifest = Manifest.read(place)
        if missing := manifest.missing(place):
            return f"{place}: {manifest.describe_missing(missing)}"
        with ShardedCache.open(place) as cache:
            n_failed = cache.index.n_failed
            shape = f"{len(cache):,} x {cache.n_features:,} {manifest.dtype}"
            failed = f", {count_of(n_failed, 'image')} could not be read" if n_failed else ""
            shards = count_of(cache.n_shards, "shard")
            return f"{place}: {shape} in {shards}, complete{failed}"
    except CacheError as error:
        return f"{place}: not complete yet: {error}"


def _is_in(path: Path, folder: Path) -> bool:
    return path.absolute().is_relative_to(folder.absolute())


def _places(job: Job, group: BackboneGroup, source: Source) -> list[Path]:
    return [place_of(target) for target in job.targets(group, source)]


def _going_on(job: Job, group: BackboneGroup, manifests: dict[str, list[Manifest]]) -> Job:
    """Take up the batch size of the process that began, so that all shards are computed alike."""
    record = next(iter(manifests.values()))[0].meta.get("engine", {})
    size = record.get("batch_size") if isinstance(record, dict) else None
    if not isinstance(size, int) or size < 1:
        return job
    engine = job.engine.going_on_with(group, size)
    if engine.batch_size != size:
        job.reporter.say(
            f"these shards were begun with batch size {size}, and go on with {engine.batch_size}: "
            f"the last digits of features depend on it. To go on as before:  --batch-size {size}"
        )
    return replace(job, engine=engine)
