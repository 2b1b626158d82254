"""What a sweep varies, the run of its plans, and its rows as tables."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from featx.errors import CacheError, FeatxError, UsageError
from featx.evaluate import FitResult, ResultsFolder, Settings, pair_caches, run_fit, summarise
from featx.extract import NATIVE, Job, Plan, images_per_second, prepare
from featx.progress import SILENT, Reporter
from featx.sources.splits import choose_splits
from featx.stops import check
from featx.store import Cache

__all__ = ["Axes", "SweepRow", "sweep", "to_frame", "to_table"]

_SYSTEM = ("backbone", "layer", "pool", "preprocess", "input_size", "is_native", "n_features")
_FROM_SUMMARY = (
    *("head", "per class", "repeats", "accuracy", "draws low", "draws high"),
    *("test low", "test high", "test images", "seconds"),
)


@dataclass(frozen=True)
class Axes:
    """The values of every choice that a sweep varies; one value, or none, leaves it fixed."""

    input_size: tuple[int | str, ...] = ()
    layer: tuple[str, ...] = ()
    pool: tuple[str, ...] = ()
    preprocess: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, values in vars(self).items():
            if len(set(values)) < len(values):
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} has a value twice: {' '.join(map(str, values))}")

    @property
    def varied(self) -> tuple[str, ...]:
        """Names of the choices that have several values."""
        return tuple(name for name, values in vars(self).items() if len(values) > 1)

    def plans(self, plan: Plan) -> Iterator[Plan]:
        """Give the plan of every pass."""
        choices = itertools.product(
            dict.fromkeys(plan.backbone),
            self.pool or (plan.pool,),
            self.preprocess or (plan.preprocess,),
            self.input_size or (plan.input_size,),
        )
        for backbone, pool, preprocess, size in choices:
            yield replace(
                plan,
                backbone=(backbone,),
                layer=self.layer or plan.layer,
                pool=pool,
                preprocess=preprocess,
                input_size=size,
            )


@dataclass(frozen=True)
class SweepRow:
    """One system of a sweep."""

    backbone: str
    layer: str
    pool: str
    preprocess: str
    input_size: int
    is_native: bool
    n_features: int
    images_per_second: float
    fits: tuple[FitResult, ...]
    problem: str = ""


def sweep(
    plan: Plan,
    axes: Axes,
    settings: Settings,
    *,
    test_split: str | None = None,
    reporter: Reporter = SILENT,
    tell: Callable[[str], object] = print,
    results: ResultsFolder | None = None,
) -> list[SweepRow]:
    """Vary some choices, all else equal.

    Every system is extracted into a cache file of its own, as by ``featx extract``, so
    that an interrupted sweep goes on where it was; the draws and test images are the same for all.
    """
    rows: list[SweepRow] = []
    first: FeatxError | None = None
    plans = list(axes.plans(plan))
    for each in plans:
        each.check_words()
    # Data and device are opened once; names and sizes are judged one by one.
    shared = prepare(replace(plan, backbone=(), input_size=None), reporter)
    choose_splits([source.split for source in shared.sources], test_split)  # before hours of work
    for each in plans:
        try:
            rows += _run(shared.asking(each), settings, test_split, tell, results)
        except FeatxError as error:
            check()
            first = first or error
            reporter.warn(f"{_name(each)}: {error}")
            rows.append(_failed(each, str(error)))
    if first is not None and all(row.problem for row in rows):
        raise first
    return rows


def _run(
    job: Job,
    settings: Settings,
    test_split: str | None,
    tell: Callable[[str], object],
    results: ResultsFolder | None,
) -> list[SweepRow]:
    plan = job.asked
    group = job.open(plan.backbone[0])
    # By split, then by layer.
    job = job.fitted_to(group)
    paths = [[report.path for report in job.run(group, source)] for source in job.sources]
    rate = images_per_second(job.engine, group, job.sources[0], plan.store_dtype)
    rows = []
    for member, files in zip(group, zip(*paths, strict=True), strict=True):
        fits = _fit(files, settings, test_split, job.reporter, results)
        row = SweepRow(
            backbone=member.name,
            layer=member.layer,
            pool=member.pool,
            preprocess=plan.preprocess,
            input_size=member.input_size,
            is_native=plan.input_size == NATIVE,
            n_features=member.n_features,
            images_per_second=rate,
            fits=tuple(fits),
        )
        rows.append(row)
        tell(f"{_name(plan)}, layer {member.layer}: {member.n_features:,} features, {_best(fits)}")
    return rows


def _fit(
    files: Sequence[Path],
    settings: Settings,
    test_split: str | None,
    reporter: Reporter,
    results: ResultsFolder | None,
) -> list[FitResult]:
    caches = [Cache.open(file) for file in files]
    try:
        pairs, alone = pair_caches(caches, test_split)
        if not pairs:
            raise CacheError(f"{alone[0]}: a sweep needs images to fit on and images to test on")
        return run_fit(pairs, settings, results, reporter=reporter)[0]
    finally:
        for cache in caches:
            cache.close()


def _name(plan: Plan) -> str:
    parts = [plan.backbone[0]]
    if plan.input_size is not None:
        size = plan.input_size
        parts.append(f"{size} px" if isinstance(size, int) else f"{size} size")
    parts += [plan.pool] if plan.pool != "none" else []
    parts += [plan.preprocess] if plan.preprocess != "correct" else []
    return ", ".join(parts)


def _best(fits: Sequence[FitResult]) -> str:
    by_system: dict[tuple[str, str], list[float]] = {}
    for fit in fits:
        if fit.acc1 is None:
            continue
        by_system.setdefault((fit.clf, fit.per_class), []).append(fit.acc1)
    return ", ".join(
        f"{head} {per_class}: {np.mean(values):.1%}"
        for (head, per_class), values in by_system.items()
    )


def _failed(plan: Plan, problem: str) -> SweepRow:
    size = plan.input_size
    return SweepRow(
        backbone=plan.backbone[0],
        layer=" ".join(plan.layer) or "default",
        pool=plan.pool,
        preprocess=plan.preprocess,
        input_size=size if isinstance(size, int) else 0,
        is_native=size == NATIVE,
        n_features=0,
        images_per_second=float("nan"),
        fits=(),
        problem=problem.splitlines()[0],
    )


def to_frame(rows: Sequence[SweepRow]) -> pd.DataFrame:
    """Give one row for each fit, with everything that was varied."""
    lines = []
    for row in rows:
        own = {name: getattr(row, name) for name in _SYSTEM}
        own |= {"images_per_second": row.images_per_second, "problem": row.problem}
        lines += [fit.row() | own for fit in row.fits] or [own]
    return pd.DataFrame(lines)


def to_table(rows: Sequence[SweepRow], varied: Sequence[str]) -> pd.DataFrame:
    """Give one row for each system, head and size of subset."""
    lines = []
    for row in rows:
        own: dict[str, object] = {"backbone": row.backbone}
        own |= {"input" if name == "input_size" else name: _value(row, name) for name in varied}
        own |= {"dim": row.n_features, "images/s": row.images_per_second}
        for _, line in summarise(row.fits).iterrows():
            lines.append(own | {name: line[name] for name in _FROM_SUMMARY})
    table = pd.DataFrame(lines)
    table.attrs["notes"] = [
        f"not run: {row.backbone} {' '.join(str(_value(row, name)) for name in varied)}: "
        f"{row.problem}"
        for row in rows
        if row.problem
    ]
    return table


def _value(row: SweepRow, name: str) -> object:
    if name == "input_size":
        return f"native {row.input_size or ''}".strip() if row.is_native else str(row.input_size)
    return getattr(row, name)
