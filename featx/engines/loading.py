"""Images decoded and preprocessed into uint8 batches of one shape, in chunks or whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from featx.errors import ImageError
from featx.images import LARGEST
from featx.preprocess import Preprocessing
from featx.sources import Source

__all__ = ["Chunk", "Loading", "PixelBatch", "Place"]


@dataclass(frozen=True)
class PixelBatch:
    """Pixels of consecutive images, padded to the full batch."""

    start: int
    n_images: int
    pixels: torch.Tensor
    failed: dict[int, str]
    digests: np.ndarray
    seconds: float
    is_raw: bool = False
    deep: Sequence[int] = ()

    def pin_memory(self) -> PixelBatch:
        """Copy into page-locked memory, from which a GPU fetches beside its work."""
        return replace(self, pixels=self.pixels.pin_memory())


@dataclass(frozen=True)
class Place:
    """Where the pixels of some images go: resized and cropped, or as decoded."""

    cropped: NDArray[np.uint8]
    raw: NDArray[np.uint8] | None

    @classmethod
    def of(cls, arrays: Sequence[NDArray[np.uint8]]) -> Place:
        """Take one array for each of `Loading.shapes`."""
        return cls(arrays[0], arrays[1] if len(arrays) > 1 else None)

    def part(self, rows: slice) -> Place:
        """Give the place of some of the images."""
        return Place(self.cropped[rows], None if self.raw is None else self.raw[rows])


@dataclass
class Chunk:
    """What is known of consecutive images; their pixels lie in their place."""

    digests: NDArray[np.uint8]
    is_raw: bool
    failed: dict[int, str] = field(default_factory=dict)
    deep: list[int] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Loading:
    """What is decoded, and how."""

    source: Source
    preprocessing: Preprocessing
    batch_size: int
    raw_size: tuple[int, int] | None = None

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of a batch that is resized and cropped, and of one as decoded if there are any."""
        sides = [(self.preprocessing.crop_px,) * 2]
        sides += [self.raw_size[::-1]] if self.raw_size else []
        return [(self.batch_size, *side, 3) for side in sides]

    def rows(self, batch: int) -> range:
        """Rows of a batch, without padding."""
        start = batch * self.batch_size
        return range(start, min(start + self.batch_size, len(self.source)))

    def load(self, batch: int) -> PixelBatch:
        """Decode and preprocess a batch in this process."""
        place = Place.of([np.empty(shape, np.uint8) for shape in self.shapes])
        return self.joined(batch, place, [self.fill(self.rows(batch), place)], self.batch_size)

    def fill(
        self, rows: range, place: Place, note: Callable[[int], object] = lambda row: None
    ) -> Chunk:
        """Decode and preprocess images, each noted before; the rest of their place is black."""
        started = time.perf_counter()
        chunk = Chunk(np.zeros((len(rows), 32), np.uint8), place.raw is not None)
        for i, row in enumerate(rows):
            note(row)
            image = self._image(i, row, chunk)
            if chunk.is_raw and image is not None and image.size != self.raw_size:
                self.crop(place.part(slice(i)))
                chunk.is_raw = False
            if image is None:
                _pixels(place, chunk.is_raw)[i] = 0
            elif chunk.is_raw:
                _pixels(place, True)[i] = np.asarray(image)
            else:
                place.cropped[i] = self.preprocessing.pixels(image)
        _pixels(place, chunk.is_raw)[len(rows) :] = 0
        chunk.seconds = time.perf_counter() - started
        return chunk

    def _image(self, i: int, row: int, chunk: Chunk) -> Image.Image | None:
        """Read, hash and decode; None where that cannot be decoded."""
        data, digest = self.source.fetch(row)
        chunk.digests[i] = np.frombuffer(digest, np.uint8)
        try:
            if isinstance(data, ImageError):
                raise data
            image = self.source.decoded(row, data, self.preprocessing.bits)
        except ImageError as error:
            chunk.failed[row] = str(error)
            return None
        if LARGEST in image.info:
            chunk.deep.append(image.info[LARGEST])
        return image

    def crop(self, place: Place) -> None:
        """Resize and crop what lies there as decoded: a black image gives a black one."""
        for raw, cropped in zip(_pixels(place, True), place.cropped, strict=True):
            cropped[:] = self.preprocessing.pixels(Image.fromarray(raw))

    def joined(self, batch: int, place: Place, chunks: Sequence[Chunk], each: int) -> PixelBatch:
        """Make a batch of chunks of `each` images; all are resized where one is."""
        is_raw = all(chunk.is_raw for chunk in chunks)
        for k, chunk in enumerate(chunks):
            if chunk.is_raw and not is_raw:
                self.crop(place.part(slice(k * each, (k + 1) * each)))
        rows = self.rows(batch)
        return PixelBatch(
            start=rows.start,
            n_images=len(rows),
            pixels=torch.from_numpy(_pixels(place, is_raw)),
            failed={row: why for chunk in chunks for row, why in chunk.failed.items()},
            digests=np.concatenate([chunk.digests for chunk in chunks]),
            seconds=sum(chunk.seconds for chunk in chunks),
            is_raw=is_raw,
            deep=[value for chunk in chunks for value in chunk.deep],
        )


def _pixels(place: Place, is_raw: bool) -> NDArray[np.uint8]:
    if not is_raw:
        return place.cropped
    assert place.raw is not None  # noqa: S101
    return place.raw
