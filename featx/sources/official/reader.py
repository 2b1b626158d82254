"""The official files of CIFAR-10, CIFAR-100 and STL-10; pixels are mapped, not loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featx.errors import SourceError
from featx.sources.base import ArraySource, Source
from featx.sources.official.formats import Format
from featx.sources.official.plain_pickle import PickledArray, read_plain_pickle
from featx.sources.splits import in_order

__all__ = [
    "Block",
    "MappedSource",
    "read_official",
]


@dataclass(frozen=True)
class Block:
    """Images of one size at equal distances in a file."""

    file: str
    offset: int
    stride: int
    n_images: int


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class MappedSource(Source):
    """A source of pixels that are mapped from files as they are.

    Worker processes share one copy of the pixels: pickling sends the files' names.
    """

    per_row = (*Source.per_row, "rows")

    blocks: tuple[Block, ...]
    stored_shape: tuple[int, int, int]
    axes: tuple[int, int, int]
    rows: np.ndarray
    _maps: tuple[np.ndarray, ...] = field(init=False)
    _ends: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows.shape != self.labels.shape:
            raise ValueError("rows must give one image for each label")
        self._map()

    def _map(self) -> None:
        maps = tuple(_mapped(block, self.stored_shape) for block in self.blocks)
        ends = np.cumsum([block.n_images for block in self.blocks])
        self.__dict__.update(_maps=maps, _ends=ends)

    def read(self, row: int) -> np.ndarray:
        """Copy the pixels of one image; see `Source.read`."""
        image = int(self.rows[row])
        block = int(np.searchsorted(self._ends, image, side="right"))
        stored = self._maps[block][image - int(self._ends[block])]  # counted from the block's end
        return np.array(stored.transpose(self.axes), order="C")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name[0] != "_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()


def _mapped(block: Block, shape: tuple[int, int, int]) -> np.ndarray:
    """Map the images of one block: uint8, read-only, shape (n_images, *shape)."""
    _, height, width = shape
    strides = (block.stride, height * width, width, 1)
    try:
        whole = np.memmap(block.file, np.uint8, mode="r")
        return np.ndarray((block.n_images, *shape), np.uint8, whole, block.offset, strides)
    except (OSError, ValueError, TypeError) as error:  # missing, empty, too short
        raise SourceError(
            f"the pixels in {Path(block.file).name} cannot be read: "
            f"open the data set again ({block.file})"
        ) from error


_CIFAR_SHAPE, _CIFAR_AXES = (3, 32, 32), (1, 2, 0)
_STL_SHAPE, _STL_AXES = (3, 96, 96), (2, 1, 0)  # stored column by column
_CIFAR_BYTES, _STL_BYTES = 3 * 32 * 32, 3 * 96 * 96


@dataclass(frozen=True)
class _Part:
    """The images of one file: labels int64 (n,), and where their pixels lie in it.

    From a pickle come `pixels` too, uint8 (n, 3, 32, 32): they may not lie in the file as they are.
    """

    labels: np.ndarray
    block: Block | None
    pixels: np.ndarray | None = None


def read_official(known: Format, folder: Path, *, name: str) -> dict[str, Source]:
    """Read official files without comparing their digests."""
    try:
        class_names = _class_names(known, folder)
        parts = {split: _read_split(known, folder, split) for split in known.splits}
    except OSError as error:
        raise SourceError(f"cannot read {folder}: {error.strerror or error}") from error
    for split, read in parts.items():
        highest = max((int(part.labels.max(initial=-1)) for part in read), default=-1)
        if highest >= len(class_names):
            raise SourceError(
                f"{folder / known.names_file} names {len(class_names)} classes, but {split} has "
                f"the label {highest}: unpack the archive of {known.title} again"
            )
    return in_order(
        {
            split: _source(known, (name, split), class_names, read)
            for split, read in parts.items()
            if read
        }
    )


def _source(
    known: Format, name_and_split: tuple[str, str], class_names: tuple[str, ...], parts: list[_Part]
) -> Source:
    labels = np.concatenate([part.labels for part in parts])
    name, split = name_and_split
    common: dict[str, Any] = {
        "name": name,
        "split": split,
        "class_names": class_names,
        "labels": labels,
        "paths": tuple(f"{split}/{row:05d}" for row in range(len(labels))),
        "rows": np.arange(len(labels)),
    }
    blocks = tuple(part.block for part in parts if part.block is not None)
    if len(blocks) < len(parts):  # pickled by another program, in pieces: kept in memory
        stored = np.concatenate([part.pixels for part in parts if part.pixels is not None])
        pixels = np.ascontiguousarray(stored.transpose(0, 2, 3, 1))
        return ArraySource(pixels=pixels, **common)
    shape, axes = (_STL_SHAPE, _STL_AXES) if known.kind == "stl" else (_CIFAR_SHAPE, _CIFAR_AXES)
    return MappedSource(blocks=blocks, stored_shape=shape, axes=axes, **common)


def _class_names(known: Format, folder: Path) -> tuple[str, ...]:
    path = folder / known.names_file
    if known.kind != "pickle":
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return tuple(line.strip() for line in lines if line.strip())
    names = _first(_read_dict(path), "fine_label_names", "label_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SourceError(f"{path} has no list of the names of the classes")
    return tuple(names)


def _read_split(known: Format, folder: Path, split: str) -> list[_Part]:
    files = [folder / file for file in known.splits[split]]
    if known.kind == "stl":
        return _read_stl(*files)
    if known.kind == "pickle":
        return [_read_batch(file) for file in files]
    n_labels = 2 if known.name == "cifar100" else 1  # coarse and fine, or one
    return [_read_records(file, n_labels) for file in files]


def _read_batch(path: Path) -> _Part:
    """Read one of the pickles of CIFAR."""
    entry = _read_dict(path)
    data, labels = _first(entry, "data"), _labels(_first(entry, "labels", "fine_labels"))
    is_good = isinstance(data, PickledArray) and data.values.dtype == np.uint8
    if not is_good or labels is None or data.values.shape != (len(labels), _CIFAR_BYTES):
        raise SourceError(
            f"{path} is no batch of CIFAR: 'data' must be a uint8 array (images, {_CIFAR_BYTES}), "
            "'labels' or 'fine_labels' a number for each image"
        )
    block = None
    if data.start is not None:
        block = Block(str(path), data.start, _CIFAR_BYTES, len(labels))
    return _Part(labels, block, data.values.reshape(-1, *_CIFAR_SHAPE))


def _read_dict(path: Path) -> dict[Any, Any]:
    value = read_plain_pickle(path.read_bytes(), str(path))
    if not isinstance(value, dict):
        raise SourceError(f"{path} holds no dict as the official file does")
    return value


def _first(entry: dict[Any, Any], *names: str) -> Any:
    return next((entry[name] for name in names if name in entry), None)


def _labels(values: Any) -> np.ndarray | None:
    if isinstance(values, PickledArray) and values.values.ndim == 1:
        values = values.values.tolist()
    is_good = isinstance(values, list) and all(
        isinstance(value, int) and 0 <= value < 1000 for value in values
    )
    return np.array(values, dtype=np.int64) if is_good else None


def _read_records(path: Path, n_labels: int) -> _Part:
    """Read a binary file of CIFAR; each record has labels, of which the last counts, and pixels."""
    n_images = _n_images(path, n_labels + _CIFAR_BYTES)
    whole = np.memmap(path, np.uint8, mode="r")
    labels = np.array(whole[n_labels - 1 :: n_labels + _CIFAR_BYTES], dtype=np.int64)
    return _Part(labels, Block(str(path), n_labels, n_labels + _CIFAR_BYTES, n_images))


def _read_stl(images: Path, labels: Path | None = None) -> list[_Part]:
    """Read one split of STL-10; empty where the images without labels are left out."""
    if labels is None and not (images.is_file() and images.stat().st_size):
        return []
    n_images = _n_images(images, _STL_BYTES)
    block = Block(str(images), 0, _STL_BYTES, n_images)
    if labels is None:
        return [_Part(np.full(n_images, -1, dtype=np.int64), block)]
    numbers = np.fromfile(labels, np.uint8).astype(np.int64) - 1  # the file counts from 1
    if len(numbers) != n_images or numbers.min() < 0:
        raise SourceError(
            f"{labels} must have a number from 1 for each of the {n_images:,} images of "
            f"{images.name}: unpack the archive again"
        )
    return [_Part(numbers, block)]


def _n_images(path: Path, n_bytes_each: int) -> int:
    n_bytes = path.stat().st_size
    if n_bytes == 0 or n_bytes % n_bytes_each:
        raise SourceError(
            f"{path} has {n_bytes:,} bytes, no multiple of {n_bytes_each:,}: "
            "unpack the archive again"
        )
    return n_bytes // n_bytes_each
