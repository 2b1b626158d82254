"""Decoding and preprocessing in worker processes, into uint8 batches of one shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from featx.errors import ImageError
from featx.preprocess import Preprocessing
from featx.sources import Source

__all__ = ["PixelBatch", "iter_pixels"]


@dataclass(frozen=True)
class PixelBatch:
    """Preprocessed pixels of consecutive images, padded to the full batch.

    Parameters
    ----------
    start : int
        Row number of the first image.
    n_images : int
        Images in the batch; the rest is padding.
    pixels : tensor of shape (n_rows, crop_px, crop_px, 3), dtype uint8
        Black where an image could not be read, and in the padding.
    failed : dict of int to str
        Row number and reason of every image that could not be read.
    """

    start: int
    n_images: int
    pixels: torch.Tensor
    failed: dict[int, str]

    def pin_memory(self) -> PixelBatch:
        """Copy into page-locked memory; the loader calls it for a CUDA device."""
        return PixelBatch(self.start, self.n_images, self.pixels.pin_memory(), self.failed)


class _Batches(Dataset[PixelBatch]):
    """Batch number in, `PixelBatch` out; runs in the workers."""

    def __init__(
        self, source: Source, preprocessing: Preprocessing, batch_size: int, n_rows: int
    ) -> None:
        self._source = source
        self._preprocessing = preprocessing
        self._batch_size = batch_size
        self._n_rows = n_rows

    def __getitem__(self, batch: int) -> PixelBatch:
        start = batch * self._batch_size
        stop = min(start + self._batch_size, len(self._source))
        side = self._preprocessing.crop_px
        pixels = np.zeros((self._n_rows, side, side, 3), np.uint8)
        failed: dict[int, str] = {}
        for i, row in enumerate(range(start, stop)):
            try:
                pixels[i] = self._preprocessing.pixels(self._source.image(row))
            except ImageError as error:
                failed[row] = str(error)
        return PixelBatch(start, stop - start, torch.from_numpy(pixels), failed)


def iter_pixels(
    source: Source,
    preprocessing: Preprocessing,
    batches: Sequence[int],
    *,
    batch_size: int,
    n_rows: int,
    workers: int,
    pin_memory: bool = False,
) -> Iterator[PixelBatch]:
    """Decode and preprocess batches of consecutive images, in order.

    At most two batches a worker wait in memory, however many images there are.

    Parameters
    ----------
    source : Source
        Where the images come from.
    preprocessing : Preprocessing
        Resize and crop.
    batches : sequence of int
        Batch numbers; batch k begins at row ``k * batch_size``.
    batch_size : int
        Images in every batch.
    n_rows : int
        Images and padding in every batch, at least `batch_size`.
    workers : int
        Worker processes; 0 decodes in this process.
    pin_memory : bool, default=False
        Whether to copy into page-locked memory.

    Yields
    ------
    PixelBatch
        In the order of `batches`.
    """
    loader = DataLoader(
        _Batches(source, preprocessing, batch_size, n_rows),
        batch_size=None,
        sampler=list(batches),
        num_workers=min(workers, len(batches)),
        pin_memory=pin_memory,
    )
    yield from loader
