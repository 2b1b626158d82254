"""Fits shared out among the workers of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featx.cluster import Crew
from featx.evaluate.fitting import Fitting
from featx.evaluate.question import Subset
from featx.heads import Fit, Pool
from featx.progress import Reporter
from featx.ray_nodes import Need, connected

__all__ = ["FitCrew"]

_Made = tuple[dict[str, Any], Fit | None]


class FitCrew:
    """Workers that fit; the cluster is asked for them with the first fit.

    joblib's own backend for Ray gives no fit before all are there, and does not repeat one whose
    worker was lost.
    """

    def __init__(self, fitting: Fitting, reporter: Reporter, tick: Callable[[str], object]) -> None:
        self._fitting, self._reporter, self._tick = fitting, reporter, tick
        self._stack = ExitStack()
        self._ray: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _open(self) -> None:
        self._ray = self._stack.enter_context(connected(self._fitting.settings.address))
        opened = partial(_open, self._fitting)
        crew = Crew[Any, _Made](self._ray, opened, Need(), self._reporter, heard=self._hear)
        self._crew = self._stack.enter_context(crew)

    def _hear(self, messages: object) -> None:
        del messages
        self._tick(f"{self._crew.n_workers} workers")

    def fit(
        self, pool: Pool, tasks: Sequence[tuple[str, Subset, NDArray[np.int64]]]
    ) -> Iterator[_Made]:
        """Fit heads on rows of a pool, which is sent to each node once; give them in order."""
        if self._ray is None:
            self._open()
        there = self._ray.put(pool)
        early: dict[int, _Made] = {}
        n_given = 0
        for number, made in self._crew.do([(there, *task) for task in tasks]):
            early[number] = made
            while n_given in early:
                yield early.pop(n_given)
                n_given += 1


def _open(fitting: Fitting, reporter: Reporter) -> Callable[[Any], _Made]:
    import ray

    del reporter
    pools: dict[Any, Pool] = {}

    def fit(task: tuple[Any, str, Subset, NDArray[np.int64]]) -> _Made:
        there, name, subset, index = task
        if there not in pools:
            pools.clear()
            pools[there] = ray.get(there)
        return fitting(pools[there], name, subset, index)

    return fit
