"""Where the time of an extraction goes: decoding, the network, writing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Stage", "StageTimes"]

_ADVICE = {
    "decode": "decoding is: more --workers, a smaller --input-size, or smaller files",
    "forward": "the network is, as it should be: --precision auto, --runtime auto or a GPU",
    "write": "writing is: a faster disk, --pool avg, or --store-dtype float16",
}


@dataclass(frozen=True)
class Stage:
    """One row of the table."""

    name: str
    seconds: float
    n_processes: int
    n_images: int
    share: float

    @property
    def images_per_second(self) -> float:
        """What the stage alone would reach; infinite where it took no time."""
        return self.n_images * self.n_processes / self.seconds if self.seconds else float("inf")


class StageTimes:
    """Adds up the time of every stage; the stages overlap."""

    def __init__(self, n_workers: int) -> None:
        self._n_processes = {"decode": max(1, n_workers), "forward": 1, "write": 1}
        self._seconds = dict.fromkeys(self._n_processes, 0.0)
        self._lock = threading.Lock()
        self._began = time.perf_counter()
        self._first: float | None = None
        self._last = self._began
        self._n_images = 0

    def add(self, n_images: int, seconds: Mapping[str, float]) -> None:
        """Count a batch that was computed."""
        now = time.perf_counter()
        with self._lock:
            self._last = now
            if self._first is None:
                # The first batch tells how long the start takes, and nothing about the rates.
                self._first = now
                return
            self._n_images += n_images
            for name in self._seconds:
                self._seconds[name] += seconds.get(name, 0.0)

    def leave_out(self, seconds: float) -> None:
        """Do not count a pause."""
        with self._lock:
            self._first = None if self._first is None else self._first + seconds

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Time a piece of writing."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._add_writing(time.perf_counter() - started)

    def _add_writing(self, seconds: float) -> None:
        with self._lock:
            if self._n_images:
                self._seconds["write"] += seconds

    def finish(self) -> None:
        """Say that the last batch is written."""
        self._last = time.perf_counter()

    @property
    def images_per_second(self) -> float:
        """Rate of everything together, behind the first batch; NaN until there are two."""
        if self._first is None or not self._n_images:
            return float("nan")
        return self._n_images / (self._last - self._first)

    @property
    def start_seconds(self) -> float | None:
        """Time until the first batch was computed; None while there is none."""
        return None if self._first is None else self._first - self._began

    def stages(self) -> list[Stage]:
        """Give the rows of the table; empty until two batches were computed."""
        if self._first is None or not self._n_images:
            return []
        wall = self._last - self._first
        return [
            Stage(name, seconds, n, self._n_images, min(1.0, seconds / n / wall))
            for (name, seconds), n in zip(
                self._seconds.items(), self._n_processes.values(), strict=True
            )
        ]

    def note(self) -> str:
        """Say how busy every stage is, beside a progress bar."""
        return ", ".join(f"{stage.name} {stage.share:.0%}" for stage in self.stages())

    def table(self) -> str:
        """Write everything as a table, with the bottleneck below."""
        stages = self.stages()
        if not stages:
            return "profile: fewer than two batches were computed"
        lines = [f"{'stage':8} {'processes':>9} {'busy':>5} {'ms/image':>9} {'images/s alone':>15}"]
        for s in stages:
            rates = f"{1000 * s.seconds / s.n_images:9.3f} {s.images_per_second:15,.1f}"
            lines.append(f"{s.name:8} {s.n_processes:9} {s.share:5.0%} {rates}")
        rate = self.images_per_second
        lines.append(f"together {rate:,.1f} images/s; first batch after {self.start_seconds:.1f} s")
        lines.append(f"the bottleneck: {self.advice()}")
        return "\n".join(lines)

    def advice(self) -> str:
        """Name the busiest stage, and what would relieve it."""
        return _ADVICE[max(self.stages(), key=lambda stage: stage.share).name]
