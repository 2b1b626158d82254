"""Where the time of twenty warm batches goes, by torch's profiler."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from featx.sources import open_data
from gpu_kit.kit import Kit

__all__ = ["profile_batches"]

_N_WARM, _N_PROFILED = 6, 20
_COUNTED = (
    *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
    *("cudaMemcpyAsync", "cudaMemcpy", "cudaLaunchKernel", "cudaMalloc", "cudaHostAlloc"),
)


def profile_batches(kit: Kit) -> None:
    """Profile a network on files enlarged by the device."""
    name = "squeezenet1_1" if kit.is_small else "vgg16"
    n_warm, n = (1, 2) if kit.is_small else (_N_WARM, _N_PROFILED)
    group = kit.group(name)
    engine = kit.engine("fp16" if kit.is_gpu else "fp32", 8 if kit.is_small else 256)
    source = max(open_data(kit.pictures.tree("cifar")).values(), key=len)
    source = source.take(np.arange(min(len(source), (n_warm + n + 2) * engine.batch_size)))
    n_batches = min(n_warm + n, len(source) // engine.batch_size)
    batches = engine.run_many(group, source, range(n_batches), dtype="float16")
    for _ in range(n_warm):
        next(batches)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if kit.is_gpu else [])
    with profile(activities=activities) as profiled:
        seconds = kit.seconds(lambda: list(batches))
    n_done = n_batches - n_warm
    kit.row(what=f"{n_done} batches of {engine.batch_size}, s", found=seconds)
    averages = profiled.key_averages()
    for call in _COUNTED:
        events = [event for event in averages if event.key == call]
        count = sum(event.count for event in events)
        kit.row(call=call, count=count, cpu_ms=sum(e.cpu_time_total for e in events) / 1e3)
    if kit.is_gpu:
        _show_device(kit, averages, seconds)
    kit.text("by CPU time", averages.table(sort_by="self_cpu_time_total", row_limit=15))


def _show_device(kit: Kit, averages: Any, seconds: float) -> None:
    """Tell what the card did; copies of ordinary memory wait, those of page-locked do not."""
    there = [event for event in averages if event.device_type == DeviceType.CUDA]
    total = sum(event.self_device_time_total for event in there) / 1e6
    kit.row(what="kernels and copies, share of the time", found=total / seconds)
    for event in there:
        if event.key.startswith("Mem"):
            kit.row(copy=event.key, count=event.count, device_ms=event.self_device_time_total / 1e3)
    kit.text("by device time", averages.table(sort_by="self_device_time_total", row_limit=15))
