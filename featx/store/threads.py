"""A few threads for work that waits for the disk or computes outside Python's lock."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, TypeVar

__all__ = ["N_THREADS", "give_way", "in_threads"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

N_THREADS: Final = min(4, os.cpu_count() or 1)
"""Threads of `in_threads`."""

_NICENESS = 5


def give_way(niceness: int = _NICENESS) -> None:
    """Leave the cores to the network that computes beside the calling thread.

    A network on a CPU shares its work between threads that wait for each other: where one of
    them is displaced, all are. Nothing is done where threads have no priorities of their own.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


def in_threads(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterator[_Result]:
    """Map `function` over `items` in a few threads, in order; stops at once if left early."""
    pool = ThreadPoolExecutor(N_THREADS, "featx-disk")
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)
