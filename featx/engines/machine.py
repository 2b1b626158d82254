"""What this machine has: devices, arithmetic and cores."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from featx.arithmetic import refuse_forced_tf32
from featx.devices import find_device
from featx.errors import UsageError
from featx.words import PRECISIONS, check_word

__all__ = [
    "n_cores",
    "resolve_device",
    "resolve_devices",
    "resolve_precision",
]


def n_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_devices(names: Sequence[str]) -> tuple[torch.device, ...]:
    """Devices of a ``--device`` list."""
    devices = [resolve_device(name) for name in names or ("auto",)]
    if len(set(devices)) < len(devices):
        raise UsageError(f"--device {' '.join(names)} names a device twice")
    if len(devices) > 1 and any(device.type == "cpu" for device in devices):
        raise UsageError(
            f"--device {' '.join(names)}: only GPUs share the work, as in  --device cuda:0 cuda:1"
        )
    return tuple(devices)


def resolve_device(name: str | torch.device) -> torch.device:
    """Device of a ``--device`` value."""
    return torch.device(find_device(str(name)))


def resolve_precision(name: str, device: torch.device) -> tuple[str, str]:
    """Arithmetic of a ``--precision`` value on a device."""
    check_word("precision", name, PRECISIONS)
    if name == "fp32" and device.type == "cuda":
        refuse_forced_tf32("choose --precision bf16 or fp16")
    if name != "auto":
        return name, "as asked"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return "bf16", "this GPU multiplies bfloat16 matrices in hardware"
        return "fp16", "this GPU has float16, but no bfloat16 matrix units"
    # No public question tells it: this one is what torch.compile itself asks.
    if torch.ops.mkldnn._is_mkldnn_bf16_supported() and _has_bf16_instructions():
        return "bf16", "this processor has bfloat16 instructions"
    return "fp32", "this processor has no bfloat16 instructions"


def _has_bf16_instructions() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as stream:  # noqa: PTH123
            flags = next((line for line in stream if line.startswith("flags")), "").split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
