"""What every runtime does: pixels of a batch in, rows of features out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from featx.arithmetic import autotuned, refuse_forced_tf32, true_float32
from featx.backbones.base import BackboneGroup

__all__ = ["DTYPES", "Resize", "Result", "Runtime", "Whole", "numbers"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Types of the precisions that autocast serves; ``fp32`` needs none."""

Result: TypeAlias = Callable[[], list[np.ndarray]]
"""Waits for a batch; gives one array of shape (n_rows, n_features) a member of the group."""


Resize: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Enlarges uint8 images to (n_rows, crop_px, crop_px, 3), on the device where they are."""


@contextmanager
def numbers(device: torch.device, precision: str, *, is_repeated: bool = True) -> Iterator[None]:
    """Compute in a precision; float32 is float32, see `true_float32`."""
    if precision == "fp32" and device.type == "cuda":
        refuse_forced_tf32("choose --precision bf16 or fp16")
    dtype = DTYPES.get(precision, torch.float32)
    with (
        torch.autocast(device.type, dtype=dtype, enabled=precision in DTYPES),
        true_float32(),
        autotuned() if is_repeated else nullcontext(),
    ):
        yield


class Runtime(ABC):
    """Computes the features of batches of one shape."""

    n_under_way: int = 0
    n_expected: int = 0  # batches of the run: only many of them repay measuring
    has_given_up: bool = False

    @abstractmethod
    def start(self, pixels: torch.Tensor, resize: Resize | None = None) -> Result:
        """Begin with a batch."""

    @abstractmethod
    def bare(self, pixels: torch.Tensor) -> Callable[[], object]:
        """Give the forward pass alone, over and over on one batch: the ceiling of all else."""


class Whole(nn.Module):
    """Everything between pixels and features as one module, to be compiled or converted."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, group: BackboneGroup, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = group.network
        self._group, self._dtype = group, dtype
        # Buffers move with the network: a number on the host keeps a program for a GPU waiting.
        mean, std = group.preprocessing.constants(torch.device("cpu"))
        # Copies: where both are 0.5 they are one tensor, which a trace refuses.
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Normalise, compute, pool and flatten."""
        images = self._group.preprocessing.normalise(pixels, (self.mean, self.std))
        return self._group.features_many(images, self._dtype)
