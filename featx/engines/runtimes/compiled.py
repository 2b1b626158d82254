"""torch.compile: everything between pixels and features as one program, weights frozen in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial

import torch

from featx.backbones.base import BackboneGroup
from featx.engines.runtimes.base import Resize, Result, Runtime, Whole, numbers
from featx.engines.runtimes.eager import EagerRuntime
from featx.engines.runtimes.host import HostCopies
from featx.engines.runtimes.parts import ERRORS, free_cached, memory_named
from featx.errors import BackboneError, UsageError
from featx.memory import is_out_of_memory

__all__ = ["CompiledRuntime", "find_compiler", "require_compiler"]


def find_compiler(device: torch.device) -> str | None:
    """Name what torch.compile needs on a device, if it is there."""
    if device.type == "cuda":
        from importlib.util import find_spec

        return "triton" if find_spec("triton") else None
    named = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, filter(None, (named, "g++", "clang++")))), None)


def require_compiler(device: torch.device) -> None:
    """Refuse where torch.compile cannot work."""
    if find_compiler(device) is None:
        lacks = "Triton" if device.type == "cuda" else "a C++ compiler (g++, or the one CXX names)"
        raise UsageError(f"--runtime compile needs {lacks}: install it, or say --runtime torch")


class CompiledRuntime(Runtime):
    """Runs one compiled program."""

    def __init__(
        self,
        group: BackboneGroup,
        device: torch.device,
        precision: str,
        dtype: torch.dtype,
        *,
        tell: Callable[[str], object],
    ) -> None:
        require_compiler(device)
        self._name = group[0].name
        self._device, self._precision = device, precision
        self._eager = partial(EagerRuntime, group, device, precision, dtype, tell=tell)
        self._tell = tell
        self._instead: EagerRuntime | None = None
        self._copies = HostCopies(device)
        self.n_under_way = self._copies.n_under_way
        whole = Whole(group, dtype)
        with memory_named(group[0].name, device):
            whole.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # No CUDA graphs: torch binds them to one thread, and large batches do not wait for
        # launches of kernels.
        self._program = torch.compile(
            whole, fullgraph=True, dynamic=False, options={"freezing": True}
        )

    def start(self, pixels: torch.Tensor, resize: Resize | None = None) -> Result:
        """Begin with a batch, see `Runtime.start`; the first one takes the compiler's time."""
        if self._instead is None:
            try:
                return self._copies.fetch(self._compute(self._copies.bring(pixels, resize)))
            except ERRORS as error:
                if not is_out_of_memory(error):
                    raise
            self._give_up(len(pixels))
        assert self._instead is not None  # noqa: S101
        return self._instead.start(pixels, resize)

    def _give_up(self, n_rows: int) -> None:
        del self._program
        free_cached(self._device)
        self._tell(
            f"{self._device} has too little memory for the compiled program of {self._name}: "
            "computed by PyTorch as it is from now on"
        )
        self._instead, self.has_given_up = self._eager(n_rows=n_rows), True

    def bare(self, pixels: torch.Tensor) -> Callable[[], object]:
        """Give the program alone, see `Runtime.bare`."""
        how, mend = f" with {len(pixels)} images at once", "a smaller --batch-size"
        named = partial(memory_named, self._name, self._device, how, mend)
        with named():
            there = pixels.to(self._device)

        def run() -> None:
            with named():
                self._compute(there)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)

        return run

    def _compute(self, there: torch.Tensor) -> Sequence[torch.Tensor]:
        with torch.no_grad(), numbers(self._device, self._precision):
            try:
                features: Sequence[torch.Tensor] = self._program(there)
            except torch._dynamo.exc.TorchDynamoException as error:
                if is_out_of_memory(error):
                    raise
                reason = str(error).strip().splitlines()[0]
                raise BackboneError(
                    f"{self._name} cannot be compiled: {reason}. Say --runtime torch"
                ) from error
        return features
