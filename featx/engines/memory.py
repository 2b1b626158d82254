"""How many images fit into memory at once, and how many batches may wait."""

from __future__ import annotations

import math

import torch

from featx.backbones.base import BackboneGroup
from featx.backbones.module_taps import watch
from featx.engines.runtimes.base import numbers
from featx.memory import available_bytes

__all__ = ["images_that_fit", "n_batches_ahead"]

_MOST_AHEAD = 4
_SHARE = 0.5
# A layer's input and output are there at once, and what it needs beside them.
_TENSORS_AT_ONCE = 3
_TRIED = (4, 8)


def n_batches_ahead(batch_bytes: int, workers: int, max_memory: int | None) -> int:
    """Batches that a worker may prepare ahead.

    Parameters
    ----------
    batch_bytes : int
        Of the pixels of one batch.
    workers : int
        Worker processes.
    max_memory : int or None
        Bytes that batches may take; half of what is available by default.

    Returns
    -------
    int
        Between 1 and 4. A quarter of the memory is for pixels.
    """
    limit = _limit(max_memory) // 4
    return max(1, min(_MOST_AHEAD, limit // max(1, batch_bytes * max(1, workers))))


def images_that_fit(
    group: BackboneGroup,
    device: torch.device,
    precision: str,
    most: int,
    max_memory: int | None = None,
) -> int:
    """Find the largest batch whose forward pass fits into memory.

    On a GPU two small batches are run and their peaks compared; on a CPU, where nothing fails
    before the machine is short of memory, three times the largest output of a module is taken.

    Parameters
    ----------
    group : BackboneGroup
        Moved to the device, if that is a GPU.
    device : torch.device
        Of the forward pass.
    precision : str
        ``fp32``, ``bf16`` or ``fp16``.
    most : int
        The answer where memory is plenty, a power of two.
    max_memory : int, optional
        Bytes that a batch may take; half of what is available by default.

    Returns
    -------
    int
        A power of two, at least 1.
    """
    if device.type == "cuda":
        each, limit = _peak_on_gpu(group, device, precision)
        limit = min(limit, max_memory or limit)
    else:
        each, limit = _peak_by_shapes(group), _limit(max_memory)
    n = most
    while n > 1 and n * each > limit:
        n //= 2
    return n


def _limit(max_memory: int | None) -> int:
    return int(available_bytes() * _SHARE) if max_memory is None else max_memory


def _peak_by_shapes(group: BackboneGroup) -> int:
    side = group[0].input_size
    shapes = watch(group.network, lambda copy, images: copy(images), side).shapes
    largest = max((math.prod(shape) for shape in shapes.values()), default=0)
    return _TENSORS_AT_ONCE * 4 * max(largest, 3 * side * side)


@torch.inference_mode()
def _peak_on_gpu(group: BackboneGroup, device: torch.device, precision: str) -> tuple[int, int]:
    """Bytes that one more image takes, and those that are free."""
    group.network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    side = group[0].input_size
    peaks = []
    for n in _TRIED:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        pixels = torch.zeros((n, side, side, 3), dtype=torch.uint8, device=device)
        with numbers(device, precision):
            group.features_many(group.preprocessing.normalise(pixels))
        peaks.append(torch.cuda.max_memory_allocated(device) - before)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return (peaks[1] - peaks[0]) // (_TRIED[1] - _TRIED[0]), int(free * _SHARE)
