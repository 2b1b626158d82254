"""Names of devices, as they are typed; a machine without a GPU is told without torch."""

from __future__ import annotations

import re
from pathlib import Path

from featx.errors import UsageError

__all__ = ["AUTO", "CPU", "find_device", "unknown_device"]

AUTO, CPU = "auto", "cpu"
_GPU = re.compile(r"cuda(?::([0-9]{1,4}))?")


def find_device(name: str = AUTO) -> str:
    """Resolve the name of a device."""
    if name == CPU or (name == AUTO and not _has_driver()):
        return CPU
    match = _GPU.fullmatch(name)
    if match is None and name != AUTO:
        raise unknown_device(name)
    count, number = _n_gpus(), int(match[1] or 0) if match else 0
    if number < count:
        return f"cuda:{number}"
    if name == AUTO:
        return CPU
    allowed = ", ".join([CPU, *(f"cuda:{i}" for i in range(count))])
    none = "" if count else " (this machine has no CUDA device)"
    raise UsageError(f"device {name!r} is not there: choose from {allowed}{none}, or --device auto")


def unknown_device(name: str) -> UsageError:
    """Say which devices there can be."""
    return UsageError(f"device {name!r} is unknown: choose auto, cpu, cuda or cuda:N")


def _has_driver() -> bool:
    # Importing torch takes seconds, which a machine without a driver need not spend.
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


def _n_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
