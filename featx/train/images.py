"""Images of a source, decoded once to uint8, and what evaluation wants to know of them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.depth import describe_dim
from featx.engines.loader import Loading, iter_pixels, worker_deaths_named
from featx.errors import ProtocolError
from featx.preprocess import Preprocessing
from featx.progress import Reporter
from featx.sources import Source
from featx.sources.base import ArraySource
from featx.train.batches import PixelSet

__all__ = ["Decoded", "Decoder", "SourceRows"]

_BATCH = 64
_DONE, _FAILED = 1, 2


@dataclass(frozen=True, eq=False)
class Decoded:
    """Pixels of some rows of a source."""

    pixels: NDArray[np.uint8]
    place: NDArray[np.int64]
    failed: dict[int, str]

    def take(self, labels: NDArray[np.int64], rows: NDArray[np.int64]) -> PixelSet:
        """Give some rows of the source with their labels."""
        return PixelSet(self.pixels, np.asarray(labels)[rows], self.place[rows])


@dataclass(frozen=True)
class Decoder:
    """Decodes, resizes and crops, with bounded memory."""

    preprocessing: Preprocessing
    workers: int
    most_bytes: int
    reporter: Reporter

    def decode(
        self, source: Source, digests: NDArray[np.uint8], rows: NDArray[np.int64] | None = None
    ) -> Decoded:
        """Decode rows of a source."""
        rows = np.arange(len(source)) if rows is None else rows
        part = source if len(rows) == len(source) else source.take(rows)
        side = self.preprocessing.crop_px
        pixels = self._array((len(rows), side, side, 3))
        failed: dict[int, str] = {}
        wanted = digests[rows]
        loading = Loading(part, self.preprocessing, _BATCH)
        numbers = range(-(-len(rows) // _BATCH))
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

    def _array(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
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
        self.reporter.say(f"{size}: they lie in a scratch file in {folder}")
        with tempfile.TemporaryFile(dir=folder) as stream:
            return np.memmap(stream, np.uint8, "w+", shape=shape)


def is_readable(source: Source) -> bool:
    """Whether every image is known to be readable without a look."""
    return isinstance(source, ArraySource)


@dataclass(frozen=True, eq=False)
class SourceRows:
    """A split as evaluation sees a cache: rows, labels, digests, without features."""

    source: Source
    digests: NDArray[np.uint8]
    failed: Sequence[int]
    fingerprint: str
    network: str

    @property
    def X(self) -> Any:  # noqa: N802
        """No features: a network sees the pixels."""
        raise NotImplementedError("images that are trained on have no features")

    @property
    def y(self) -> NDArray[np.int64]:
        """Labels, (N,), -1 where unknown."""
        return self.source.labels

    @property
    def status(self) -> NDArray[np.uint8]:
        """1 where the row can be used, (N,)."""
        status = np.full(len(self.source), _DONE, np.uint8)
        status[list(self.failed)] = _FAILED
        return status

    @property
    def class_names(self) -> list[str]:
        """One name a class."""
        return list(self.source.class_names)

    @property
    def paths(self) -> Sequence[str]:
        """One path an image, (N,)."""
        return self.source.paths

    @property
    def image_digests(self) -> NDArray[np.uint8]:
        """SHA-256 of each image's bytes, (N, 32)."""
        return self.digests

    @property
    def meta(self) -> dict[str, Any]:
        """Names, as a cache has them."""
        names = {"data": self.source.name, "split": self.source.split}
        return {**names, "backbone": self.network, "layer": "trained"}

    @property
    def path(self) -> Path:
        """Where the images are."""
        return Path(self.source.place or self.source.name)
