"""What each part of an extraction reaches alone."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from featx.arithmetic import true_float32
from featx.backbones import BackboneGroup
from featx.engines import LocalEngine
from featx.engines.loader import iter_pixels
from featx.engines.runtimes.base import DTYPES
from featx.sources import Source

__all__ = ["decode_rate", "forward_rate", "matmul_rate", "write_rate"]

_MATRIX = {"cpu": 2048, "cuda": 8192}
_WRITTEN_BYTES = 256 << 20


def per_second(step: Callable[[], object], seconds: float, n_each: int) -> float:
    """Repeat a step, and count what it does in a second."""
    started = time.perf_counter()
    for n in itertools.count(1):
        step()
        elapsed = time.perf_counter() - started
        if n >= 2 and elapsed >= seconds:
            return n * n_each / elapsed
    raise AssertionError


def forward_rate(
    engine: LocalEngine, group: BackboneGroup, dtype: str, seconds: float
) -> Callable[[], float]:
    """Prepare the bare forward loop: one batch, on the device already, over and over."""
    side = group.preprocessing.crop_px
    n = engine.batch_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, side, side, 3), generator=generator, dtype=torch.uint8)
    step = engine.open(group, dtype).bare(pixels)
    step()
    return lambda: per_second(step, seconds, n)


def decode_rate(engine: LocalEngine, group: BackboneGroup, source: Source) -> float:
    """Decode, and preprocess what the device does not, in the workers; drop the pixels."""
    loading, _ = engine.loading(group.preprocessing, source)
    batches = range(len(source) // engine.batch_size)
    pixels = iter_pixels(loading, batches, workers=engine.n_workers, n_held=0)
    times = [time.perf_counter() for _ in pixels]
    return (len(times) - 1) * engine.batch_size / (times[-1] - times[0])


def write_rate(folder: Path) -> float:
    """Write zeros to a file, make them durable, and delete it."""
    path = folder / f".bench-{os.getpid()}"
    block = np.zeros(8 << 20, np.uint8).data
    try:
        started = time.perf_counter()
        with path.open("xb", buffering=0) as stream:
            for _ in range(_WRITTEN_BYTES // len(block)):
                stream.write(block)
            os.fdatasync(stream.fileno())
        return _WRITTEN_BYTES / (time.perf_counter() - started)
    finally:
        path.unlink(missing_ok=True)


def matmul_rate(device: torch.device, precision: str, seconds: float) -> float:
    """Multiply large square matrices: about the most that the processor does."""
    n = _MATRIX[device.type]
    # Random numbers: a processor that multiplies ones needs less power, and clocks higher.
    generator = torch.Generator(device).manual_seed(0)
    dtype = DTYPES.get(precision, torch.float32)
    a = torch.rand((n, n), generator=generator, device=device).to(dtype)

    def step() -> None:
        with true_float32():
            a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    step()
    return per_second(step, seconds, 2 * n**3)
