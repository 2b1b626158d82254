"""How many images fit into memory at once, and what pixels may take."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from featx.backbones.base import BackboneGroup
from featx.backbones.module_taps import watch
from featx.engines.runtimes.base import numbers
from featx.engines.runtimes.parts import ERRORS, free_cached, memory_named
from featx.memory import available_bytes, is_out_of_memory

__all__ = ["images_that_fit", "pixel_bytes"]

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
