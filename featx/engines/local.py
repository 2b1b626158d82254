"""One process with one device: a GPU where there is one, else the CPU."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from featx.backbones.base import BackboneGroup
from featx.engines.base import Engine, FeatureBatch
from featx.engines.loader import PixelBatch, iter_pixels
from featx.errors import BackboneError, UsageError
from featx.sources import Source

__all__ = ["PRECISIONS", "LocalEngine", "resolve_device", "resolve_precision"]

PRECISIONS = ("fp32", "bf16", "fp16", "auto")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_BATCH_SIZES = {"cpu": 16, "cuda": 128}
# Matrix products on a CPU take four rows at once and add up what is left over in another order
# (measured with PyTorch 2.15 and its oneDNN and MKL, on 1, 2, 4 and 8 threads).
_CPU_ROWS = 4


def resolve_device(name: str) -> torch.device:
    """Device of a ``--device`` value.

    Parameters
    ----------
    name : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Returns
    -------
    torch.device
        For ``auto`` the first GPU, or the CPU where there is none.

    Raises
    ------
    UsageError
        If the name is none of these, or there is no such device.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if n_gpus else "cpu")
    kind, _, index = name.partition(":")
    if kind not in _BATCH_SIZES or (index and not index.isdecimal()) or name == "cpu:":
        raise UsageError(f"device {name!r} is unknown: choose auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        return torch.device("cpu")
    if int(index or 0) >= n_gpus:
        has = f"cuda:0 to cuda:{n_gpus - 1}" if n_gpus else "no CUDA device"
        raise UsageError(f"device {name!r} is not there: this machine has {has}; try --device auto")
    return torch.device("cuda", int(index or 0))


def resolve_precision(name: str, device: torch.device) -> tuple[str, str]:
    """Arithmetic of a ``--precision`` value on a device.

    Parameters
    ----------
    name : str
        One of `PRECISIONS`.
    device : torch.device
        Where the network runs.

    Returns
    -------
    precision : str
        ``fp32``, ``bf16`` or ``fp16``.
    why : str
        The reason, for a person.

    Raises
    ------
    UsageError
        If the name is unknown.
    """
    if name not in PRECISIONS:
        raise UsageError(f"precision {name!r} is unknown: choose from {', '.join(PRECISIONS)}")
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


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class LocalEngine(Engine):
    """Runs the network on one device of this machine.

    Parameters
    ----------
    device : torch.device
        See `resolve_device`.
    precision : str
        ``fp32``, ``bf16`` or ``fp16``.
    images_per_batch : int, optional
        Fixed shape of every batch; 16 on a CPU and 128 on a GPU by default. On a CPU the
        network runs on the next multiple of four, so that no feature depends on this number.
    workers : int, optional
        Processes that decode; by default one on a CPU device, which needs the
        cores itself, and one a core, 16 at most, for a GPU. 0 decodes in this process.
    tell : callable, optional
        Is told, in a sentence, where the memory is too small for a batch.
    """

    device: torch.device
    precision: str = "fp32"
    images_per_batch: int | None = None
    workers: int | None = None
    tell: Callable[[str], object] = field(default=warnings.warn, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.images_per_batch is not None and self.images_per_batch < 1:
            raise UsageError(f"batch size must be at least 1, got {self.images_per_batch}")
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"workers must be at least 0, got {self.workers}")

    @property
    def batch_size(self) -> int:
        """Images in every batch."""
        return self.images_per_batch or _BATCH_SIZES[self.device.type]

    @property
    def _n_rows(self) -> int:
        """Images and padding in every forward pass."""
        if self.device.type != "cpu":
            return self.batch_size
        return -(-self.batch_size // _CPU_ROWS) * _CPU_ROWS

    @cached_property
    def _n_workers(self) -> int:
        if self.workers is not None:
            return self.workers
        return 1 if self.device.type == "cpu" else min(16, _n_cores())

    def describe(self) -> dict[str, str | int]:
        """Say what it runs on, see `Engine.describe`."""
        is_gpu = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if is_gpu else "cpu",
            "batch_size": self.batch_size,
            "workers": self._n_workers,
        }

    def run_many(
        self,
        group: BackboneGroup,
        source: Source,
        batches: Sequence[int],
        *,
        dtype: str = "float32",
    ) -> Iterator[tuple[FeatureBatch, ...]]:
        """Compute several features of some batches in one pass, see `Engine.run_many`.

        On a GPU the copy of each result to the host runs while the next batch is
        computed. Every batch has the full shape: the last one is padded, on a CPU every
        one whose size is no multiple of four.

        Parameters
        ----------
        group : BackboneGroup
            Moved to the device, its weights in channels-last order.
        source : Source
            Where the images come from.
        batches : sequence of int
            Numbers of the batches wanted.
        dtype : {"float32", "float16"}
            Type of the features, converted on the device.

        Yields
        ------
        tuple of FeatureBatch
            One a member, for each batch, in order.
        """
        pixels = iter_pixels(
            source,
            group.preprocessing,
            batches,
            batch_size=self.batch_size,
            n_rows=self._n_rows,
            workers=self._n_workers,
            pin_memory=self.device.type == "cuda",
        )
        group.network.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        waiting: _Pending | None = None
        at_once = self._n_rows
        for batch in pixels:
            pending, at_once = self._start(group, batch, getattr(torch, dtype), at_once)
            if waiting is not None:
                yield waiting.result()
            waiting = pending
            if self.device.type == "cpu":
                yield waiting.result()
                waiting = None
        if waiting is not None:
            yield waiting.result()

    @torch.inference_mode()
    def _start(
        self, group: BackboneGroup, batch: PixelBatch, stored: torch.dtype, at_once: int
    ) -> tuple[_Pending, int]:
        images = group.preprocessing.normalise(batch.pixels.to(self.device, non_blocking=True))
        dtype = _DTYPES.get(self.precision, torch.float32)
        with (
            torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32),
            torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False),
        ):
            outputs, at_once = self._forward(group, images, at_once)
        features = [output[: batch.n_images].to(stored) for output in outputs]
        if self.device.type == "cpu":
            return _Pending(batch, features, None), at_once
        host = [torch.empty(f.shape, dtype=f.dtype, pin_memory=True) for f in features]
        for there, here in zip(host, features, strict=True):
            there.copy_(here, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self.device))
        return _Pending(batch, host, done), at_once

    def _forward(
        self, group: BackboneGroup, images: torch.Tensor, at_once: int
    ) -> tuple[Sequence[torch.Tensor], int]:
        """Run the network, on half as many images at once where the memory is too small."""
        while True:
            try:
                starts = range(0, len(images), at_once)
                parts = [group.features_many(images[i : i + at_once]) for i in starts]
                joined = (
                    parts[0] if len(parts) == 1 else [*map(torch.cat, zip(*parts, strict=True))]
                )
                return joined, at_once
            except torch.OutOfMemoryError as error:
                if at_once == 1:
                    raise BackboneError(
                        f"{group[0].name} does not fit into the memory of {self.device}, not even "
                        "with one image at once: choose a smaller --input-size, or --device cpu"
                    ) from error
                at_once //= 2
                self.tell(
                    f"{self.device} has too little memory: {at_once} images at once from now on"
                )
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # behind the except clause: its frames hold tensors


@dataclass(frozen=True)
class _Pending:
    """Features on their way from the device to the host."""

    batch: PixelBatch
    features: list[torch.Tensor]
    done: torch.cuda.Event | None

    def result(self) -> tuple[FeatureBatch, ...]:
        if self.done is not None:
            self.done.synchronize()
        start, failed = self.batch.start, self.batch.failed
        return tuple(FeatureBatch(start, features.numpy(), failed) for features in self.features)
