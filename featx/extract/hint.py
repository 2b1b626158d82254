"""What would be faster on this machine, by how much, and how far its features differ: measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from featx.backbones import BackboneGroup
from featx.engines import Engine, FeatureBatch, LocalEngine, resolve_precision, resolve_runtime
from featx.engines.runtimes.openvino import has_openvino
from featx.errors import FeatxError
from featx.extract.times import StageTimes
from featx.progress import Reporter
from featx.sources import Source
from featx.words import AUTO

__all__ = ["Hint"]

_LONG_SECONDS = 60.0  # runs of which less is left are not measured
_LOOK_AFTER = 3  # batches
_WORTH_SAYING = 1.1
_N_TIMED = 3  # batches behind the first, which warms up


class Hint:
    """Says once, in a long run on a CPU, what would be faster."""

    def __init__(
        self, engine: Engine, group: BackboneGroup, source: Source, dtype: str, reporter: Reporter
    ) -> None:
        self._what = engine, group, source, dtype
        self._reporter = reporter
        self._first: Sequence[FeatureBatch] = ()
        self._n_seen = 0

    def look(self, parts: Sequence[FeatureBatch], times: StageTimes, n_batches: int) -> None:
        """Take note of a batch that was computed, of so many."""
        self._first = self._first or parts
        self._n_seen += 1
        if self._n_seen != _LOOK_AFTER or self._reporter.quiet:
            return
        n_left = (n_batches - self._n_seen) * len(self._first[0].features)
        if not n_left / times.images_per_second > _LONG_SECONDS:
            return
        began = time.perf_counter()
        seconds = len(self._first[0].features) / times.images_per_second
        if said := _find_faster(*self._what, self._first, seconds):
            self._reporter.say(said)
        times.leave_out(time.perf_counter() - began)


def _find_faster(
    engine: Engine,
    group: BackboneGroup,
    source: Source,
    dtype: str,
    first: Sequence[FeatureBatch],
    seconds: float,
) -> str:
    """Compute the first batch again as ``--fast`` would, against so many seconds; a sentence."""
    if not isinstance(engine, LocalEngine) or engine.device.type != "cpu":
        return ""
    precision, _ = resolve_precision(AUTO, engine.device)
    runtime, _ = resolve_runtime(AUTO, engine.device, precision, len(source))
    if runtime == "compile" or (precision, runtime) == (engine.precision, engine.runtime):
        is_missing = engine.runtime == "torch" and not has_openvino()
        install = "another runtime may be faster on this CPU: pip install 'featx[openvino]', then "
        return f"{install} --fast" if is_missing else ""
    fast = replace(engine, precision=precision, runtime=runtime)
    batches = [first[0].start // engine.batch_size] * (1 + _N_TIMED)
    computed: list[tuple[float, Sequence[FeatureBatch]]] = []
    try:
        for parts in fast.run_many(group, source, batches, dtype=dtype):
            computed.append((time.perf_counter(), parts))
    except FeatxError:
        return ""  # a network that this runtime does not take
    (began, _), *_, (ended, found) = computed
    ratio = seconds * _N_TIMED / (ended - began)
    if ratio < _WORTH_SAYING:
        return ""
    return (
        f"faster on this machine: --fast (runtime {runtime}, precision {precision}) makes this run "
        f"{ratio:.1f} times as fast; its features differ by at most "
        f"{_difference(first, found):.0e} of the largest, and go to caches of their own"
    )


def _difference(ours: Sequence[FeatureBatch], theirs: Sequence[FeatureBatch]) -> float:
    """Largest difference of the features of a batch, relative to the largest feature."""
    both = [
        (np.asarray(a.features, np.float64), np.asarray(b.features, np.float64))
        for a, b in zip(ours, theirs, strict=True)
    ]
    return max(float(np.nanmax(abs(a - b)) / (np.nanmax(abs(a)) or 1.0)) for a, b in both)
