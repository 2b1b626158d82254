"""What happens where a device has too little memory: one place for every runtime."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import numpy as np
import torch

from featx.engines.runtimes.base import Result
from featx.errors import BackboneError
from featx.memory import is_out_of_memory

__all__ = ["ERRORS", "InParts", "free_cached", "memory_named"]

ERRORS = (RuntimeError, MemoryError)
"""Classes of what `is_out_of_memory` knows."""


class InParts:
    """Computes whole batches, or halves of halves of them from the first that does not fit."""

    def __init__(
        self, name: str, device: torch.device, n_rows: int, tell: Callable[[str], object]
    ) -> None:
        self._name, self._device, self._at_once, self._tell = name, device, n_rows, tell

    def run(self, start: Callable[[torch.Tensor], Result], pixels: torch.Tensor) -> Result:
        """Begin with a batch."""
        while True:
            at_once = self._at_once
            try:
                with self._last_named() if at_once == 1 else nullcontext():
                    return _joined([start(part) for part in torch.split(pixels, at_once)])
            except ERRORS as error:
                if not is_out_of_memory(error):
                    raise
            # Behind the except clause: its frames hold tensors.
            free_cached(self._device)
            self._at_once = at_once // 2
            self._tell(
                f"{self._device} has too little memory: {self._at_once} images at once from now on"
            )

    def _last_named(self) -> AbstractContextManager[None]:
        how = ", not even with one image at once"
        return memory_named(self._name, self._device, how, "a smaller --input-size")


def _joined(results: Sequence[Result]) -> Result:
    return results[0] if len(results) == 1 else partial(_join, results)


def _join(results: Sequence[Result]) -> list[np.ndarray]:
    parts = zip(*(result() for result in results), strict=True)
    return [np.concatenate(rows) for rows in parts]


@contextmanager
def memory_named(
    name: str, device: torch.device, how: str = "", mend: str = "a smaller network"
) -> Iterator[None]:
    """Say in a sentence that the memory was too small, where nothing less can be tried."""
    try:
        yield
    except ERRORS as error:
        if not is_out_of_memory(error):
            raise
        says = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BackboneError(
            f"{name} does not fit into the memory of {device}{how}: choose {mend}, or --device cpu "
            f"({says})"
        ) from error


def free_cached(device: torch.device) -> None:
    """Give memory back that nothing uses, so that other libraries can have it too."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
