"""Fit every head on every subset of a pair of caches, and score each fit once."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.errors import ProtocolError
from featx.evaluate.draws import Subset, draw_all, share_reads, union_of
from featx.evaluate.pairs import Pair
from featx.evaluate.reading import count_known, hash_rows, load_rows, require_unseen
from featx.evaluate.result import FitResult
from featx.evaluate.scores import score
from featx.evaluate.settings import Settings
from featx.fingerprint import fingerprint
from featx.heads import Fit, FitOptions, RowSpace, get_head
from featx.heads.base import RowsView
from featx.heads.rowspace import gram_matrix
from featx.progress import SILENT, Reporter

__all__ = ["evaluate"]

_RECORDED_PACKAGES = ("featx", "scikit-learn", "numpy", "scipy")


def evaluate(
    pair: Pair,
    settings: Settings,
    *,
    reporter: Reporter = SILENT,
    sink: Callable[[FitResult, Fit], object] | None = None,
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

    Returns
    -------
    list of FitResult
        By draw, then by size, then by head.

    Raises
    ------
    ProtocolError
        If a class has too few rows, a used row holds NaN or infinity, or the rows do not fit
        into memory.
    """
    job = _Job(pair, settings, reporter)
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

    def __init__(self, pair: Pair, settings: Settings, reporter: Reporter) -> None:
        self.pair, self.settings, self.reporter = pair, settings, reporter
        drawable, self.test_rows = pair.split(settings.holdout, settings.holdout_seed)
        if not self.test_rows.size:
            raise ProtocolError(f"{pair.name}: no test image is labelled and usable")
        self.subsets, notices = draw_all(pair.train, drawable, settings)
        self.notices = [*self._unusable(), *notices]
        for notice in self.notices:
            reporter.warn(f"{pair.name}: {notice}")
        share = f"{settings.holdout:.0%} of each class held out (seed {settings.holdout_seed})"
        self.remarks = [f"no test split: {share}"] if pair.is_holdout else []
        self.n_fits = len(self.subsets) * len(settings.heads)
        self.test = RowsView(pair.test.X, self.test_rows)
        self.truth = np.asarray(pair.test.y)[self.test_rows]

    def _unusable(self) -> Iterator[str]:
        caches = [self.pair.train] if self.pair.is_holdout else [self.pair.train, self.pair.test]
        for cache in caches:
            left_out = int((~self.pair.usable(cache)).sum())
            if left_out:
                yield f"{left_out} rows of {cache.path} are unusable or unlabelled and left out"

    def run(self) -> Iterator[tuple[FitResult, Fit]]:
        """Fit group by group of subsets that share a read."""
        known = hash_rows(self.test)
        for group in share_reads(self.subsets):
            rows = union_of(group)
            pool = load_rows(self.pair.train.X, rows)
            if count := count_known(pool, known):
                text = (
                    f"{count} of {len(rows):,} images fitted on have a twin among the test images"
                )
                self.notices.append(text)
                self.reporter.warn(f"{self.pair.name}: {text} (equal features)")
            gram = gram_matrix(pool) if len(rows) < pool.shape[1] else None
            for subset in group:
                space = RowSpace(pool, np.searchsorted(rows, subset.rows), gram)
                for name in self.settings.heads:
                    yield self._fit(name, subset, space)

    def _fit(self, name: str, subset: Subset, space: RowSpace) -> tuple[FitResult, Fit]:
        options = FitOptions(C=self.settings.C, folds=self.settings.folds, seed=subset.seed)
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
        return fingerprint(identity)[:16]

    def _detail(self, subset: Subset, fit: Fit) -> dict[str, Any]:
        is_choice = len(self.test_rows) < len(self.pair.test.y)
        return {
            "train_rows": subset.rows.tolist(),
            "test_rows": self.test_rows.tolist() if is_choice else "all",
            "is_holdout": self.pair.is_holdout,
            "cv": {"C": fit.cv.C, "accuracy": fit.cv.accuracy} if fit.cv else None,
            "notices": list(self.notices),
            "settings": self.settings.record(),
            "train_cache": str(self.pair.train.path),
            "test_cache": str(self.pair.test.path),
            "versions": {
                "python": platform.python_version(),
                **{package: version(package) for package in _RECORDED_PACKAGES},
            },
        }


_FROM_META = ("data", "backbone", "layer", "pool", "input_size", "precision")
