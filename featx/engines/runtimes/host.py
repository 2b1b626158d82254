"""Batches on their way to a device and back, beside what it computes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from featx.engines.runtimes.base import Resize, Result

__all__ = ["HostCopies"]

_UNDER_WAY = 2


class HostCopies:
    """Copies between the host and a device.

    On a GPU each direction has a stream of its own, so that the next batch arrives and the last
    one leaves while one is computed; on a CPU there is nothing to copy.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.n_under_way = _UNDER_WAY if device.type == "cuda" else 0
        if device.type == "cuda":
            self._inward = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._outward = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def bring(self, pixels: torch.Tensor, resize: Resize | None = None) -> torch.Tensor:
        """Copy to the device, and enlarge there."""
        there = pixels
        if self._device.type == "cuda":
            with torch.cuda.stream(self._inward):
                there = pixels.to(self._device, non_blocking=True)
            working = torch.cuda.current_stream(self._device)
            working.wait_stream(self._inward)
            there.record_stream(working)
        return there if resize is None else resize(there)

    def fetch(self, features: Sequence[torch.Tensor]) -> Result:
        """Copy back."""
        if self._device.type != "cuda":
            here = [tensor.numpy() for tensor in features]
            return lambda: here
        self._outward.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._outward):
            host = [torch.empty(f.shape, dtype=f.dtype, pin_memory=True) for f in features]
            for here_, there in zip(host, features, strict=True):
                here_.copy_(there, non_blocking=True)
                there.record_stream(self._outward)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._outward)

        def wait() -> list[np.ndarray]:
            done.synchronize()
            return [tensor.numpy() for tensor in host]

        return wait
