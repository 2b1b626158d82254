"""Several fits at once, with their results in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from joblib import Parallel, cpu_count, delayed, effective_n_jobs
from threadpoolctl import threadpool_limits

__all__ = ["in_order"]

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
