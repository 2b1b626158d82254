"""Decoding and preprocessing in worker processes, into uint8 batches of one shape."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from featx.errors import FeatxError, ImageError, SourceError
from featx.images import LARGEST
from featx.preprocess import Preprocessing
from featx.sources import Source
from featx.store.threads import give_way

__all__ = ["Loading", "PixelBatch", "iter_pixels", "worker_deaths_named"]


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
    digests : ndarray of uint8, shape (n_images, 32)
        SHA-256 of what was decoded, as `Source.image_digests` has it.
    seconds : float
        Time that it took to decode and preprocess.
    is_raw : bool, default=False
        Whether the images are as decoded, for the device to resize.
    deep : sequence of int
        Largest value of each image whose values are stored in 16 bits.
    """

    start: int
    n_images: int
    pixels: torch.Tensor
    failed: dict[int, str]
    digests: np.ndarray
    seconds: float
    is_raw: bool = False
    deep: Sequence[int] = ()

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
        work = _Work(start, np.zeros((stop - start, 32), np.uint8))
        pixels = self._raw(work) if self.raw_size else None
        is_raw = pixels is not None
        if pixels is None:
            pixels = self._cropped(work)
        n, tensor, seconds = stop - start, torch.from_numpy(pixels), time.perf_counter() - started
        failed, digests = work.failed, work.digests
        return PixelBatch(start, n, tensor, failed, digests, seconds, is_raw, work.deep)

    def _raw(self, work: _Work) -> np.ndarray | None:
        assert self.raw_size is not None  # noqa: S101
        width, height = self.raw_size
        pixels = np.zeros((self.batch_size, height, width, 3), np.uint8)
        for i, image in self._images(work):
            if image.size != self.raw_size:
                work.failed.clear()
                work.deep.clear()
                return None
            pixels[i] = np.asarray(image)
        return pixels

    def _cropped(self, work: _Work) -> np.ndarray:
        side = self.preprocessing.crop_px
        pixels = np.zeros((self.batch_size, side, side, 3), np.uint8)
        for i, image in self._images(work):
            pixels[i] = self.preprocessing.pixels(image)
        return pixels

    def _images(self, work: _Work) -> Iterator[tuple[int, Image.Image]]:
        """Read, hash and decode; those that cannot be decoded fail."""
        for i in range(len(work.digests)):
            row = work.start + i
            data, digest = self.source.fetch(row)
            work.digests[i] = np.frombuffer(digest, np.uint8)
            try:
                if isinstance(data, ImageError):
                    raise data
                image = self.source.decoded(row, data, self.preprocessing.bits)
            except ImageError as error:
                work.failed[row] = str(error)
            else:
                if LARGEST in image.info:
                    work.deep.append(image.info[LARGEST])
                yield i, image


@dataclass(frozen=True)
class _Work:
    """A batch as it comes to be: digests and failed rows from `start` on."""

    start: int
    digests: np.ndarray
    failed: dict[int, str] = field(default_factory=dict)
    deep: list[int] = field(default_factory=list)


class _Batches(Dataset[PixelBatch | FeatxError]):
    """Batch number in, `PixelBatch` out, or what ends the run; works in the workers."""

    def __init__(self, loading: Loading) -> None:
        self._loading = loading

    def __getitem__(self, batch: int) -> PixelBatch | FeatxError:
        # As a value: torch would put the worker's traceback into the text of an error.
        try:
            return self._loading.load(batch)
        except SourceError as error:
            return error
        except MemoryError:
            return SourceError(
                "there is too little memory to decode the images. No image is marked as failed "
                "because of this. Give the run more memory or fewer --workers, then run the same "
                "again"
            )


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

    Raises
    ------
    ReadError
        If the machine cannot read an image.
    SourceError
        If there is too little memory, or a worker was killed.
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
    with worker_deaths_named():
        for batch in loader:
            if isinstance(batch, FeatxError):
                raise batch
            yield batch


@contextmanager
def worker_deaths_named() -> Iterator[None]:
    """Say in words that a worker ended: torch raises that out of a signal, wherever Python is."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise SourceError(
            f"a process that decodes images ended: {error}. No image is marked as failed because "
            "of this. Mostly the memory was too small: use fewer --workers, then run the same again"
        ) from error
