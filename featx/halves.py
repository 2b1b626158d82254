"""float16 in NumPy, where converting a number takes five times as long as it needs to."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["convert", "is_finite"]

_PIECE: Final = 1 << 16
_INFINITY: Final = 0x7C00
_SIGN: Final = 0x8000
# Of a float16 behind the sign, moved to where a float32 has exponent and fraction; what the shift
# made of the sign, but for the sign itself, goes away.
_SHIFT: Final = 13
_KEPT: Final = np.uint32(0x8FFFE000).view(np.int32)
# Exponents are counted from 15 there, and from 127 here. A product, so that subnormal numbers
# come out right.
_REBASED: Final = np.float32(2.0**112)


def convert(block: NDArray[Any], out: NDArray[Any]) -> None:
    """Copy rows into others of a type that holds all their values; NumPy's result to the bit."""
    is_quick = block.dtype == np.float16 and out.dtype in (np.float32, np.float64)
    if not (is_quick and block.dtype.isnative and out.dtype.isnative):
        out[...] = block
        return
    height = max(1, _PIECE // max(1, block.shape[1]))
    buffer = np.empty((min(height, len(block)), block.shape[1]), np.int32)
    for start in range(0, len(block), height):
        rows = slice(start, start + height)
        if not is_finite(block[rows]):
            out[rows] = block[rows]
            continue
        bits = block[rows].view(np.int16)
        moved = np.left_shift(bits, _SHIFT, out=buffer[: len(bits)], dtype=np.int32)
        np.bitwise_and(moved, _KEPT, out=moved)
        np.multiply(moved.view(np.float32), _REBASED, out=out[rows])


def is_finite(block: NDArray[np.float16]) -> bool:
    """Whether no number of float16 is infinity or NaN, whose bits are the largest of a sign."""
    if not block.size:
        return True
    largest, lowest = block.view(np.int16).max(), block.view(np.uint16).max()
    return bool(largest < _INFINITY and lowest < _SIGN + _INFINITY)
