"""Which runtime computes the forward pass, and why."""

from __future__ import annotations

from collections.abc import Callable

import torch

from featx.backbones.base import BackboneGroup
from featx.engines.machine import n_cores
from featx.engines.runtimes.base import Runtime
from featx.engines.runtimes.compiled import CompiledRuntime, find_compiler, require_compiler
from featx.engines.runtimes.eager import EagerRuntime
from featx.engines.runtimes.openvino import HINTS, OpenVinoRuntime, has_openvino
from featx.errors import MissingExtraError, UsageError
from featx.words import RUNTIMES, check_word

__all__ = ["open_runtime", "resolve_runtime"]

_WORTH_COMPILING = {"cpu": 2_000, "cuda": 20_000}
"""Images for which compiling, some ten to thirty seconds, pays."""


def resolve_runtime(
    name: str, device: torch.device, precision: str, n_images: int | None = None
) -> tuple[str, str]:
    """Runtime of a ``--runtime`` value."""
    check_word("runtime", name, RUNTIMES)
    if name == "auto":
        return _best(device, precision, n_images)
    if name == "openvino":
        if device.type != "cpu":
            raise UsageError(f"--runtime openvino computes on the CPU, not on {device}")
        if precision not in HINTS:
            raise UsageError(
                f"--runtime openvino computes in {' or '.join(HINTS)}, not in {precision}"
            )
        if not has_openvino():
            raise MissingExtraError("openvino", "openvino", "--runtime openvino")
    if name == "compile":
        require_compiler(device)
    return name, "as asked"


def _best(device: torch.device, precision: str, n_images: int | None) -> tuple[str, str]:
    if device.type == "cpu" and precision in HINTS and has_openvino():
        return "openvino", "OpenVINO is installed, and its kernels use more of a CPU than PyTorch's"
    least = _WORTH_COMPILING[device.type]
    is_many = n_images is None or n_images >= least
    compiler = find_compiler(device)
    if is_many and compiler is not None:
        return "compile", f"{least:,} images or more repay the time that {compiler} takes"
    if is_many:
        return "torch", "neither OpenVINO nor a compiler is installed"
    return "torch", f"fewer than {least:,} images do not repay the time of compiling"


def open_runtime(
    name: str,
    group: BackboneGroup,
    device: torch.device,
    precision: str,
    dtype: torch.dtype,
    *,
    n_rows: int,
    tell: Callable[[str], object],
) -> Runtime:
    """Make a network ready to run."""
    if name == "openvino":
        threads = n_cores()
        return OpenVinoRuntime(group, precision, dtype, n_rows=n_rows, n_threads=threads)
    if name == "compile":
        return CompiledRuntime(group, device, precision, dtype, tell=tell)
    return EagerRuntime(group, device, precision, dtype, n_rows=n_rows, tell=tell)
