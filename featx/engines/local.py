"""One process with one device: a GPU where there is one, else the CPU.

The batch size, and what decoded pixels may take, follow from the memory that is free.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from featx.backbones.base import BackboneGroup
from featx.backbones.module_taps import watch
from featx.depth import describe_dim
from featx.devices import unknown_device
from featx.engines.base import Engine, FeatureBatch
from featx.engines.loader import Loading, PixelBatch, iter_pixels
from featx.engines.machine import n_cores
from featx.engines.runtimes import Resize, Result, Runtime, open_runtime
from featx.engines.runtimes.base import numbers
from featx.engines.runtimes.parts import ERRORS, free_cached, memory_named
from featx.errors import BackboneError, ImageError, UsageError
from featx.memory import available_bytes, is_out_of_memory, reused_memory
from featx.preprocess import Preprocessing
from featx.sources import Source

__all__ = ["LocalEngine", "images_that_fit", "pixel_bytes"]

_SHARE = 0.5
# A layer's input and output are there at once, and what it needs beside them.
_TENSORS_AT_ONCE = 3
_TRIED = (4, 8)


def pixel_bytes(max_memory: int | None) -> int:
    """Bytes that pixels may take on their way to the network."""
    return _limit(max_memory) // 4


def images_that_fit(
    group: BackboneGroup,
    device: torch.device,
    precision: str,
    most: int,
    max_memory: int | None = None,
) -> int:
    """Find the largest batch whose forward pass fits into memory.

    On a GPU two small batches are run and their peaks compared: what both take alike, however few
    their images, is counted once. One that does not fit bounds the answer. On a CPU, where nothing
    fails before the machine is short of memory, three times the largest output of a module is
    taken.
    """
    if device.type == "cuda":
        with memory_named(group[0].name, device):
            group.network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        need = _need_by_trial(partial(_peak_on_gpu, group, device, precision))
        free_cached(device)
        limit = int(torch.cuda.mem_get_info(device)[0] * _SHARE)
        limit = min(limit, max_memory or limit)
    else:
        need, limit = _Need(each=_peak_by_shapes(group)), _limit(max_memory)
    n = most
    while n > 1 and (n > need.most or need.fixed + n * need.each > limit):
        n //= 2
    return n


@dataclass(frozen=True)
class _Need:
    """Bytes of a pass, and of each image in it; more images than `most` have been seen to fail."""

    each: int
    fixed: int = 0
    most: float = math.inf


def _need_by_trial(peak_of: Callable[[int], int]) -> _Need:
    few, many = _TRIED
    peaks = []
    for n in _TRIED:
        try:
            peaks.append(peak_of(n))
        except ERRORS as error:
            if not is_out_of_memory(error):
                raise
            return _Need(peaks[0] // few if peaks else 0, most=n // 2)
    each = max(0, peaks[1] - peaks[0]) // (many - few)
    return _Need(each, max(0, peaks[0] - few * each))


def _limit(max_memory: int | None) -> int:
    return int(available_bytes() * _SHARE) if max_memory is None else max_memory


def _peak_by_shapes(group: BackboneGroup) -> int:
    side = group[0].input_size
    shapes = watch(group.network, lambda copy, images: copy(images), side).shapes
    largest = max((math.prod(shape) for shape in shapes.values()), default=0)
    return _TENSORS_AT_ONCE * 4 * max(largest, 3 * side * side)


@torch.inference_mode()
def _peak_on_gpu(group: BackboneGroup, device: torch.device, precision: str, n: int) -> int:
    """Bytes that a pass over so many images takes at most."""
    side = group[0].input_size
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    pixels = torch.zeros((n, side, side, 3), dtype=torch.uint8, device=device)
    with numbers(device, precision, is_repeated=False):
        group.features_many(group.preprocessing.normalise(pixels))
    return torch.cuda.max_memory_allocated(device) - before


_BATCH_SIZES = {"cpu": 16, "cuda": 128}
_MOST_IMAGES = {"cpu": 16, "cuda": 256}
_MOST_WORKERS = 16
_CORES_LEFT = 2


@dataclass(frozen=True)
class LocalEngine(Engine):
    """Runs the network on one device of this machine."""

    device: torch.device
    precision: str = "fp32"
    images_per_batch: int | None = None
    workers: int | None = None
    tell: Callable[[str], object] = field(default=warnings.warn, compare=False, repr=False)
    runtime: str = "torch"
    max_memory: int | None = None
    resize_on_device: bool | None = None
    chosen_batch_size: int | None = None
    _open: dict[str, tuple[BackboneGroup, torch.dtype, Runtime]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        if self.device.type not in _BATCH_SIZES:
            raise unknown_device(str(self.device))
        if self.images_per_batch is not None and self.images_per_batch < 1:
            raise UsageError(f"batch size must be at least 1, got {self.images_per_batch}")
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"workers must be at least 0, got {self.workers}")

    @property
    def batch_size(self) -> int:
        """Images in every batch."""
        return self.images_per_batch or self.chosen_batch_size or _BATCH_SIZES[self.device.type]

    @property
    def n_workers(self) -> int:  # type: ignore[override]
        """Processes that decode."""
        if self.workers is not None:
            return self.workers
        if self.device.type == "cpu":
            return 1
        return min(_MOST_WORKERS, max(1, n_cores() - _CORES_LEFT))

    def fitted_to(self, group: BackboneGroup) -> LocalEngine:
        """Choose the batch size that the memory allows, see `Engine.fitted_to`."""
        if self.images_per_batch is not None:
            return self
        most = _MOST_IMAGES[self.device.type]
        n = images_that_fit(group, self.device, self.precision, most, self.max_memory)
        if n < min(most, _BATCH_SIZES[self.device.type]):
            self.tell(f"{group[0].name} at {group[0].input_size} pixels: {n} images at once")
        return replace(self, chosen_batch_size=n)

    def going_on_with(self, group: BackboneGroup, batch_size: int) -> LocalEngine:
        """Take the batch size of rows that are there, see `Engine.going_on_with`."""
        if self.images_per_batch is not None or batch_size == self.batch_size:
            return self
        n = images_that_fit(group, self.device, self.precision, batch_size, self.max_memory)
        return self if n < batch_size else replace(self, chosen_batch_size=batch_size)

    def with_runtime(self, runtime: str) -> LocalEngine:
        """Compute with another runtime, see `Engine.with_runtime`."""
        return replace(self, runtime=runtime)

    def warm_up(self, group: BackboneGroup, dtype: str) -> None:
        """Make a network ready and run it on one batch, see `Engine.warm_up`."""
        side = group.preprocessing.crop_px
        pixels = torch.zeros((self.batch_size, side, side, 3), dtype=torch.uint8)
        runtime = self.open(group, dtype)
        runtime.start(pixels)()
        if runtime.has_given_up:
            raise BackboneError(f"{group[0].name} takes too much memory with {self.runtime}")

    def describe(self) -> dict[str, str | int]:
        """Say what it runs on, see `Engine.describe`."""
        is_gpu = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if is_gpu else "cpu",
            "runtime": self.runtime,
            "batch_size": self.batch_size,
            "workers": self.n_workers,
        }

    def is_open(self, group: BackboneGroup, dtype: str) -> bool:
        """Whether `open` has made this network ready, and no other one since."""
        last = self._open.get("last")
        wanted = group.members, getattr(torch, dtype)
        return last is not None and (last[0].members, last[1]) == wanted

    def open(self, group: BackboneGroup, dtype: str = "float32") -> Runtime:
        """Make a network ready to run; the last one stays ready."""
        if self.is_open(group, dtype):
            return self._open["last"][2]
        self._open.clear()
        stored = getattr(torch, dtype)
        runtime = open_runtime(
            self.runtime,
            group,
            self.device,
            self.precision,
            stored,
            n_rows=self.batch_size,
            tell=self.tell,
        )
        self._open["last"] = group, stored, runtime
        return runtime

    def run_many(
        self,
        group: BackboneGroup,
        source: Source,
        batches: Sequence[int],
        *,
        dtype: str = "float32",
    ) -> Generator[tuple[FeatureBatch, ...], None, None]:
        """Compute several features of some batches in one pass, see `Engine.run_many`.

        While a batch is computed, the next ones are decoded and copied, and the last ones
        are on their way back. Every batch has the full shape: the last one is padded. The
        workers are started by this call.
        """
        runtime = self.open(group, dtype)
        runtime.n_expected = len(batches)
        loading, resize = self.loading(group.preprocessing, source)
        pixels = iter_pixels(
            loading,
            batches,
            workers=self.n_workers,
            n_held=runtime.n_under_way,
            max_bytes=pixel_bytes(self.max_memory),
            device=self.device if self.device.type == "cuda" else None,
            tell=self.tell,
        )
        return self._computed(runtime, pixels, resize, group.preprocessing.bits)

    def _computed(
        self,
        runtime: Runtime,
        pixels: Generator[PixelBatch, None, None],
        resize: Resize | None,
        bits: int | None,
    ) -> Generator[tuple[FeatureBatch, ...], None, None]:
        waiting: deque[Callable[[], tuple[FeatureBatch, ...]]] = deque()
        deep: list[int] = []
        with closing(pixels), reused_memory():
            for batch in pixels:
                deep += batch.deep
                came = time.perf_counter()
                result = runtime.start(batch.pixels, resize if batch.is_raw else None)
                waiting.append(partial(_finish, batch, result, time.perf_counter() - came))
                if len(waiting) > runtime.n_under_way:
                    yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()
        if warning := describe_dim(deep, bits):
            self.tell(warning)

    def loading(
        self, preprocessing: Preprocessing, source: Source
    ) -> tuple[Loading, Resize | None]:
        """Say what is decoded, and how."""
        raw_size, resize = self._find_resize(preprocessing, source)
        return Loading(source, preprocessing, self.batch_size, raw_size), resize

    def _find_resize(
        self, preprocessing: Preprocessing, source: Source
    ) -> tuple[tuple[int, int] | None, Resize | None]:
        wanted = self.resize_on_device
        if wanted is None:
            wanted = self.device.type == "cuda"
        for row in range(min(len(source), 16)) if wanted else ():
            try:
                size = source.image(row).size
            except ImageError:
                continue
            resize = preprocessing.find_resize(*size)
            return (size, resize) if resize else (None, None)
        return None, None


def _finish(batch: PixelBatch, result: Result, start_seconds: float) -> tuple[FeatureBatch, ...]:
    """Wait for the features of a batch, without its padding."""
    asked = time.perf_counter()
    arrays = result()
    forward = start_seconds + time.perf_counter() - asked
    spent = {"decode": batch.seconds, "forward": forward}
    rows: list[np.ndarray] = [array[: batch.n_images] for array in arrays]
    read = batch.failed, batch.digests
    return tuple(FeatureBatch(batch.start, part, *read, spent) for part in rows)
