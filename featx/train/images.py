"""Images of a source: decoded once to uint8, handed to a network batch by batch, and augmented."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from featx.configurable import Configurable, parse, setting
from featx.depth import describe_dim
from featx.engines.loader import Loading, iter_pixels, worker_deaths_named
from featx.errors import ProtocolError, UsageError
from featx.preprocess import Preprocessing
from featx.progress import Reporter
from featx.sources import Source
from featx.sources.base import ArraySource

__all__ = ["Augment", "Batches", "Decoded", "Decoder", "PixelSet", "SourceRows", "sample_warped"]

_DECODED_AT_ONCE = 64
_DONE, _FAILED = 1, 2
_SHARE_OF_GPU = 0.4


@dataclass(frozen=True, eq=False)
class PixelSet:
    """Some rows of an array of images."""

    pixels: NDArray[np.uint8]  # (n_pixels, height, width, 3)
    labels: NDArray[np.int64]  # (n_images,)
    rows: NDArray[np.int64]  # (n_images,), where each image is in `pixels`

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 4 or self.pixels.shape[3] != 3:
            raise UsageError(
                f"images are {self.pixels.dtype} {self.pixels.shape}: give decoded ones, uint8 "
                "(images, height, width, 3)"
            )

    @classmethod
    def of(
        cls, pixels: NDArray[np.uint8] | PixelSet, labels: NDArray[np.int64] | None = None
    ) -> PixelSet:
        """Take every image of an array; unknown labels are 0."""
        if isinstance(pixels, PixelSet):
            return pixels
        n = len(pixels)
        known = np.zeros(n, np.int64) if labels is None else np.asarray(labels, np.int64)
        return cls(np.asarray(pixels), known, np.arange(n))

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: NDArray[np.int64]) -> PixelSet:
        """Select some images."""
        return PixelSet(self.pixels, self.labels[index], self.rows[index])


class Batches:
    """Images and labels of a set on a device, batch by batch.

    Images that fit into a part of a GPU's free memory are copied there once. Otherwise each batch
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
        # Batch normalisation cannot train on a last batch of one image.
        self._without_single = without_single and len(images) > 1
        pixels, rows = images.pixels, images.rows
        self._is_resident = device.type == "cpu" or _fits(device, len(rows) * pixels[:1].nbytes)
        if self._is_resident and device.type != "cpu":
            pixels, rows = pixels[rows], np.arange(len(rows))
        elif not pixels.flags.writeable:
            pixels = pixels.copy()  # torch does not accept read-only arrays
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


@dataclass(frozen=True, eq=False)
class Decoded:
    """Pixels of some rows of a source."""

    pixels: NDArray[np.uint8]  # (n_decoded, side, side, 3)
    place: NDArray[np.int64]  # (n_rows of the source,), the row in `pixels`; -1 if not decoded
    failed: dict[int, str]  # reason by row of the source

    def take(self, labels: NDArray[np.int64], rows: NDArray[np.int64]) -> PixelSet:
        """Select rows of the source, with their labels."""
        return PixelSet(self.pixels, np.asarray(labels)[rows], self.place[rows])


@dataclass(frozen=True)
class Decoder:
    """Decodes, resizes and crops, with bounded memory."""

    preprocessing: Preprocessing
    workers: int
    most_bytes: int  # more than that is kept in a scratch file
    reporter: Reporter

    def decode(
        self, source: Source, digests: NDArray[np.uint8], rows: NDArray[np.int64] | None = None
    ) -> Decoded:
        """Decode rows of a source; by default all of them."""
        rows = np.arange(len(source)) if rows is None else rows
        part = source if len(rows) == len(source) else source.take(rows)
        side = self.preprocessing.crop_px
        pixels = self._empty((len(rows), side, side, 3))
        failed: dict[int, str] = {}
        wanted = digests[rows]
        loading = Loading(part, self.preprocessing, _DECODED_AT_ONCE)
        numbers = range(-(-len(rows) // _DECODED_AT_ONCE))
        batches = iter_pixels(
            loading, numbers, workers=self.workers, n_held=0, tell=self.reporter.warn
        )
        deep: list[int] = []
        label = f"decoding {source.name} {source.split}"
        with worker_deaths_named(), self.reporter.bar(len(rows), label) as bar:
            for batch in batches:
                part.require_unchanged(batch.start, batch.digests, wanted)
                stop = batch.start + batch.n_images
                pixels[batch.start : stop] = batch.pixels[: batch.n_images].numpy()
                failed |= {int(rows[i]): why for i, why in batch.failed.items()}
                deep += batch.deep
                bar.update(batch.n_images)
        if warning := describe_dim(deep, self.preprocessing.bits):
            self.reporter.warn(warning)
        place = np.full(len(source), -1)
        place[rows] = np.arange(len(rows))
        return Decoded(pixels, place, failed)

    def _empty(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Make an array in memory, or in a scratch file where it is too large."""
        n_bytes = int(np.prod(shape))
        if n_bytes <= self.most_bytes:
            return np.empty(shape, np.uint8)
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        size = f"{shape[0]:,} decoded images need {n_bytes / 1e9:.1f} GB"
        if n_bytes > free:
            raise ProtocolError(
                f"{size}: more than the {self.most_bytes / 1e9:.1f} GB of memory that may be used "
                f"and the {free / 1e9:.1f} GB free in {folder}; take fewer images "
                "(--cache-per-class, --test-per-class), a smaller --input-size, or another folder "
                "(TMPDIR)"
            )
        self.reporter.say(f"{size}: they are kept in a scratch file in {folder}")
        with tempfile.TemporaryFile(dir=folder) as stream:
            return np.memmap(stream, np.uint8, "w+", shape=shape)


def is_readable(source: Source) -> bool:
    """Whether every image can be read for sure, without trying."""
    return isinstance(source, ArraySource)


@dataclass(frozen=True, eq=False)
class SourceRows:
    """A split with the attributes of a cache that evaluation uses, but without features."""

    y: NDArray[np.int64]  # (N,), labels, -1 where unknown
    status: NDArray[np.uint8]  # (N,), 1 where the row can be used
    class_names: list[str]
    paths: Sequence[str]  # (N,)
    image_digests: NDArray[np.uint8]  # (N, 32), SHA-256 of each image's bytes
    meta: dict[str, Any]
    path: Path  # where the images are
    fingerprint: str

    @classmethod
    def of(
        cls,
        source: Source,
        digests: NDArray[np.uint8],
        failed: Sequence[int],
        fingerprint: str,
        network: str,
    ) -> SourceRows:
        """Describe a source of which some rows cannot be read."""
        status = np.full(len(source), _DONE, np.uint8)
        status[list(failed)] = _FAILED
        names = {"data": source.name, "split": source.split}
        return cls(
            y=source.labels,
            status=status,
            class_names=list(source.class_names),
            paths=source.paths,
            image_digests=digests,
            meta={**names, "backbone": network, "layer": "trained"},
            path=Path(source.place or source.name),
            fingerprint=fingerprint,
        )

    @property
    def X(self) -> Any:  # noqa: N802
        """No features: a network reads the pixels."""
        raise NotImplementedError("images that are trained on have no features")


@dataclass(frozen=True)
class Augment(Configurable):
    """Random changes of training images; each image is changed independently of the others.

    Rotation and zoom are one bilinear sampling about the centre, where Keras's two layers sample
    twice. Beyond its border an image is mirrored, as in Keras (``fill_mode="reflect"``).
    """

    flip: bool = setting(False)  # half of the images are mirrored, left to right
    crop: int = setting(0, within="[0, inf)")  # padding in pixels, before a random crop
    rotation: float = setting(0.0, within="[0, 0.5]")  # largest angle, as a fraction of a turn
    zoom: float = setting(0.0, within="[0, 1)")  # scales are between 1 - zoom and 1 + zoom

    name = "augment"

    @classmethod
    def parse(cls, words: Sequence[str]) -> Augment:
        """Read settings as they are typed.

        Examples
        --------
        >>> Augment.parse(["flip", "rotation=0.1"])
        Augment(flip=True, crop=0, rotation=0.1, zoom=0.0)
        """
        full = [word if "=" in word else f"{word}=true" for word in words]
        return cls().with_settings(**parse(cls(), full))

    def move(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Crop and flip; pixels are (n, height, width, 3)."""
        if self.crop:
            pixels = self._cropped(pixels, generator)
        if self.flip:
            n = len(pixels)
            is_flipped = torch.rand(n, generator=generator, device=pixels.device) < 0.5
            pixels = torch.where(is_flipped[:, None, None, None], pixels.flip(2), pixels)
        return pixels

    def _cropped(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        n, height, width, _ = pixels.shape
        device, pad = pixels.device, self.crop
        padded = functional.pad(pixels, (0, 0, pad, pad, pad, pad))
        shifts = torch.randint(2 * pad + 1, (2, n, 1), generator=generator, device=device)
        rows = shifts[0] + torch.arange(height, device=device)
        columns = shifts[1] + torch.arange(width, device=device)
        images = torch.arange(n, device=device)
        return padded[images[:, None, None], rows[:, :, None], columns[:, None, :]]

    def warp(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Rotate and zoom; images are (n, 3, height, width)."""
        if not (self.rotation or self.zoom):
            return images
        shape = (2, len(images))
        either_way = 2 * torch.rand(shape, generator=generator, device=images.device) - 1
        turns, zooms = either_way[0] * self.rotation, 1 + either_way[1] * self.zoom
        return sample_warped(images, turns, zooms)


def sample_warped(images: Tensor, turns: Tensor, zooms: Tensor) -> Tensor:
    """Rotate and zoom images about their centres.

    `turns` are fractions of a turn, counter-clockwise; `zooms` above 1 make the content smaller.
    """
    angles = turns * (2 * math.pi)
    cos, sin, none = zooms * angles.cos(), zooms * angles.sin(), torch.zeros_like(angles)
    # The matrix maps each pixel (x, y) of the result to its place in the source:
    # zoom * (x cos - y sin, x sin + y cos). y points down, hence counter-clockwise.
    to_source = torch.stack([cos, -sin, none, sin, cos, none], dim=1).reshape(-1, 2, 3)
    grid = functional.affine_grid(to_source, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
