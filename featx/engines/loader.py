"""Decoding and preprocessing in worker processes, into uint8 batches of one shape."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from featx.errors import ImageError
from featx.preprocess import Preprocessing
from featx.sources import Source
from featx.store.threads import give_way

__all__ = ["Loading", "PixelBatch", "iter_pixels"]


@dataclass(frozen=True)
class PixelBatch:
    """Pixels of consecutive images, padded to the full batch.

    Parameters
    ----------
    start : int
        Row number of the first image.
    n_images : int
        Images in the batch; the rest is padding.
    pixels : tensor of shape (batch_size, height, width, 3), dtype uint8
        Resized and cropped, unless `is_raw`. Black where an image could not be read, and in the
        padding.
    failed : dict of int to str
        Row number and reason of every image that could not be read.
    seconds : float
        Time that it took to decode and preprocess.
    is_raw : bool, default=False
        Whether the images are as decoded, for the device to resize.
    """

    start: int
    n_images: int
    pixels: torch.Tensor
    failed: dict[int, str]
    seconds: float
    is_raw: bool = False

    def pin_memory(self) -> PixelBatch:
        """Copy into page-locked memory; the loader calls it for a CUDA device."""
        return replace(self, pixels=self.pixels.pin_memory())


@dataclass(frozen=True)
class Loading:
    """What is decoded, and how.

    Parameters
    ----------
    source : Source
        Where the images come from.
    preprocessing : Preprocessing
        Resize and crop.
    batch_size : int
        Images, or images and padding, in every batch.
    raw_size : tuple of 2 int, optional
        Width and height in pixels of images that are handed on as decoded. A batch with an
        image of another size is resized here all the same.
    """

    source: Source
    preprocessing: Preprocessing
    batch_size: int
    raw_size: tuple[int, int] | None = None

    def load(self, batch: int) -> PixelBatch:
        """Decode and preprocess a batch.

        Parameters
        ----------
        batch : int
            Its number: it begins at row ``batch * batch_size``.

        Returns
        -------
        PixelBatch
        """
        started = time.perf_counter()
        start = batch * self.batch_size
        stop = min(start + self.batch_size, len(self.source))
        failed: dict[int, str] = {}
        pixels = self._raw(start, stop, failed) if self.raw_size else None
        is_raw = pixels is not None
        if pixels is None:
            pixels = self._cropped(start, stop, failed)
        seconds = time.perf_counter() - started
        return PixelBatch(start, stop - start, torch.from_numpy(pixels), failed, seconds, is_raw)

    def _raw(self, start: int, stop: int, failed: dict[int, str]) -> np.ndarray | None:
        assert self.raw_size is not None  # noqa: S101
        width, height = self.raw_size
        pixels = np.zeros((self.batch_size, height, width, 3), np.uint8)
        for i, row in enumerate(range(start, stop)):
            try:
                image = self.source.image(row)
            except ImageError as error:
                failed[row] = str(error)
                continue
            if image.size != self.raw_size:
                failed.clear()
                return None
            pixels[i] = np.asarray(image)
        return pixels

    def _cropped(self, start: int, stop: int, failed: dict[int, str]) -> np.ndarray:
        side = self.preprocessing.crop_px
        pixels = np.zeros((self.batch_size, side, side, 3), np.uint8)
        for i, row in enumerate(range(start, stop)):
            try:
                pixels[i] = self.preprocessing.pixels(self.source.image(row))
            except ImageError as error:
                failed[row] = str(error)
        return pixels


class _Batches(Dataset[PixelBatch]):
    """Batch number in, `PixelBatch` out; runs in the workers."""

    def __init__(self, loading: Loading) -> None:
        self._loading = loading

    def __getitem__(self, batch: int) -> PixelBatch:
        return self._loading.load(batch)


def _give_way(worker: int) -> None:
    del worker
    give_way()


def iter_pixels(
    loading: Loading,
    batches: Sequence[int],
    *,
    workers: int,
    n_ahead: int = 2,
    pin_memory: bool = False,
    is_giving_way: bool = False,
) -> Iterator[PixelBatch]:
    """Decode and preprocess batches of consecutive images, in order.

    At most `n_ahead` batches a worker wait in memory, however many images there are.

    Parameters
    ----------
    loading : Loading
        What is decoded, and how.
    batches : sequence of int
        Batch numbers; batch k begins at row ``k * batch_size``.
    workers : int
        Worker processes; 0 decodes in this process.
    n_ahead : int, default=2
        Batches that a worker prepares ahead.
    pin_memory : bool, default=False
        Whether to copy into page-locked memory.
    is_giving_way : bool, default=False
        Whether the workers leave the cores to the network that computes beside them: of two
        threads that share its work, the other one waits for the one that they displace.

    Yields
    ------
    PixelBatch
        In the order of `batches`.
    """
    workers = min(workers, len(batches))
    with warnings.catch_warnings():
        # More workers than cores were asked for: they may wait for a disk or a network.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        loader = iter(
            DataLoader(
                _Batches(loading),
                batch_size=None,
                sampler=list(batches),
                num_workers=workers,
                prefetch_factor=n_ahead if workers else None,
                pin_memory=pin_memory,
                worker_init_fn=_give_way if is_giving_way else None,
            )
        )
    yield from loader
