"""Pixels of more than 8 bits a value, scaled to 8; rows of them at a time, to save memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from featx.errors import ImageError, UsageError

__all__ = ["BITS", "DEEP_KINDS", "check_bits", "describe_dim", "scale", "scale_colours"]

BITS = range(8, 16)
"""What ``--bits`` takes: bits in use of the 16 in which a value is stored."""

DEEP_KINDS = ("bool", "uint16", "int32", "float16", "float32", "float64")
"""Types of arrays that are images too, beside uint8."""

_VALUES_AT_ONCE = 1 << 22


def check_bits(bits: int | None) -> None:
    """Refuse a number of bits that is not in `BITS`."""
    if bits is not None and bits not in BITS:
        raise UsageError(
            f"bits is {bits}: give the bits in use of values that are stored in 16, from "
            f"{BITS[0]} to {BITS[-1]}, or leave it out where all 16 are in use"
        )


def scale(
    rows: Callable[[slice], np.ndarray], shape: tuple[int, ...], bits: int | None = None
) -> tuple[np.ndarray, int]:
    """Scale `rows` of an array of `shape` to uint8; also give the largest integer, else 0."""
    scaled, largest = np.empty(shape, np.uint8), 0
    step = max(1, _VALUES_AT_ONCE // int(np.prod(shape[1:])))
    for start in range(0, shape[0], step):
        part = slice(start, min(start + step, shape[0]))
        values = rows(part)
        if values.dtype == bool:
            scaled[part] = values * np.uint8(255)
        elif values.dtype.kind == "f":
            scaled[part] = _from_floats(values)
        else:
            scaled[part] = _from_integers(values, bits)
            largest = max(largest, int(values.max()))
    return scaled, largest


def _from_floats(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # also true of NaN
        raise ImageError(f"float pixels from {low:g} to {high:g}, not within 0 to 1")
    exact = values.astype(np.promote_types(values.dtype, np.float32), copy=False)
    return np.asarray(np.rint(exact * 255.0))


def _from_integers(values: np.ndarray, bits: int | None) -> np.ndarray:
    low, high, top = values.min(), values.max(), (1 << (bits or 16)) - 1
    if low < 0 or high > top:
        why = f", which bits={bits} means" if bits else ""
        raise ImageError(f"integer pixels from {low} to {high}, not within 0 to {top}{why}")
    return np.asarray((values.astype(np.uint32) * 255 + top // 2) // top)


def scale_colours(colours: np.ndarray, bits: int | None) -> tuple[np.ndarray, int]:
    """Scale 16-bit colours: their high byte, as Pillow gives it, unless the bits are known."""
    if bits is None:
        return (colours >> 8).astype(np.uint8), int(colours.max())
    return scale(colours.__getitem__, colours.shape, bits)


def describe_dim(largest: Iterable[int], bits: int | None) -> str:
    """Say that images of 16 bits a value use fewer; empty where they do not, or that is known."""
    found = Counter(largest)
    most = max(found, default=0)
    if bits is not None or not found or most.bit_length() > BITS[-1] - 1:
        return ""
    usual = next(n for n in (8, 10, 12, 14) if n >= most.bit_length())
    return (
        f"{found.total():,} images store 16 bits a value, and their largest value is {most:,} of "
        f"65,535, so that they come out dark: where they have {usual} bits, give bits={usual} "
        f"(--bits {usual})"
    )
