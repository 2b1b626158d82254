"""From a folder of caches to fits in a folder of results: what commands and Python both call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from featx.catalog import open_complete
from featx.errors import CacheError, UsageError, unknown_name
from featx.evaluate.cross import cross_pairs
from featx.evaluate.groups import add_groups
from featx.evaluate.leaks import Leaks
from featx.evaluate.output import ResultsFolder
from featx.evaluate.pairs import CacheLike, Pair, pair_caches, with_enough_images
from featx.evaluate.result import FitResult
from featx.evaluate.run import evaluate
from featx.evaluate.settings import Settings
from featx.evaluate.views import choose_classes
from featx.heads import Fit
from featx.progress import SILENT, Reporter
from featx.sources import ClassChoice

__all__ = ["CacheChoice", "run_fit"]

_FILTERS = ("backbone", "layer", "pool", "input_size")


@dataclass(frozen=True, kw_only=True)
class CacheChoice:
    """Which caches are fitted on and tested on; empty tuples choose all."""

    data: tuple[str, ...] = ()
    backbone: tuple[str, ...] = ()
    layer: tuple[str, ...] = ()
    pool: tuple[str, ...] = ()
    input_size: tuple[int, ...] = ()
    train_data: str | None = None
    test_data: str | None = None
    test_split: str | None = None
    classes: ClassChoice = field(default_factory=ClassChoice)
    groups: str | None = None

    def __post_init__(self) -> None:
        if (self.train_data is None) != (self.test_data is None):
            raise UsageError("--train-data and --test-data go together: name both data sets")
        if self.train_data is not None and self.data:
            raise UsageError("--data is for fits within a data set: leave it out, or --train-data")

    def pairs_in(
        self,
        folder: str | os.PathLike[str],
        per_class: Iterable[int | str],
        reporter: Reporter = SILENT,
    ) -> list[Pair]:
        """Pair the finished caches of a folder; say which were taken, and why others were not."""
        caches, notices = open_complete(folder)
        try:
            return self.pairs(caches, per_class, reporter, f"{folder}", notices)
        except CacheError:
            for cache in caches:
                cache.close()
            raise

    def pairs(
        self,
        caches: Sequence[CacheLike],
        per_class: Iterable[int | str],
        reporter: Reporter = SILENT,
        where: str = "the list of caches",
        notices: Sequence[str] = (),
    ) -> list[Pair]:
        """Pair some caches, as `pairs_in` does those of a folder."""
        chosen: Sequence[CacheLike] = caches
        for name in _FILTERS:
            chosen = _only(chosen, name, getattr(self, name), where)
        if self.train_data is not None and self.test_data is not None:
            both = self.train_data, self.test_data
            chosen = _only(chosen, "data", both, where)
            pairs, alone = cross_pairs(chosen, *both, self.classes, self.test_split)
        else:
            chosen = _only(chosen, "data", self.data, where)
            pairs, alone = pair_caches(chosen, self.test_split)
            pairs, small = with_enough_images(pairs, per_class)
            alone = [*alone, *small]
            pairs = [choose_classes(pair, self.classes) for pair in pairs]
        for notice in [*notices, *alone]:
            reporter.warn(notice)
        if not pairs:
            raise CacheError(
                f"{where} holds no finished caches to fit and test on: "
                + (alone[0] if alone else "run  featx extract --backbone NAME  first")
            )
        if len(chosen) < len(caches):
            reporter.say(
                f"{len(chosen)} of {len(caches)} caches in {where} are as asked: "
                + ", ".join(sorted({Path(cache.path).name for cache in chosen}))
            )
        return [add_groups(pair, self.groups) for pair in pairs] if self.groups else pairs


def run_fit(
    pairs: Iterable[Pair],
    settings: Settings,
    results: ResultsFolder | None,
    *,
    refit: bool = False,
    on_leaks: Callable[[Leaks], object] | None = None,
    reporter: Reporter = SILENT,
) -> tuple[list[FitResult], int]:
    """Fit and score on pairs of caches, and keep each fit in a folder as soon as it is there.

    Fits that the folder holds already are read, unless `refit`. Returns all fits in order, and how
    many of them are new.
    """
    fits: list[FitResult] = []
    n_new = 0

    def keep(pair: Pair, result: FitResult, fit: Fit | None) -> None:
        nonlocal n_new
        n_new += 1
        if results is not None:
            results.keep(pair, result, fit)

    for pair in pairs:
        fits += evaluate(
            pair,
            settings,
            reporter=reporter,
            sink=partial(keep, pair),
            on_leaks=on_leaks,
            known=None if refit else results,
        )
    if results is not None:
        results.complete(fits)
    return fits, n_new


def _only(
    caches: Sequence[CacheLike], name: str, wanted: Sequence[str | int], where: str
) -> Sequence[CacheLike]:
    """Choose the caches that have one of the values."""
    present = {str(cache.meta.get(name)) for cache in caches}
    kept: set[str] = set()
    for value in map(str, wanted):
        found = {value} & present
        if not found and name == "backbone":
            # A name of timm as it was typed stands for every tag of it that was extracted.
            found = {other for other in present if other.startswith(f"{value}.")}
        if not found:
            hint = unknown_name(f"{name.replace('_', ' ')} in {where}", value, present)
            raise CacheError(f"{hint}; extract it with  featx extract")
        kept |= found
    return [cache for cache in caches if str(cache.meta.get(name)) in kept] if wanted else caches
