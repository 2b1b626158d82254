"""Fit every head on every subset of a pair of caches, and score each fit once.

Fits may run side by side; their results come in order. What was fitted on is never scored.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any, TypeVar

import numpy as np
from joblib import Parallel, cpu_count, delayed, effective_n_jobs
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from featx.errors import ProtocolError
from featx.evaluate.fitting import Fitting
from featx.evaluate.forecast import Task, foretell
from featx.evaluate.leaks import Leaks
from featx.evaluate.on_ray import FitCrew
from featx.evaluate.pair import Pair
from featx.evaluate.question import Question, Subset, share_reads, union_of
from featx.evaluate.result import FitResult, joined
from featx.evaluate.results_folder import ResultsFolder
from featx.evaluate.settings import RAY, Settings
from featx.heads import Fit, Pool, find_head
from featx.heads.base import Rows, RowsView, as_stored, check_finite, row_blocks
from featx.heads.device import AUTO, choose_device
from featx.heads.scaling import STANDARD, Scaling
from featx.memory import available_bytes
from featx.progress import SILENT, Reporter
from featx.stops import heard

__all__ = [
    "evaluate",
    "hold_rows",
    "in_order",
    "require_unseen",
    "run_fit",
]


# Of the available memory, for rows; Gram matrices need the rest.
_SHARE = 0.6


def hold_rows(X: Rows, rows: NDArray[np.int64]) -> NDArray[Any] | RowsView:
    """Read rows into memory as they are stored, or, where they do not fit, where they are."""
    X, n_features = as_stored(X), int(X.shape[1])
    dtype = np.asarray(X[0:1]).dtype
    fits = len(rows) * n_features * dtype.itemsize < _SHARE * available_bytes()
    out = np.empty((len(rows), n_features), dtype) if fits else None
    for block in row_blocks(len(rows), n_features):
        part = np.asarray(X[rows[block]])
        check_finite(part, block.start, rows)
        if out is not None:
            out[block] = part
    return RowsView(X, rows) if out is None else out


def require_unseen(
    fitted: tuple[str, NDArray[np.int64]], scored: tuple[str, NDArray[np.int64]]
) -> None:
    """Refuse to score a head on rows that it was fitted on."""
    if fitted[0] != scored[0]:
        return
    shared = np.intersect1d(fitted[1], scored[1])
    if shared.size:
        raise ProtocolError(
            f"{shared.size} rows would be scored that were fitted on (the first is {shared[0]}): "
            "test on other rows"
        )


T = TypeVar("T")


def in_order(calls: Sequence[Callable[[], T]], n_jobs: int) -> Iterator[T]:
    """Call functions in threads and yield what they return, in order, as it comes."""
    n_threads = min(effective_n_jobs(n_jobs), len(calls))
    if n_threads < 2:
        yield from (call() for call in calls)
        return
    with threadpool_limits(max(1, cpu_count() // n_threads)):
        parallel = Parallel(n_threads, backend="threading", return_as="generator")
        yield from parallel(delayed(call)() for call in calls)


_RECORDED_PACKAGES = ("featx", "scikit-learn", "numpy", "scipy")


def evaluate(
    pair: Pair,
    settings: Settings,
    *,
    reporter: Reporter = SILENT,
    sink: Callable[[FitResult, Fit | None], object] | None = None,
    on_leaks: Callable[[Leaks], object] | None = None,
    known: ResultsFolder | None = None,
) -> list[FitResult]:
    """Fit and score.

    The test rows are never fitted on, and play no part in the choice of a penalty.
    """
    with heard(), ExitStack() as stack:
        job = _Job(Question(pair, settings, reporter, on_leaks, known), known)
        results = []
        with reporter.bar(job.n_fits, pair.name, "fit", initial=len(job.answered)) as bar:
            job.tick = partial(bar.update, 0)
            if settings.engine == RAY:
                job.crew = stack.enter_context(FitCrew(job.fitting, reporter, job.tick))
            for result, fit in job.run():
                results.append(result)
                if result.fit_id in job.answered:
                    continue
                if sink is not None:
                    sink(result, fit)
                said = "failed" if result.acc1 is None else f"{result.acc1:.1%}"
                bar.update(1, f"{result.clf} {result.per_class}: {said}")
    return results


class _Job:
    """The fits of one question."""

    def __init__(self, question: Question, known: ResultsFolder | None) -> None:
        self.question, self.pair, self.settings = question, question.pair, question.settings
        self.n_fits = len(question.subsets) * len(self.settings.heads)
        self.fitting = Fitting.of(question)
        self.crew: FitCrew | None = None
        self.answered = dict(self._answers(known)) if known is not None else {}
        self.missing: list[list[Task]] = []  # fits that no earlier run made, by group
        self.tick: Callable[[str], object] = str  # says what a fit does now

    def _answers(self, known: ResultsFolder) -> Iterator[tuple[str, FitResult]]:
        for subset, name in itertools.product(self.question.subsets, self.settings.heads):
            answer = self.question.answer(name, subset, known)
            if answer is not None:
                yield answer.fit_id, answer

    def run(self) -> Iterator[tuple[FitResult, Fit | None]]:
        """Fit group by group of subsets that share a read; known results come without a fit."""
        groups = share_reads(self.question.subsets)
        tasks = [list(itertools.product(group, self.settings.heads)) for group in groups]
        ids = [[self.question.fit_id(name, sub) for sub, name in group] for group in tasks]
        self.missing = [
            [task for task, fit_id in zip(*both, strict=True) if fit_id not in self.answered]
            for both in zip(tasks, ids, strict=True)
        ]
        for group, missing, of_group in zip(groups, self.missing, ids, strict=True):
            fits = self._made(group, missing)
            for fit_id in of_group:
                known = self.answered.get(fit_id)
                yield next(fits) if known is None else (known, None)

    def _foretell(self, pool: Pool) -> None:
        """Say once how long all fits take, as soon as there are rows to time."""
        missing, self.missing = self.missing, []
        if self.crew is None and missing:
            text = foretell(pool, missing, len(self.pair.train.class_names), self.settings)
            if text is not None:
                self.question.reporter.say(f"{self.pair.name}: {text}")

    def _made(
        self, group: list[Subset], missing: list[Task]
    ) -> Iterator[tuple[FitResult, Fit | None]]:
        if not missing:
            return
        # All rows of the group, so that a fit gives the same bits when others are known.
        rows, question = union_of(group), self.question
        tested = (self.pair.test.fingerprint, question.test_rows)
        for subset, _ in missing:
            require_unseen((self.pair.train.fingerprint, subset.rows), tested)
        tasks = [(name, subset, np.searchsorted(rows, subset.rows)) for subset, name in missing]
        pool = self._pool(group, rows, {name for _, name in missing})
        if self.crew is not None:
            found = self.crew.fit(pool, tasks)
        else:
            calls = [partial(self.fitting, pool, *task, self.tick) for task in tasks]
            found = in_order(calls, self.settings.n_jobs)
        for (subset, name), (measures, fit) in zip(missing, found, strict=True):
            yield self._result(name, subset, measures), fit

    def _pool(self, group: list[Subset], rows: NDArray[np.int64], heads: set[str]) -> Pool:
        """Rows in memory, with the Gram matrix that the fits share, where one needs it."""
        device = self.settings.device
        if device != AUTO:
            choose_device(device)  # a wrong name is told, whatever the heads make of it
        # What a pool far away has to tell is not heard.
        tell = self.question.reporter.warn if self.crew is None else None
        pool = Pool(hold_rows(self.pair.train.X, rows), device, tell)
        self._foretell(pool)
        if self._shares_gram(group, pool, heads) and pool.holds_gram():
            pool.gram(Scaling(self.settings.scale))
        return pool

    def _shares_gram(self, group: list[Subset], pool: Pool, heads: set[str]) -> bool:
        """Whether fits take parts of one Gram matrix."""
        scale, n_features = self.settings.scale, pool.shape[1]
        if scale == STANDARD or all(len(subset.rows) >= n_features for subset in group):
            return False
        found = (find_head(name, self.settings.allow_code) for name in heads)
        needed = (getattr(head, "needs_gram", True) for head in found)
        return not Scaling(scale).is_of_rows or any(needed)

    def _result(self, name: str, subset: Subset, measures: dict[str, Any]) -> FitResult:
        train, question = self.pair.train, self.question
        told = question.record(subset) | question.asked(name, subset)
        own = {
            "notes": joined([*question.remarks, *measures["notes"]]),
            "detail": {**measures["detail"], **told, "versions": _versions()},
        }
        return FitResult(
            **question.names(),
            n_features=int(train.X.shape[1]),
            clf=name,
            scale=self.settings.scale,
            class_weight=self.settings.class_weight,
            per_class=str(subset.per_class),
            repeat=subset.repeat,
            seed=subset.seed,
            n_train=len(subset.rows),
            n_test=len(question.test_rows),
            train_fingerprint=train.fingerprint,
            test_fingerprint=self.pair.test.fingerprint,
            subset_sha256=subset.sha256,
            featx_version=version("featx"),
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
            fit_id=question.fit_id(name, subset),
            **measures | own,
        )


def _versions() -> dict[str, str]:
    own = {package: version(package) for package in _RECORDED_PACKAGES}
    return {"python": platform.python_version(), **own}


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
