"""PyTorch as it is: channels last, batch normalisations folded, autocast below float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from featx.backbones.base import BackboneGroup
from featx.engines.runtimes.base import DTYPES, Resize, Result, Runtime, numbers
from featx.engines.runtimes.folding import fold_batch_norms, with_low_weights
from featx.engines.runtimes.host import HostCopies
from featx.errors import BackboneError

__all__ = ["EagerRuntime"]


def _prepared(group: BackboneGroup, device: torch.device, precision: str) -> BackboneGroup:
    """Move a network to a device, and make it cheaper to run there.

    Parameters
    ----------
    group : BackboneGroup
        Its network is moved.
    device : torch.device
        Where to.
    precision : str
        ``fp32``, ``bf16`` or ``fp16``.

    Returns
    -------
    BackboneGroup
        In channels-last order.
    """
    group.network.to(device=device)
    with numbers(device, "fp32"):
        folded = fold_batch_norms(group)
    if precision in DTYPES:
        folded = with_low_weights(folded, DTYPES[precision])
    folded.network.to(memory_format=torch.channels_last)
    return folded


class EagerRuntime(Runtime):
    """Runs the modules one by one.

    Parameters
    ----------
    group : BackboneGroup
        Its network is moved to the device.
    device : torch.device
        A CPU or a GPU.
    precision : str
        ``fp32``, ``bf16`` or ``fp16``.
    dtype : torch.dtype
        Type of the features.
    n_rows : int
        Of every batch.
    tell : callable
        Is told, in a sentence, where the memory is too small for a batch.
    """

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
        self._at_once, self._tell = n_rows, tell
        self._copies = HostCopies(device)
        self.n_under_way = self._copies.n_under_way

    @torch.inference_mode()
    def start(self, pixels: torch.Tensor, resize: Resize | None = None) -> Result:
        """Begin with a batch, see `Runtime.start`; on a CPU it is computed at once."""
        images = self._group.preprocessing.normalise(self._copies.bring(pixels, resize))
        with numbers(self._device, self._precision):
            return self._copies.fetch(self._forward(images))

    def bare(self, pixels: torch.Tensor) -> Callable[[], object]:
        """Give the network alone on normalised images, see `Runtime.bare`."""
        images = self._group.preprocessing.normalise(pixels.to(self._device))

        @torch.inference_mode()
        def run() -> None:
            with numbers(self._device, self._precision):
                self._group.network(images)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)

        return run

    def _forward(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        """Run the network, on half as many images at once where the memory is too small."""
        while True:
            at_once = self._at_once
            try:
                starts = range(0, len(images), at_once)
                parts = [
                    self._group.features_many(images[i : i + at_once], self._dtype) for i in starts
                ]
                return parts[0] if len(parts) == 1 else [*map(torch.cat, zip(*parts, strict=True))]
            except torch.OutOfMemoryError as error:
                if at_once == 1:
                    raise BackboneError(
                        f"{self._group[0].name} does not fit into the memory of {self._device}, "
                        "not even with one image at once: choose a smaller --input-size, or "
                        "--device cpu"
                    ) from error
                self._at_once = at_once // 2
                self._tell(
                    f"{self._device} has too little memory: {self._at_once} images at once from "
                    "now on"
                )
            if self._device.type == "cuda":
                torch.cuda.empty_cache()  # behind the except clause: its frames hold tensors
