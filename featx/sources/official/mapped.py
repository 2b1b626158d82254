"""Images of one size that lie uncompressed in files: mapped, never copied."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featx.errors import SourceError
from featx.sources.base import Source

__all__ = ["Block", "MappedSource"]


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
