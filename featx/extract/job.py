"""A plan with its data and its devices opened, and everything that it asks extracted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.errors import BackboneError, UsageError
from featx.extract.plan import NATIVE, Plan, Sources, make_folder, open_sources
from featx.progress import SILENT, Reporter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from featx.backbones import Backbone, BackboneGroup
    from featx.engines import Engine
    from featx.extract.report import ExtractReport
    from featx.extract.settings import Sample, Settings
    from featx.sources import Source

__all__ = ["Job", "prepare", "run_plan"]


def run_plan(
    plan: Plan,
    reporter: Reporter = SILENT,
    *,
    target: Path | None = None,
    tell: Callable[[str], object] = print,
    profile: bool = False,
) -> list[ExtractReport]:
    """Extract every split of the data with every backbone at every layer."""
    from featx.extract.known import find_known

    plan.check_words()
    plan = plan.drawn_as_in_folder()
    sources = cache(partial(open_sources, plan, reporter))
    if target is None and (known := find_known(plan, reporter, sources)) is not None:
        for report in known:
            tell(str(report))
        return known
    sources()
    if target is None:
        make_folder(Path(plan.cache_dir))
    job = prepare(plan, reporter, sources)
    reports: list[ExtractReport] = []
    for name in plan.backbone:
        group = job.open(name)
        fitted = job.fitted_to(group)
        for source in job.sources:
            done = fitted.run(group, source, target)
            for report in done:
                tell(str(report))
            if profile and done[0].times is not None:
                tell(done[0].times.table())
            reports += done
    return reports


def prepare(plan: Plan, reporter: Reporter, sources: Callable[[], Sources] | None = None) -> Job:
    """Check the names of a plan, and open its data and its device."""
    plan.check_words()
    plan = plan.drawn_as_in_folder()
    opened = open_sources(plan, reporter) if sources is None else sources()
    # What is wrong with words or data was said by now: torch takes seconds.
    from featx.backbones import check_backbone
    from featx.engines import open_engine, resolve_devices, resolve_precision, resolve_runtime

    for name in plan.backbone:
        check_backbone(name)
    devices = resolve_devices(plan.devices)
    precision, why = resolve_precision(plan.precision, devices[0])
    n_images = sum(map(len, opened))
    runtime, because = resolve_runtime(plan.runtime, devices[0], precision, n_images)
    engine = open_engine(
        devices,
        precision,
        images_per_batch=plan.batch_size,
        workers=plan.workers,
        tell=reporter.warn,
        runtime=runtime,
        max_memory=plan.max_memory,
    )
    reporter.say(f"device {', '.join(map(str, devices))}, precision {precision} ({why})")
    if plan.runtime != "torch":
        reporter.say(f"runtime {runtime} ({because})")
    splits = _Splits(opened, reporter)
    return Job(plan, plan, plan.sample, opened, splits, engine, reporter).asking(plan)


@dataclass(frozen=True)
class _Splits:
    """The splits of a run, hashed together before the first image of any is extracted."""

    sources: Sources
    reporter: Reporter

    @cached_property
    def digests(self) -> dict[str, NDArray[np.uint8]]:
        """SHA-256 of each image, (N, 32), by split."""
        return {s.split: s.image_digests(reporter=self.reporter) for s in self.sources}

    @property
    def listed(self) -> dict[str, dict[str, Any]]:
        """What is known of all splits before an image is read."""
        record = {split: dict(known) for split, known in self.sources.listed.items()}
        for source in self.sources:
            record[source.split]["n_images"] = len(source)
        return record

    @cached_property
    def record(self) -> dict[str, Any]:
        """What a cache says of all splits of the run that made it."""
        record = self.listed
        for source in self.sources:
            record[source.split]["content"] = source.content_id(self.digests[source.split])
        return record


@dataclass(frozen=True)
class Job:
    """A plan with its data and its device opened; made by `prepare`."""

    asked: Plan
    plan: Plan
    sample: Sample
    sources: list[Source]
    splits: _Splits
    engine: Engine
    reporter: Reporter

    def asking(self, plan: Plan) -> Job:
        """Put another question to the same data on the same device."""
        sized = plan.at_native_size(self.sources, self.reporter)
        return replace(self, asked=plan, plan=sized)

    def open(self, name: str) -> BackboneGroup:
        """Open one backbone at the layers of the plan."""
        from featx.backbones import open_backbones

        group = open_backbones(
            name,
            layers=self.plan.layer or (None,),
            pool=self.plan.pool,
            weights=self.plan.weights,
            weights_key=self.plan.weights_key,
            overrides=self.plan.overrides(),
            allow_code=self.plan.allow_code,
            reporter=self.reporter,
        )
        if self.asked.input_size == NATIVE:
            self._refuse_squashing(group)
        for backbone in group:
            self.reporter.say(_describe(backbone))
        self.reporter.say(f"preprocessing: {group.preprocessing.describe()}")
        return group

    def _refuse_squashing(self, group: BackboneGroup) -> None:
        """Squashing or bordering oblong images is a resize, and native means none."""
        from featx.sources.look import common_size

        mode = group.preprocessing.crop_mode
        if mode == "center":
            return
        width, height = common_size(self.sources)
        if width != height:
            raise UsageError(
                f"the weights of {group[0].name} fit images into a square (crop mode {mode}), and "
                f"these are {width} x {height}: that is a resize, which the native size excludes; "
                "give pixels, as in  --input-size 224"
            )

    def fitted_to(self, group: BackboneGroup) -> Job:
        """Choose a batch size that fits into memory, and a runtime that takes the network."""
        engine = self.engine.fitted_to(group)
        if self.plan.runtime == "auto" and engine.runtime != "torch":
            try:
                engine.warm_up(group, self.plan.store_dtype)
            except BackboneError as error:
                self.reporter.say(f"runtime torch: {error}")
                engine = engine.with_runtime("torch")
        return replace(self, engine=engine)

    def run(
        self, group: BackboneGroup, source: Source, target: Path | None = None
    ) -> list[ExtractReport]:
        """Extract one split."""
        from featx.extract.run import extract_many

        return extract_many(
            source,
            group,
            self.engine,
            self.targets(group, source) if target is None else [target],
            self.settings(group, self.splits.record),
            digests=self.splits.digests[source.split],
            reporter=self.reporter,
        )

    def settings(self, group: BackboneGroup, splits: Mapping[str, Any]) -> Settings:
        """Give all choices, and what is recorded of the splits."""
        return replace(
            self._settings(),
            overwrite=self.plan.overwrite,
            on_error=self.plan.on_error,
            reuse=self.plan.append,
            request=self._answered().request(group[0].name),
            splits=splits,
        )

    def targets(self, group: BackboneGroup, source: Source) -> list[Path]:
        """Name the cache file of each feature point."""
        from featx.extract.settings import cache_path

        folder, settings = Path(self.plan.cache_dir), self._settings()
        return [cache_path(folder, source, member, self.engine, settings) for member in group]

    def _settings(self) -> Settings:
        """Give what the name of a file depends on."""
        from featx.extract.settings import Settings

        return Settings(
            sample=self.sample,
            store_dtype=self.plan.store_dtype,
            overrides=self.plan.overrides(),
        )

    def _answered(self) -> Plan:
        """Put what was taken in the place of ``auto``, so that it can be asked again."""
        return replace(self.asked, precision=self.engine.precision, runtime=self.engine.runtime)


def _describe(backbone: Backbone) -> str:
    shape = " x ".join(str(n) for n in backbone.feature_shape)
    return (
        f"{backbone.name}, weights {backbone.weights.label}, layer {backbone.layer}, "
        f"pool {backbone.pool}: {shape} = {backbone.n_features:,} features"
    )
