"""Decoded images and their labels, handed to a network batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from featx.errors import UsageError

__all__ = ["Batches", "PixelSet"]

_SHARE_OF_GPU = 0.4


@dataclass(frozen=True, eq=False)
class PixelSet(Dataset[tuple[NDArray[np.uint8], int]]):
    """Some rows of an array of images."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 4 or self.pixels.shape[3] != 3:
            raise UsageError(
                f"images are {self.pixels.dtype} {self.pixels.shape}: give decoded ones, uint8 "
                "(images, height, width, 3)"
            )

    @classmethod
    def of(cls, pixels: NDArray[np.uint8], labels: NDArray[np.int64] | None = None) -> PixelSet:
        """Take every image of an array; labels are 0 where they are not known."""
        n = len(pixels)
        known = np.zeros(n, np.int64) if labels is None else np.asarray(labels, np.int64)
        return cls(np.asarray(pixels), known, np.arange(n))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        return self.pixels[self.rows[index]], int(self.labels[index])

    def take(self, index: NDArray[np.int64]) -> PixelSet:
        """Restrict to some rows."""
        return PixelSet(self.pixels, self.labels[index], self.rows[index])


class Batches:
    """Images and labels of a set on a device, batch by batch.

    Images that fit into a part of a GPU's free memory are copied there once; else each batch
    is gathered and copied while the one before is computed.
    """

    def __init__(
        self,
        images: PixelSet,
        batch_size: int,
        device: torch.device,
        *,
        order: Callable[[int], NDArray[np.int64]] | None = None,
        without_single: bool = False,
    ) -> None:
        self.images, self.batch_size, self.device, self.order = images, batch_size, device, order
        self._without_single = without_single and len(images) > 1
        pixels, rows = images.pixels, images.rows
        self._is_resident = device.type == "cpu" or _fits(device, len(rows) * pixels[:1].nbytes)
        if self._is_resident and device.type != "cpu":
            pixels, rows = pixels[rows], np.arange(len(rows))
        elif not pixels.flags.writeable:
            pixels = pixels.copy()  # torch takes no arrays that must not be written to
        place = device if self._is_resident else torch.device("cpu")
        self._pixels = torch.from_numpy(pixels).to(place)
        self._rows = torch.from_numpy(rows).to(place)
        self._labels = torch.from_numpy(images.labels).to(place)

    def __len__(self) -> int:
        n_left = len(self.images) % self.batch_size
        is_short = n_left == 0 or (n_left == 1 and self._without_single)
        return len(self.images) // self.batch_size + (not is_short)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(self.images)
        order = torch.from_numpy(np.arange(n) if self.order is None else self.order(n))
        parts = torch.split(order.to(self._rows.device), self.batch_size)[: len(self)]
        if self._is_resident:
            yield from map(self._gather, parts)
            return
        with ThreadPoolExecutor(1) as ahead:
            waiting = [ahead.submit(self._pinned, part) for part in parts[:2]]
            for i in range(len(parts)):
                pixels, labels = waiting.pop(0).result()
                if i + 2 < len(parts):
                    waiting.append(ahead.submit(self._pinned, parts[i + 2]))
                yield (
                    pixels.to(self.device, non_blocking=True),
                    labels.to(self.device, non_blocking=True),
                )

    def _gather(self, part: Tensor) -> tuple[Tensor, Tensor]:
        return self._pixels[self._rows[part]], self._labels[part]

    def _pinned(self, part: Tensor) -> tuple[Tensor, Tensor]:
        pixels, labels = self._gather(part)
        return pixels.pin_memory(), labels.pin_memory()


def _fits(device: torch.device, n_bytes: int) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return n_bytes < _SHARE_OF_GPU * free
