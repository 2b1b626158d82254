"""Fit every head on every subset of a pair of caches, and score each fit once."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.errors import ProtocolError
from featx.evaluate.draws import Subset, draw_all, share_reads, union_of
from featx.evaluate.leak_report import leak_lines, leak_record, summary
from featx.evaluate.leaks import Leaks, find_leaks
from featx.evaluate.pairs import Pair
from featx.evaluate.reading import load_rows, require_unseen
from featx.evaluate.result import FitResult
from featx.evaluate.scores import score
from featx.evaluate.settings import NEAR_OFF, Settings
from featx.evaluate.views import ClassView, count_unusable
from featx.fingerprint import fingerprint
from featx.heads import Fit, FitOptions, Pool, RowSpace, get_head
from featx.heads.base import RowsView
from featx.progress import SILENT, Reporter

__all__ = ["evaluate"]

_RECORDED_PACKAGES = ("featx", "scikit-learn", "numpy", "scipy")


def evaluate(
    pair: Pair,
    settings: Settings,
    *,
    reporter: Reporter = SILENT,
    sink: Callable[[FitResult, Fit], object] | None = None,
    on_leaks: Callable[[Leaks], object] | None = None,
) -> list[FitResult]:
    """Fit and score.

    The test rows are never fitted on, and play no part in the choice of a penalty.

    Parameters
    ----------
    pair : Pair
        What to fit on and what to test on.
    settings : Settings
        Heads, subsets and repeats.
    reporter : Reporter, optional
        Shows progress; notices tell of unusable rows, images that are in both parts, and
        draws that are not different.
    sink : callable, optional
        Called with each result, and its fit, as soon as it is there.
    on_leaks : callable, optional
        Called with what the search for leaks found, before anything is done about it.

    Returns
    -------
    list of FitResult
        By draw, then by size, then by head.

    Raises
    ------
    ProtocolError
        If a class has too few rows, a used row holds NaN or infinity, the rows do not fit
        into memory, or there are leaks and they are to be errors.
    """
    job = _Job(pair, settings, reporter, on_leaks)
    results = []
    with reporter.bar(job.n_fits, pair.name, "fit") as bar:
        for result, fit in job.run():
            results.append(result)
            if sink is not None:
                sink(result, fit)
            bar.update(1, f"{result.clf} {result.per_class}: {result.acc1:.1%}")
    return results


@dataclass(frozen=True)
class _Timed:
    """A fit with its predictions and their times in seconds."""

    fit: Fit
    guess: NDArray[np.int64]
    fit_seconds: float
    predict_seconds: float


class _Job:
    """One pair, its subsets and its test rows."""

    def __init__(
        self,
        pair: Pair,
        settings: Settings,
        reporter: Reporter,
        on_leaks: Callable[[Leaks], object] | None,
    ) -> None:
        self.pair, self.settings, self.reporter = pair, settings, reporter
        self.notices: list[str] = []
        drawable, self.test_rows = pair.split(settings.holdout, settings.holdout_seed)
        if not self.test_rows.size:
            raise ProtocolError(f"{pair.name}: no test image is labelled and usable")
        self._tell([*pair.notices, *self._unusable()])
        self.leaks = find_leaks(pair, drawable, self.test_rows, settings)
        if on_leaks is not None:
            on_leaks(self.leaks)
        drawable = self._guarded(drawable)
        self.subsets, notices = draw_all(pair.train, drawable, settings)
        self._tell(notices)
        self.remarks = [*self._split_remarks(), *pair.notices]
        if found := summary(self.leaks):
            is_drop = settings.on_leak == "drop"
            self.remarks.append(f"{found} (left out of training)" if is_drop else found)
        self.n_fits = len(self.subsets) * len(settings.heads)
        self.test = RowsView(pair.test.X, self.test_rows)
        self.truth = np.asarray(pair.test.y)[self.test_rows]

    def _tell(self, notices: Iterable[str]) -> None:
        for notice in notices:
            self.notices.append(notice)
            self.reporter.warn(f"{self.pair.name}: {notice}")

    def _unusable(self) -> Iterator[str]:
        caches = [self.pair.train] if self.pair.is_holdout else [self.pair.train, self.pair.test]
        for cache in caches:
            if left_out := count_unusable(cache):
                yield f"{left_out} rows of {cache.path} are unusable or unlabelled and left out"

    def _split_remarks(self) -> Iterator[str]:
        if self.pair.is_holdout:
            what = (
                "of each class" if self.pair.groups is None else "of each class, in whole groups,"
            )
            share = f"{self.settings.holdout:.0%} {what} held out"
            yield f"no test split: {share} (seed {self.settings.holdout_seed})"

    def _guarded(self, drawable: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Rows that may be drawn once the leaks are dealt with."""
        settings, leaks = self.settings, self.leaks
        if settings.near == NEAR_OFF:
            self._tell(["near twins are not looked for (--near off)"])
        found, lines = summary(leaks), leak_lines(leaks)
        if found and settings.on_leak == "raise":
            error = ProtocolError(f"{self.pair.name}: {found}")
            error.add_note("\n  ".join(lines))
            raise error
        self._tell([found] * bool(found))
        for line in lines:
            self.reporter.warn(f"  {line}")
        if not found or settings.on_leak != "drop":
            return drawable
        self._tell([f"{len(leaks.train_rows):,} training images that leak are left out"])
        return drawable & ~np.isin(np.arange(len(drawable)), leaks.train_rows)

    def run(self) -> Iterator[tuple[FitResult, Fit]]:
        """Fit group by group of subsets that share a read."""
        for group in share_reads(self.subsets):
            rows = union_of(group)
            pool = Pool(load_rows(self.pair.train.X, rows))
            for subset in group:
                space = RowSpace(pool, np.searchsorted(rows, subset.rows))
                for name in self.settings.heads:
                    yield self._fit(name, subset, space)

    def _fit(self, name: str, subset: Subset, space: RowSpace) -> tuple[FitResult, Fit]:
        groups = None if self.pair.groups is None else self.pair.groups.train[subset.rows]
        options = FitOptions(self.settings.C, self.settings.folds, subset.seed, groups)
        train, test = self.pair.train, self.pair.test
        require_unseen((train.fingerprint, subset.rows), (test.fingerprint, self.test_rows))
        started = time.perf_counter()
        fit = get_head(name).fit(space, np.asarray(train.y)[subset.rows], options)
        fitted = time.perf_counter()
        guess = fit.model.predict(self.test)
        timed = _Timed(fit, guess, fitted - started, time.perf_counter() - fitted)
        return self._result(name, subset, timed), fit

    def _result(self, name: str, subset: Subset, timed: _Timed) -> FitResult:
        fit, train = timed.fit, self.pair.train
        acc1, macro_f1, detail = score(self.truth, timed.guess, train.class_names)
        return FitResult(
            data=self.pair.data_name,
            **{key: train.meta[key] for key in _FROM_META},
            n_features=int(train.X.shape[1]),
            clf=name,
            per_class=str(subset.per_class),
            repeat=subset.repeat,
            seed=subset.seed,
            C=fit.C,
            cv_accuracy=max(fit.cv.mean) if fit.cv else None,
            acc1=acc1,
            macro_f1=macro_f1,
            n_train=len(subset.rows),
            n_test=len(self.test_rows),
            fit_seconds=timed.fit_seconds,
            predict_seconds=timed.predict_seconds,
            n_iter=fit.n_iter,
            converged=fit.converged,
            notes="; ".join([*self.remarks, *fit.notes]),
            train_fingerprint=train.fingerprint,
            test_fingerprint=self.pair.test.fingerprint,
            subset_sha256=subset.sha256,
            featx_version=version("featx"),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            fit_id=self._fit_id(name, subset),
            detail={**detail, **self._detail(subset, fit)},
        )

    def _fit_id(self, name: str, subset: Subset) -> str:
        identity = {
            "train": self.pair.train.fingerprint,
            "test": self.pair.test.fingerprint,
            "test_rows": self.test_rows.tolist(),
            "head": name,
            "per_class": str(subset.per_class),
            "repeat": subset.repeat,
            "seed": subset.seed,
            "rows": subset.sha256,
            "C": self.settings.C,
            "folds": self.settings.folds,
        }
        return fingerprint(identity | self._choices())[:16]

    def _choices(self) -> dict[str, Any]:
        """Classes and groups, where any were chosen."""
        parts = {"train": self.pair.train, "test": self.pair.test}
        views = {part: c.record() for part, c in parts.items() if isinstance(c, ClassView)}
        groups = {"groups": self.pair.groups.record()} if self.pair.groups else {}
        return ({"classes": views} if views else {}) | groups

    def _detail(self, subset: Subset, fit: Fit) -> dict[str, Any]:
        is_choice = len(self.test_rows) < len(self.pair.test.y)
        n_drawn = int(np.isin(subset.rows, self.leaks.train_rows).sum())
        return {
            "train_rows": subset.rows.tolist(),
            "test_rows": self.test_rows.tolist() if is_choice else "all",
            "is_holdout": self.pair.is_holdout,
            "cv": {"C": fit.cv.C, "accuracy": fit.cv.accuracy} if fit.cv else None,
            "notices": list(self.notices),
            "leaks": leak_record(self.leaks)
            | {"on_leak": self.settings.on_leak, "n_drawn": n_drawn},
            **self._choices(),
            "settings": self.settings.record(),
            "train_cache": str(self.pair.train.path),
            "test_cache": str(self.pair.test.path),
            "versions": {
                "python": platform.python_version(),
                **{package: version(package) for package in _RECORDED_PACKAGES},
            },
        }


_FROM_META = ("backbone", "layer", "pool", "input_size", "precision")
