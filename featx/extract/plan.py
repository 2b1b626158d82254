"""Everything that one question of ``featx extract`` says, and its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.errors import UsageError, unknown_name
from featx.progress import Reporter

if TYPE_CHECKING:
    from featx.backbones import Backbone, BackboneGroup
    from featx.engines import LocalEngine
    from featx.extract.run import ExtractReport
    from featx.extract.settings import Sample
    from featx.sources import Source

__all__ = ["NATIVE", "Job", "Plan", "prepare", "run_plan"]

NATIVE = "native"
"""An input size: that of the images themselves, which are not resized."""

# What decides nothing about the features.
_NOT_RECORDED = (
    "cache_dir",
    "overwrite",
    "append",
    "split",
    "device",
    "workers",
    "on_error",
)
_PATHS = ("data", "weights")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that was typed after ``featx extract``, by the names of the options."""

    backbone: tuple[str, ...]
    data: str = "cifar10"
    split: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    map: tuple[str, ...] = ()
    weights: str | None = None
    layer: tuple[str, ...] = ()
    pool: str = "none"
    input_size: int | str | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    preprocess: str = "correct"
    precision: str = "fp32"
    store_dtype: str = "float16"
    batch_size: int | None = None
    workers: int | None = None
    device: str = "auto"
    per_class: int | None = None
    test_per_class: int | None = None
    seed: int = 0
    cache_dir: str = "cache"
    overwrite: bool = False
    on_error: str = "skip"
    append: bool = False

    def overrides(self) -> dict[str, Any]:
        """Give the changes to the weights' own preprocessing that were asked for.

        Returns
        -------
        dict
            Keyword arguments of `Preprocessing.override`.

        Raises
        ------
        UsageError
            If a mistake is unknown, or `input_size` is a word: see `at_native_size`.
        """
        from featx.preprocess import MISTAKES

        if self.preprocess not in MISTAKES:
            raise unknown_name("preprocess", self.preprocess, MISTAKES)
        if isinstance(self.input_size, str):
            raise UsageError(f"input-size is {self.input_size!r}: give pixels, or {NATIVE!r}")
        names = ("input_size", "crop_pct", "interpolation", "mean", "std")
        values = {name: getattr(self, name) for name in names}
        chosen = {name: value for name, value in values.items() if value is not None}
        return MISTAKES[self.preprocess] | chosen

    def at_native_size(self, sources: Sequence[Source], reporter: Reporter) -> Plan:
        """Put the size of the images in place of ``native``.

        Parameters
        ----------
        sources : sequence of Source
            The images; the headers of at most 100,000 of each are read.
        reporter : Reporter
            Is told the size.

        Returns
        -------
        Plan
            `self` where the size is given as a number, or not at all.

        Raises
        ------
        UsageError
            If the images are of different sizes.
        """
        if self.input_size != NATIVE:
            return self
        from featx.sources.look import common_size

        width, height = common_size(sources)
        side = min(width, height)
        cropped = "" if width == height else f", centre crop of {width} x {height}"
        reporter.say(f"native input size: {side} pixels, nothing is resized{cropped}")
        return replace(self, input_size=side, crop_pct=1.0)

    def request(self, backbone: str) -> dict[str, Any]:
        """Give what decides the features of one backbone, to be recorded and asked again.

        Parameters
        ----------
        backbone : str
            One of those typed.

        Returns
        -------
        dict
            Keyword arguments of `Plan`, as plain values; paths are absolute.
        """
        from featx.sources import available_data

        values = {k: v for k, v in asdict(self).items() if v is not None and k not in _NOT_RECORDED}
        values["backbone"] = [backbone]
        for name in _PATHS:
            word = values.get(name)
            if word and Path(word).exists() and word not in available_data():
                values[name] = str(Path(word).absolute())
        return values


def run_plan(
    plan: Plan,
    reporter: Reporter,
    *,
    target: Path | None = None,
    tell: Callable[[str], object] = print,
) -> list[ExtractReport]:
    """Extract every split of the data with every backbone at every layer.

    Parameters
    ----------
    plan : Plan
        What to do.
    reporter : Reporter
        Shows what is done.
    target : Path, optional
        The file, where it is one backbone, layer and split; named by its settings by default.
    tell : callable, default=print
        Is given a line about each finished file.

    Returns
    -------
    list of ExtractReport
        By backbone, then by split, then by layer.

    Raises
    ------
    FeatxError
        Of any kind, from wrong names to full disks.
    """
    job = prepare(plan, reporter)
    reports: list[ExtractReport] = []
    for name in plan.backbone:
        group = job.open(name)
        for source in job.sources:
            done = job.run(group, source, target)
            for report, backbone in zip(done, group, strict=True):
                tell(_done(report, backbone, plan.store_dtype))
            reports += done
    return reports


def prepare(plan: Plan, reporter: Reporter) -> Job:
    """Check the names of a plan, and open its data and its device.

    Parameters
    ----------
    plan : Plan
        What to do.
    reporter : Reporter
        Shows what is done.

    Returns
    -------
    Job

    Raises
    ------
    FeatxError
        Of any kind.
    """
    from featx.backbones import check_backbone
    from featx.engines import LocalEngine, resolve_device, resolve_precision
    from featx.extract.settings import Sample, take_sample
    from featx.sources import ClassChoice, open_data

    for name in plan.backbone:
        check_backbone(name)
    device = resolve_device(plan.device)
    precision, why = resolve_precision(plan.precision, device)
    engine = LocalEngine(device, precision, plan.batch_size, plan.workers, reporter.warn)
    classes = ClassChoice.parse(plan.classes, plan.drop, plan.map)
    sample = Sample(plan.per_class, plan.test_per_class, plan.seed, classes)
    splits = _chosen(open_data(plan.data, reporter=reporter), plan)
    sources = [take_sample(source, sample) for source in splits.values()]
    reporter.say(f"device {device}, precision {precision} ({why})")
    return Job(plan, plan, sample, sources, engine, reporter).asking(plan)


def _chosen(splits: Mapping[str, Source], plan: Plan) -> dict[str, Source]:
    unknown = [name for name in plan.split if name not in splits]
    if unknown:
        raise UsageError(
            f"{plan.data} has no split {unknown[0]!r}: choose from {', '.join(splits)}"
        )
    # Images without labels serve no fit: they are extracted where they are asked for.
    wanted = plan.split or [name for name in splits if name != "unlabeled" or len(splits) == 1]
    return {name: source for name, source in splits.items() if name in wanted}


@dataclass(frozen=True)
class Job:
    """A plan with its data and its device opened; made by `prepare`.

    Parameters
    ----------
    asked, plan : Plan
        As typed, and with all sizes in pixels.
    sample : Sample
        Which part of the data it takes.
    sources : list of Source
        The splits, restricted to that.
    engine : LocalEngine
        What runs the network.
    reporter : Reporter
        Shows what is done.
    """

    asked: Plan
    plan: Plan
    sample: Sample
    sources: list[Source]
    engine: LocalEngine
    reporter: Reporter

    def asking(self, plan: Plan) -> Job:
        """Put another question to the same data on the same device.

        Parameters
        ----------
        plan : Plan
            It may differ in backbones, layers, pooling, input size and preprocessing.

        Returns
        -------
        Job

        Raises
        ------
        UsageError
            If the native size is asked for and the images have several.
        """
        sized = plan.at_native_size(self.sources, self.reporter)
        return replace(self, asked=plan, plan=sized)

    def open(self, name: str) -> BackboneGroup:
        """Open one backbone at the layers of the plan.

        Parameters
        ----------
        name : str
            One of the plan's.

        Returns
        -------
        BackboneGroup
            One member a layer.
        """
        from featx.backbones import open_backbones

        group = open_backbones(
            name,
            layers=self.plan.layer or (None,),
            pool=self.plan.pool,
            weights=self.plan.weights,
            overrides=self.plan.overrides(),
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

    def run(
        self, group: BackboneGroup, source: Source, target: Path | None = None
    ) -> list[ExtractReport]:
        """Extract one split.

        Parameters
        ----------
        group : BackboneGroup
            What `open` gave.
        source : Source
            One of `sources`.
        target : Path, optional
            The file, where there is one layer; named by its settings by default.

        Returns
        -------
        list of ExtractReport
            One a layer.
        """
        from featx.extract.run import extract_many
        from featx.extract.settings import Settings, cache_path

        settings = Settings(
            sample=self.sample,
            store_dtype=self.plan.store_dtype,
            overrides=self.plan.overrides(),
            overwrite=self.plan.overwrite,
            on_error=self.plan.on_error,
            reuse=self.plan.append,
            request=self.asked.request(group[0].name),
        )
        folder = Path(self.plan.cache_dir)
        paths = [cache_path(folder, source, member, self.engine, settings) for member in group]
        targets = paths if target is None else [target]
        return extract_many(source, group, self.engine, targets, settings, reporter=self.reporter)


def _describe(backbone: Backbone) -> str:
    shape = " x ".join(str(n) for n in backbone.feature_shape)
    return (
        f"{backbone.name}, weights {backbone.weights.label}, layer {backbone.layer}, "
        f"pool {backbone.pool}: {shape} = {backbone.n_features:,} features"
    )


def _done(report: ExtractReport, backbone: Backbone, store_dtype: str) -> str:
    done = (
        f"{report.n_computed:,} images in {report.seconds:.1f} s"
        if report.n_computed
        else "was complete already"
    )
    size = f"{report.n_images:,} x {backbone.n_features:,} {store_dtype}"
    return f"{report.path}: {size}, {report.n_bytes / 1e6:,.0f} MB, {done}"
