"""torch.compile: everything between pixels and features as one program, weights frozen in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence

import torch

from featx.backbones.base import BackboneGroup
from featx.engines.runtimes.base import Resize, Result, Runtime, Whole, numbers
from featx.engines.runtimes.host import HostCopies
from featx.errors import BackboneError, UsageError

__all__ = ["CompiledRuntime", "find_compiler", "require_compiler"]


def find_compiler(device: torch.device) -> str | None:
    """Name what torch.compile needs on a device, if it is there.

    Parameters
    ----------
    device : torch.device
        For a CPU it is a C++ compiler, for a GPU Triton.

    Returns
    -------
    str or None
    """
    if device.type == "cuda":
        from importlib.util import find_spec

        return "triton" if find_spec("triton") else None
    named = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, filter(None, (named, "g++", "clang++")))), None)


def require_compiler(device: torch.device) -> None:
    """Refuse where torch.compile cannot work.

    Parameters
    ----------
    device : torch.device
        Of the forward pass.

    Raises
    ------
    UsageError
        Saying what is missing.
    """
    if find_compiler(device) is None:
        lacks = "Triton" if device.type == "cuda" else "a C++ compiler (g++, or the one CXX names)"
        raise UsageError(f"--runtime compile needs {lacks}: install it, or say --runtime torch")


class CompiledRuntime(Runtime):
    """Runs one compiled program.

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

    Raises
    ------
    UsageError
        If there is no compiler.
    """

    def __init__(
        self, group: BackboneGroup, device: torch.device, precision: str, dtype: torch.dtype
    ) -> None:
        require_compiler(device)
        group.network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._name = group[0].name
        self._device, self._precision = device, precision
        self._copies = HostCopies(device)
        self.n_under_way = self._copies.n_under_way
        # On a GPU one graph of all kernels is launched at once.
        self._program = torch.compile(
            Whole(group, dtype),
            fullgraph=True,
            dynamic=False,
            options={"freezing": True, "triton.cudagraphs": device.type == "cuda"},
        )

    def start(self, pixels: torch.Tensor, resize: Resize | None = None) -> Result:
        """Begin with a batch, see `Runtime.start`; the first one takes the compiler's time."""
        return self._copies.fetch(self._compute(self._copies.bring(pixels, resize)))

    def bare(self, pixels: torch.Tensor) -> Callable[[], object]:
        """Give the program alone, see `Runtime.bare`."""
        there = pixels.to(self._device)

        def run() -> None:
            self._compute(there)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)

        return run

    def _compute(self, there: torch.Tensor) -> Sequence[torch.Tensor]:
        with torch.no_grad(), numbers(self._device, self._precision):
            if self._device.type == "cuda":
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            try:
                features: Sequence[torch.Tensor] = self._program(there)
            except torch._dynamo.exc.TorchDynamoException as error:
                reason = str(error).strip().splitlines()[0]
                raise BackboneError(
                    f"{self._name} cannot be compiled: {reason}. Say --runtime torch"
                ) from error
            if self._device.type == "cuda":
                features = [f.clone() for f in features]  # the graph writes into these again
        return features
