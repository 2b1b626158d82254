"""A source made of what a Python program has in its hands: arrays, PIL images, bytes, paths."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from featx.errors import SourceError, UsageError, nearest
from featx.sources.base import ArraySource, Source
from featx.sources.folder import read_file
from featx.sources.labels import clean, label_text, number_labels

__all__ = ["ImageLike", "MemorySource", "from_arrays"]

ImageLike: TypeAlias = "Image.Image | np.ndarray | bytes | str | os.PathLike[str]"
"""One image: a PIL image, uint8 pixels (H, W[, 3]), an encoded file, or the path of one."""

_Item: TypeAlias = "np.ndarray | bytes | Path"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class MemorySource(Source):
    """Images of different sizes and kinds.

    Pickling sends the images themselves, but of paths the paths only.

    Parameters
    ----------
    items : tuple of length N
        uint8 pixels (H, W) or (H, W, 3), encoded files, or paths of files.
    """

    per_row = (*Source.per_row, "items")

    items: tuple[_Item, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.items) != len(self.paths):
            raise ValueError("items must be one for each path")

    def read(self, row: int) -> bytes | np.ndarray:
        """Give the bytes or a copy of the pixels of one image; see `Source.read`."""
        item = self.items[row]
        if isinstance(item, np.ndarray):
            return item.copy()
        if isinstance(item, bytes):
            return item
        return read_file(item)


def from_arrays(
    images: np.ndarray | Sequence[ImageLike],
    labels: np.ndarray | Sequence[float | str | None] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    name: str = "memory",
    split: str = "all",
) -> Source:
    """Make a source of images that a program has in memory, or the paths of.

    Parameters
    ----------
    images : ndarray of uint8, shape (N, H, W, 3) or (N, H, W), or sequence of length N
        Pixels; or a mixture of PIL images, uint8 arrays (H, W, 3) or (H, W), encoded
        files (bytes) and paths. Arrays are not copied.
    labels : sequence of int, float, bool or str, length N, optional
        With `class_names`, numbers index them; otherwise each different value is a class, in
        natural order. -1, None, NaN and ``""`` are unknown, as all are if not given.
    class_names : sequence of str, optional
        All classes, in the order of their numbers.
    name : str, default="memory"
        What the data set is called.
    split : str, default="all"
        What the split is called; also the first part of paths such as ``"all/00017"``.

    Returns
    -------
    Source
        `ArraySource` of one array, `MemorySource` of a sequence.

    Raises
    ------
    UsageError
        If images or labels are of another kind or length, with what to do.

    Examples
    --------
    >>> source = from_arrays(np.zeros((2, 8, 8, 3), dtype=np.uint8), ["cat", "dog"])
    >>> source.class_names, source.labels
    (('cat', 'dog'), array([0, 1]))
    """
    _check_type(images)
    n_images = len(images)
    names, numbers = _label(labels, class_names, n_images)
    common: dict[str, Any] = {"name": name, "split": split, "class_names": names, "labels": numbers}
    paths = [f"{split}/{row:05d}" for row in range(n_images)]
    if isinstance(images, np.ndarray):
        pixels = _pixels(images)
        return ArraySource(pixels=pixels, rows=np.arange(n_images), paths=tuple(paths), **common)
    items = tuple(_item(image, row) for row, image in enumerate(images))
    _check_different(items)
    for row, image in enumerate(images):
        if isinstance(image, (str, os.PathLike)):
            paths[row] = Path(image).as_posix()  # as given; `items` has it absolute
    return MemorySource(items=items, paths=tuple(paths), **common)


def _check_type(images: Any) -> None:
    is_list = isinstance(images, Sequence) and not isinstance(images, (str, bytes))
    if not is_list and not isinstance(images, np.ndarray):
        raise UsageError(
            f"images is {_a(images)}: give a numpy array, or a list of images; of a tensor, "
            "tensor.cpu().numpy()"
        )


def _a(value: Any) -> str:
    return f"of type {type(value).__module__}.{type(value).__qualname__}"


def _pixels(images: np.ndarray) -> np.ndarray:
    """Check one array of all images; (N, H, W) is seen as (N, H, W, 3), without a copy."""
    _check_kind(images, "images")
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.ndim == 3:
        return np.broadcast_to(images[..., np.newaxis], (*images.shape, 3))
    if images.ndim != 4 or images.shape[3] != 3:
        raise UsageError(
            f"images has shape {images.shape}, not (N, H, W, 3) or (N, H, W)" + _mend(images)
        )
    return images


def _mend(images: np.ndarray) -> str:
    first, last = images.ndim - 3, images.ndim - 1
    if images.ndim < 3 or images.ndim > 4:
        return ""
    if images.shape[last] == 4:
        return ": drop the transparency with images[..., :3]"
    if images.shape[first] == 3:
        return f": put the colours last with np.moveaxis(images, {first}, {last})"
    return ""


def _check_kind(pixels: np.ndarray, what: str) -> None:
    if pixels.dtype == np.uint8:
        return
    mend = "convert it to uint8 from 0 to 255"
    if np.issubdtype(pixels.dtype, np.floating) and pixels.size:
        is_unit = pixels.min() >= 0 and pixels.max() <= 1
        factor = "of 0 to 1, (images * 255)" if is_unit else "of 0 to 255, images"
        mend = f"{factor}.round().clip(0, 255).astype('uint8')"
        mend += "; undo a normalisation first, each network has its own"
    elif pixels.dtype == object:
        mend = "give a list of the images, list(images)"
    elif pixels.dtype == np.uint16:
        mend = "(images / 257).round().astype('uint8')"
    raise UsageError(f"{what} is {pixels.dtype}, and featx takes uint8 only: {mend}")


def _item(image: Any, row: int) -> _Item:
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, (str, os.PathLike)):
        return Path(os.path.abspath(image))  # noqa: PTH100 - resolve() would follow the links
    if isinstance(image, Image.Image):
        return _from_pil(image, row)
    if not isinstance(image, np.ndarray):
        raise UsageError(
            f"images[{row}] is {_a(image)}: give a PIL image, a uint8 array, the bytes of a file "
            "or a path"
        )
    return _one_array(image, f"images[{row}]")


def _one_array(pixels: np.ndarray, what: str) -> np.ndarray:
    _check_kind(pixels, what)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim != 2 and (pixels.ndim != 3 or pixels.shape[2] != 3):
        raise UsageError(f"{what} has shape {pixels.shape}, not (H, W, 3) or (H, W){_mend(pixels)}")
    return pixels


def _from_pil(image: Image.Image, row: int) -> _Item:
    """Take upright pixels; of modes other than RGB and grey, a file that holds them exactly."""
    try:
        upright = _upright(image)
        if upright.mode in ("L", "RGB"):
            return np.array(upright)
        stream = io.BytesIO()
        (upright if upright.mode in _STORED else upright.convert("RGBA")).save(stream, "TIFF")
        return stream.getvalue()
    except (OSError, ValueError, SyntaxError) as error:
        raise UsageError(f"images[{row}] cannot be read: {' '.join(str(error).split())}") from error


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF data that cannot be read count as none, as in `decode`
        return image


_STORED = frozenset({"1", "P", "LA", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"})


def _check_different(items: Sequence[_Item]) -> None:
    first: dict[Path, int] = {}
    for row, item in enumerate(items):
        if isinstance(item, Path) and first.setdefault(item, row) != row:
            raise UsageError(
                f"images[{row}] is the same file as images[{first[item]}] ({item}): give it once"
            )


def _label(
    labels: Any, class_names: Sequence[str] | None, n_images: int
) -> tuple[tuple[str, ...], np.ndarray]:
    names = None if class_names is None else tuple(clean(str(name)) for name in class_names)
    if names is not None and len(set(names)) != len(names):
        raise UsageError("class_names has a name twice: give each class a name of its own")
    if labels is None:
        return names or (), np.full(n_images, -1, dtype=np.int64)
    values = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
    if len(values) != n_images:
        raise UsageError(f"labels has {len(values):,} entries for {n_images:,} images")
    texts = _texts(values)
    if names is not None and not any(isinstance(value, str) for value in values):
        return names, _indices(values, texts, len(names))
    try:
        found, numbers = number_labels({"": texts}, "labels")
    except SourceError as error:
        raise UsageError(str(error)) from error
    return (found, numbers[""]) if names is None else (names, _among(names, found)[numbers[""]])


def _texts(values: list[Any]) -> list[str]:
    texts = [label_text(value) for value in values]
    known = [isinstance(value, str) for value, text in zip(values, texts, strict=True) if text]
    for row, (value, text) in enumerate(zip(values, texts, strict=True)):
        if text is None or (text and isinstance(value, str) != known[0]):
            raise UsageError(f"labels[{row}] is {value!r}: give numbers or texts, not a mixture")
    return [text or "" for text in texts]


def _indices(values: list[Any], texts: list[str], n_classes: int) -> np.ndarray:
    """Take numbers as places in class_names."""
    numbers = [float(value) if text else -1.0 for value, text in zip(values, texts, strict=True)]
    for row, number in enumerate(numbers):
        if not (number.is_integer() and -1 <= number < n_classes):
            raise UsageError(
                f"labels[{row}] is {values[row]!r}, and must be a whole number within -1 to "
                f"{n_classes - 1}, as class_names; -1 is unknown"
            )
    return np.array(numbers, dtype=np.int64)


def _among(names: tuple[str, ...], found: tuple[str, ...]) -> np.ndarray:
    """Give the place in class_names of each name that was found, and -1 at the end."""
    strange = next((name for name in found if name not in names), None)
    if strange is not None:
        close = nearest(strange, names)
        hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(names[:12])}"
        raise UsageError(f"the label {strange!r} is none of class_names: {hint}")
    return np.array([*map(names.index, found), -1], dtype=np.int64)
