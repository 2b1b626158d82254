"""Pillow's resize, to the last bit, as matrix products that any device computes.

Pillow resizes with weights in fixed point, first along the rows, then along the columns, and
rounds to whole grey levels after each. Every sum is a whole number below 2**31, so that float64
products compute it exactly on a GPU too, where images that came over the bus in their own size
are enlarged: 32 x 32 pixels are a fiftieth of 224 x 224.

References
----------
Pillow, ``src/libImaging/Resample.c``: ``precompute_coeffs``, ``normalize_coeffs_8bpc`` and
``ImagingResampleHorizontal_8bpc``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

__all__ = ["RESAMPLED", "Resampler", "find_resampler", "weights_1d"]

_BITS = 32 - 8 - 2  # PRECISION_BITS: of the weights, behind the point


def _bilinear(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _bicubic(x: float) -> float:
    a, x = -0.5, abs(x)
    if x < 1:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def _box(x: float) -> float:
    return 1.0 if -0.5 < x <= 0.5 else 0.0


def _hamming(x: float) -> float:
    x = abs(x)
    if x == 0:
        return 1.0
    if x >= 1:
        return 0.0
    return math.sin(x * math.pi) / (x * math.pi) * (_A + _B * math.cos(x * math.pi))


# Pillow writes these two in single precision.
_A, _B = float(np.float32(0.54)), float(np.float32(0.46))


def _lanczos(x: float) -> float:
    def sinc(x: float) -> float:
        return 1.0 if x == 0 else math.sin(x * math.pi) / (x * math.pi)

    return sinc(x) * sinc(x / 3) if -3 <= x < 3 else 0.0


_FILTERS: dict[str, tuple[Callable[[float], float], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
    "box": (_box, 0.5),
    "hamming": (_hamming, 1.0),
    "lanczos": (_lanczos, 3.0),
}

RESAMPLED = tuple(_FILTERS)
"""Filters that a `Resampler` knows: all of Pillow's but ``nearest``."""


@dataclass(frozen=True)
class Resampler:
    """A resize of images of one size, equal to Pillow's; made by `find_resampler`."""

    along_rows: NDArray[np.float64] | None
    along_columns: NDArray[np.float64] | None
    is_height_first: bool = False
    _on: dict[torch.device, tuple[torch.Tensor | None, torch.Tensor | None]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Resize."""
        rows, columns = self._tables(pixels.device)
        passes = [(rows, "ox,nyxc->nyoc"), (columns, "oy,nyxc->noxc")]
        for table, indices in reversed(passes) if self.is_height_first else passes:
            if table is not None:
                pixels = _rounded(torch.einsum(indices, table, pixels.to(torch.float64)))
        return pixels

    def _tables(self, device: torch.device) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Copy the tables to a device once, not with every batch."""
        if device not in self._on:
            rows, columns = (
                None if weights is None else torch.from_numpy(weights).to(device)
                for weights in (self.along_rows, self.along_columns)
            )
            self._on[device] = rows, columns
        return self._on[device]


@lru_cache(maxsize=64)
def find_resampler(
    before: tuple[int, int], after: tuple[int, int], interpolation: str
) -> Resampler | None:
    """Find the resize that gives what this machine's Pillow gives, by asking it."""
    if interpolation not in RESAMPLED:
        return None
    rows, columns = (
        None if old == new else weights_1d(old, new, interpolation)
        for old, new in zip(before, after, strict=True)
    )
    noise = np.random.default_rng(0).integers(0, 256, (2, before[1], before[0], 3), np.uint8)
    noise[1] = np.where(noise[1] > 127, 255, 0)
    by = Image.Resampling[interpolation.upper()]
    wanted = [np.asarray(Image.fromarray(image).resize(after, by)) for image in noise]
    candidates = (Resampler(rows, columns, is_first) for is_first in (False, True))
    mine = (c for c in candidates if np.array_equal(c(torch.from_numpy(noise)), wanted))
    return next(mine, None)


@lru_cache(maxsize=64)
def weights_1d(before: int, after: int, interpolation: str) -> NDArray[np.float64]:
    """Weights of a resize along one axis, as Pillow rounds them."""
    function, radius = _FILTERS[interpolation]
    scale = before / after
    filter_scale = max(scale, 1.0)
    support = radius * filter_scale
    table = np.zeros((after, before))
    for i in range(after):
        center = (i + 0.5) * scale
        first = max(int(center - support + 0.5), 0)
        last = min(int(center + support + 0.5), before)
        inverse = 1.0 / filter_scale
        taps = [function((x + first - center + 0.5) * inverse) for x in range(last - first)]
        total = sum(taps)
        taps = [tap * (1.0 / total) for tap in taps] if total else taps
        # C rounds these by adding a half, away from zero, and cutting off.
        table[i, first:last] = [math.trunc(t * (1 << _BITS) + math.copysign(0.5, t)) for t in taps]
    return table


def _rounded(sums: torch.Tensor) -> torch.Tensor:
    half, one = float(1 << (_BITS - 1)), float(1 << _BITS)
    return sums.add_(half).div_(one).floor_().clamp_(0, 255).to(torch.uint8)
