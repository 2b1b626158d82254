"""PyTorch as it is: channels last, batch normalisations folded, autocast below float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from featx.arithmetic import true_float32
from featx.backbones.base import BackboneGroup
from featx.engines.runtimes.base import DTYPES, Resize, Result, Runtime, numbers
from featx.engines.runtimes.folding import fold_batch_norms, with_low_weights
from featx.engines.runtimes.host import HostCopies
from featx.engines.runtimes.parts import ERRORS, InParts, free_cached, memory_named
from featx.memory import is_out_of_memory

__all__ = ["EagerRuntime"]


def _prepared(group: BackboneGroup, device: torch.device, precision: str) -> BackboneGroup:
    """Move a network to a device, and make it cheaper to run there."""
    with memory_named(group[0].name, device):
        group.network.to(device=device)
    with true_float32():
        cheaper = _if_it_fits(fold_batch_norms, group, device)
    if precision in DTYPES:
        convert = partial(with_low_weights, dtype=DTYPES[precision])
        cheaper = _if_it_fits(convert, cheaper, device)
    with memory_named(group[0].name, device):
        cheaper.network.to(memory_format=torch.channels_last)
    return cheaper


def _if_it_fits(
    change: Callable[[BackboneGroup], BackboneGroup], group: BackboneGroup, device: torch.device
) -> BackboneGroup:
    """Change a network that computes the same without, unless there is no memory for a copy."""
    try:
        return change(group)
    except ERRORS as error:
        if not is_out_of_memory(error):
            raise
    free_cached(device)
    return group


class EagerRuntime(Runtime):
    """Runs the modules one by one."""

    def __init__(
        self,
        group: BackboneGroup,
        device: torch.device,
        precision: str,
        dtype: torch.dtype,
        *,
        n_rows: int,
        tell: Callable[[str], object],
    ) -> None:
        self._group = _prepared(group, device, precision)
        self._device, self._precision, self._dtype = device, precision, dtype
        self._parts = InParts(group[0].name, device, n_rows, tell)
        self._copies = HostCopies(device)
        self.n_under_way = self._copies.n_under_way

    def start(self, pixels: torch.Tensor, resize: Resize | None = None) -> Result:
        """Begin with a batch, see `Runtime.start`; on a CPU it is computed at once."""
        return self._parts.run(partial(self._start, resize=resize), pixels)

    @torch.inference_mode()
    def _start(self, pixels: torch.Tensor, resize: Resize | None) -> Result:
        images = self._group.preprocessing.normalise(self._copies.bring(pixels, resize))
        with numbers(self._device, self._precision):
            features = self._group.features_many(images, self._dtype)
        return self._copies.fetch(features)

    def bare(self, pixels: torch.Tensor) -> Callable[[], object]:
        """Give the network alone on normalised images, see `Runtime.bare`."""
        how, mend = f" with {len(pixels)} images at once", "a smaller --batch-size"
        named = partial(memory_named, self._group[0].name, self._device, how, mend)
        with named():
            images = self._group.preprocessing.normalise(pixels.to(self._device))

        @torch.inference_mode()
        def run() -> None:
            with named(), numbers(self._device, self._precision):
                self._group.network(images)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)

        return run
