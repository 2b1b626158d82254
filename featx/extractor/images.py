"""What scikit-learn hands over as ``X``, made a source of images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from featx.errors import UsageError
from featx.sources import Source, from_arrays
from featx.sources.memory import check_stack

__all__ = ["as_source", "check_images"]

_KINDS = (
    "give a list of paths, PIL images, arrays or encoded files (bytes), or one array "
    "of shape (n, H, W, 3) or (n, H, W)"
)
_ONE = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image)


def check_images(X: Any) -> np.ndarray | list[Any]:
    """Bring ``X`` into one of two forms, without reading an image."""
    if hasattr(X, "to_numpy"):  # pandas, polars
        X = X.to_numpy()
    if isinstance(X, _ONE):
        raise UsageError(f"X is one {type(X).__name__}: of one image give the list [image]")
    if isinstance(X, np.ndarray):
        X = _from_array(X)
    elif not isinstance(X, Sequence):
        raise UsageError(f"X is a {type(X).__name__}: {_KINDS}")
    if len(X) == 0:
        raise UsageError("X holds no images: at least one is needed")
    return X if isinstance(X, np.ndarray) else list(X)


def _from_array(X: np.ndarray) -> np.ndarray | list[Any]:
    if X.dtype.kind == "S":
        raise UsageError(
            "X is an array of fixed-length bytes, which lose zeros at their end: give a list"
        )
    if X.dtype.kind not in "OU":
        check_stack(X)
        return X
    if X.ndim == 2 and X.shape[1] == 1:
        X = X[:, 0]
    if X.ndim != 1:
        raise UsageError(f"X is a table of shape {X.shape}: give its one column of images")
    return list(X.tolist()) if X.dtype.kind == "U" else list(X)


def as_source(images: np.ndarray | list[Any]) -> tuple[Source, np.ndarray]:
    """Make a source in which every file stands once."""
    if isinstance(images, np.ndarray):
        return from_arrays(images), np.arange(len(images))
    first: dict[Any, int] = {}
    kept: list[Any] = []
    rows = np.empty(len(images), np.int64)
    for i, image in enumerate(images):
        is_path = isinstance(image, (str, os.PathLike))
        key = os.path.abspath(image) if is_path else i  # noqa: PTH100 - links are not followed
        rows[i] = first.setdefault(key, len(kept))
        if rows[i] == len(kept):
            kept.append(image)
    return from_arrays(kept), rows
