"""Several devices of one machine, each with its own copy of the network."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from featx.backbones.base import BackboneGroup
from featx.engines.base import Engine, FeatureBatch
from featx.engines.local import LocalEngine
from featx.engines.runtimes.parts import memory_named
from featx.sources import Source

__all__ = ["SeveralDevices", "open_engine"]

_MOST_WAITING = 2
_SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class SeveralDevices(Engine):
    """Shares the batches out: the k-th of n devices computes every n-th batch."""

    engines: tuple[LocalEngine, ...]

    @property
    def precision(self) -> str:  # type: ignore[override]
        """Arithmetic of the network, on all of them."""
        return self.engines[0].precision

    @property
    def runtime(self) -> str:  # type: ignore[override]
        """What computes the forward pass, on all of them."""
        return self.engines[0].runtime

    @property
    def n_workers(self) -> int:  # type: ignore[override]
        """Processes that decode, for all of them together."""
        return sum(engine.n_workers for engine in self.engines)

    @property
    def batch_size(self) -> int:
        """Images in every batch, on all of them."""
        return self.engines[0].batch_size

    def fitted_to(self, group: BackboneGroup) -> SeveralDevices:
        """Choose the batch size that fits everywhere, see `Engine.fitted_to`."""
        fitted = [engine.fitted_to(group) for engine in self.engines]
        n = min(engine.batch_size for engine in fitted)
        return SeveralDevices(tuple(replace(e, chosen_batch_size=n) for e in self.engines))

    def going_on_with(self, group: BackboneGroup, batch_size: int) -> SeveralDevices:
        """Take the batch size of rows that are there, on all or none."""
        engines = tuple(engine.going_on_with(group, batch_size) for engine in self.engines)
        is_taken = all(engine.batch_size == batch_size for engine in engines)
        return SeveralDevices(engines) if is_taken else self

    def with_runtime(self, runtime: str) -> SeveralDevices:
        """Compute with another runtime, see `Engine.with_runtime`."""
        return SeveralDevices(tuple(engine.with_runtime(runtime) for engine in self.engines))

    def warm_up(self, group: BackboneGroup, dtype: str) -> None:
        """Run one batch on the first device, see `Engine.warm_up`."""
        self.engines[0].warm_up(group, dtype)

    def describe(self) -> dict[str, str | int]:
        """Say what it runs on, see `Engine.describe`."""
        parts = [engine.describe() for engine in self.engines]
        together: dict[str, str | int] = {
            "device": ", ".join(str(part["device"]) for part in parts),
            "workers": self.n_workers,
        }
        return parts[0] | together

    def run_many(
        self,
        group: BackboneGroup,
        source: Source,
        batches: Sequence[int],
        *,
        dtype: str = "float32",
    ) -> Generator[tuple[FeatureBatch, ...], None, None]:
        """Compute several features of some batches in one pass, see `Engine.run_many`."""
        n = len(self.engines)
        stop = threading.Event()
        works = []
        for k, engine in enumerate(self.engines):
            own = group if engine.is_open(group, dtype) else _copied(group, engine.device)
            works.append(engine.run_many(own, source, list(batches)[k::n], dtype=dtype))
        # All workers are started: one that is forked while another thread holds a lock, hangs.
        lanes = [_Lane(work, stop) for work in works]
        try:
            for i in range(len(batches)):
                yield lanes[i % n].get()
        finally:
            stop.set()
            for lane in lanes:
                lane.thread.join()


def _copied(group: BackboneGroup, device: torch.device) -> BackboneGroup:
    with memory_named(group[0].name, device):
        return replace(group, network=copy.deepcopy(group.network))


class _Lane:
    """A device at work in a thread of its own, a few batches ahead of who takes them."""

    def __init__(self, work: Generator[Any, None, None], stop: threading.Event) -> None:
        self._work, self._stop = work, stop
        self._done: queue.Queue[Any] = queue.Queue(_MOST_WAITING)
        self.thread = threading.Thread(target=self._run, name="featx-device", daemon=True)
        self.thread.start()

    def get(self) -> Any:
        """Give the next batch, or raise what ended the work."""
        result = self._done.get()
        if isinstance(result, BaseException):
            raise result
        return result

    def _run(self) -> None:
        try:
            for result in self._work:
                if not self._put(result):
                    return
        except BaseException as error:
            self._put(error)
        finally:
            self._work.close()

    def _put(self, result: Any) -> bool:
        while not self._stop.is_set():
            try:
                self._done.put(result, timeout=_SECONDS_BETWEEN_LOOKS)
            except queue.Full:
                continue
            return True
        return False


def open_engine(devices: Sequence[torch.device], precision: str, **options: Any) -> Engine:
    """Make the engine of one or several devices."""
    if len(devices) == 1:
        return LocalEngine(devices[0], precision, **options)
    workers = options.pop("workers", None)
    if workers is None:
        workers = LocalEngine(devices[0], precision).n_workers
    share = max(1, workers // len(devices)) if workers else 0
    engines = (LocalEngine(device, precision, workers=share, **options) for device in devices)
    return SeveralDevices(tuple(engines))
