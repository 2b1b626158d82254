"""What may stand in the brackets of a feature matrix."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

__all__ = ["Index", "split_index"]

Index = slice | np.ndarray


def split_index(key: Any, shape: tuple[int, int]) -> tuple[Index, Index | None]:
    """Read an index of a matrix as NumPy does."""
    if isinstance(key, np.ndarray) and key.dtype == bool and key.shape == shape:
        rows, columns = np.nonzero(key)
        return rows, columns
    parts = list(key) if isinstance(key, tuple) else [key]
    dots = [i for i, part in enumerate(parts) if part is Ellipsis]
    if len(dots) > 1 or len(parts) - len(dots) > 2:
        raise _refused(key)
    for i in dots:
        parts[i : i + 1] = [slice(None)] * (3 - len(parts))
    indices = [_index(part, n) for part, n in zip(parts, shape, strict=False)]
    is_whole = len(parts) < 2 or (isinstance(parts[1], slice) and parts[1] == slice(None))
    chosen = indices[0] if indices else slice(None)
    return chosen, None if is_whole else indices[1]


def _index(part: Any, n: int) -> Index:
    if isinstance(part, slice):
        return part
    if hasattr(part, "__index__") and getattr(part, "ndim", 0) == 0:
        if isinstance(part, bool | np.bool_):
            raise _refused(part)
        return np.asarray(operator.index(part))
    is_listlike = isinstance(part, list | range | np.ndarray) or hasattr(part, "__array__")
    numbers = np.asarray(part) if is_listlike else np.empty((), object)
    if numbers.dtype == bool and numbers.ndim == 1:
        if len(numbers) != n:
            raise IndexError(f"a mask of {len(numbers)} values does not fit {n}")
        return np.flatnonzero(numbers)
    if numbers.ndim == 0 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise _refused(part)
    return numbers.astype(np.int64)


def _refused(key: Any) -> IndexError:
    return IndexError(
        "features are indexed by an int, a slice, an array of ints or a bool mask, for rows and "
        f"for columns, not by {key!r:.60}; np.asarray(features) takes any index"
    )
