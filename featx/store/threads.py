"""A few threads for work that waits for the disk or computes outside Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

__all__ = ["N_THREADS", "in_threads"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

N_THREADS: Final = min(4, os.cpu_count() or 1)
"""Threads of `in_threads`."""


def in_threads(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterator[_Result]:
    """Map `function` over `items` in a few threads, in order; stops at once if left early."""
    pool = ThreadPoolExecutor(N_THREADS, "featx-disk")
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)
