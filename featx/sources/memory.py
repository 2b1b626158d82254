"""A source made of what a Python program has in its hands: arrays, PIL images, bytes, paths."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from featx.errors import ImageError, SourceError, UsageError, nearest
from featx.images import decode, in_memory
from featx.sources.base import ArraySource, Source
from featx.sources.folder import read_file
from featx.sources.labels import clean, label_text, number_labels

__all__ = ["ImageLike", "MemorySource", "check_stack", "from_arrays"]

ImageLike: TypeAlias = "Image.Image | np.ndarray | bytes | str | os.PathLike[str]"
"""One image: a PIL image, pixels (H, W[, 3]), an encoded file, or the path of one."""

_Item: TypeAlias = "np.ndarray | bytes | Path"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class MemorySource(Source):
    """Images of different sizes and kinds.

    Pickling sends the images themselves, but of paths the paths only.
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
    images : ndarray, shape (N, H, W, 3) or (N, H, W), or sequence of length N
        Pixels; or a mixture of PIL images, arrays (H, W, 3) or (H, W), encoded
        files (bytes) and paths. Arrays of uint8 are not copied; others are treated as files with
        such values: bool, uint16 and int32, and floats within 0 to 1.
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
    if isinstance(images, np.ndarray):
        check_stack(images)
        images = images if images.dtype == np.uint8 else list(images)
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
    if isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image)):
        raise UsageError(
            f"images is one {type(images).__name__}: of one image give the list [image]"
        )
    is_list = isinstance(images, Sequence)
    if not is_list and not isinstance(images, np.ndarray):
        raise UsageError(
            f"images is {_a(images)}: give a numpy array, or a list of images; of a tensor, "
            "tensor.cpu().numpy()"
        )


def _a(value: Any) -> str:
    return f"of type {type(value).__module__}.{type(value).__qualname__}"


def check_stack(images: np.ndarray) -> None:
    """Refuse one array of all images that has not their shape, above all one image alone."""
    if images.dtype == object:
        raise UsageError(
            "images is object, not of numbers: give a list of the images, list(images)"
        )
    _check_shape(images, "images", "N, ")
    if images.ndim == 3 and _has_colours_last(images.shape[1:]):
        raise UsageError(
            f"images has shape {images.shape}: one RGB image is given as [image], and grey images "
            f"{images.shape[2]} pixels wide as images[..., None]"
        )
    if images.ndim == 3 and images.shape[0] == 3:
        warnings.warn(
            f"images of shape {images.shape} are taken as 3 grey images; one image whose colours "
            "come first is given as np.moveaxis(images, 0, 2)[None]",
            stacklevel=2,
        )


def _has_colours_last(shape: tuple[int, ...]) -> bool:
    """Whether a grey image of this shape would rather be a row of grey, RGB or RGBA pixels."""
    return shape[1] in (1, 3) or (shape[1] == 4 and shape[0] >= 8)


def _pixels(images: np.ndarray) -> np.ndarray:
    """See an array (N, H, W) as (N, H, W, 3), without a copy."""
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.ndim == 3:
        return np.broadcast_to(images[..., np.newaxis], (*images.shape, 3))
    return images


def _check_shape(pixels: np.ndarray, what: str, n: str = "") -> None:
    n_axes = pixels.ndim - bool(n)
    if n_axes == 2 or (n_axes == 3 and pixels.shape[-1] in (1, 3)):
        return
    first, last = pixels.ndim - 3, pixels.ndim - 1
    mend = ": of one image give the list [image]" if n and pixels.ndim == 2 else ""
    if n_axes == 3 and pixels.shape[last] == 4:
        mend = ": drop the transparency with images[..., :3]"
    elif n_axes == 3 and pixels.shape[first] == 3:
        mend = f": put the colours last with np.moveaxis(images, {first}, {last})"
    raise UsageError(f"{what} has shape {pixels.shape}, not ({n}H, W, 3) or ({n}H, W){mend}")


def _item(image: Any, row: int) -> _Item:
    what = f"images[{row}]"
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, (str, os.PathLike)):
        return Path(os.path.abspath(image))  # noqa: PTH100 - resolve() would follow the links
    if isinstance(image, Image.Image):
        try:
            return in_memory(image)
        except ImageError as error:
            raise UsageError(f"{what} cannot be read: {error}") from error
    if isinstance(image, np.ndarray):
        return _one_array(image, what)
    raise UsageError(
        f"{what} is {_a(image)}: give a PIL image, a uint8 array, the bytes of a file or a path"
    )


def _one_array(pixels: np.ndarray, what: str) -> np.ndarray:
    _check_shape(pixels, what)
    if pixels.ndim == 2 and _has_colours_last(pixels.shape):
        raise UsageError(
            f"{what} has shape {pixels.shape}, a row of an RGB image? Give one image as [image], "
            f"and a grey image {pixels.shape[1]} pixels wide as image[..., None]"
        )
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    if pixels.dtype == np.uint8:
        return pixels
    try:
        decode(pixels)
    except ImageError as error:
        raise UsageError(f"{what} is {error}: {_mend(pixels)}") from error
    return pixels


def _mend(pixels: np.ndarray) -> str:
    if pixels.dtype.kind != "f":
        return "convert it to uint8 from 0 to 255, or to uint16 from 0 to 65,535"
    return (
        "of values from 0 to 255 make images.round().clip(0, 255).astype('uint8'); undo a "
        "normalisation first, each network has its own"
    )


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
