"""Rows of features as they are stored: cast, checked, never infinite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from featx.errors import CacheError
from featx.store.spec import CacheSpec

__all__ = ["as_stored", "check_rows"]

# The bits of infinity, by the size of the float in bytes.
_INFINITY: Final = {2: 0x7C00, 4: 0x7F800000}


def check_rows(spec: CacheSpec, start: int, rows: np.ndarray, failed: Mapping[int, str]) -> None:
    """Refuse rows that do not fit a cache."""
    wanted = f"(n, {spec.n_features}) floats"
    if rows.ndim != 2 or rows.shape[1] != spec.n_features or rows.dtype.kind != "f":
        raise ValueError(f"rows must be {wanted}, not {rows.shape} {rows.dtype}")
    stop = start + len(rows)
    if not 0 <= start <= stop <= spec.n_rows:
        raise ValueError(f"rows {start}-{stop - 1} do not lie in 0-{spec.n_rows - 1}")
    if not all(start <= row < stop for row in failed):
        raise ValueError(f"failed rows {sorted(failed)} do not lie in {start}-{stop - 1}")


def as_stored(
    rows: np.ndarray, dtype: np.dtype[Any], start: int, failed: Mapping[int, str]
) -> np.ndarray:
    """Cast rows to the stored type, failed ones to NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        stored = np.array(rows, dtype=dtype, order="C", copy=True if failed else None)
    indices = [row - start for row in failed]
    if indices:
        stored[indices] = np.nan
    is_bad = _not_finite(stored)
    is_bad[indices] = False
    if is_bad.any():
        raise CacheError(_complaint(rows, dtype, start, np.flatnonzero(is_bad)))
    return stored


def _not_finite(stored: np.ndarray) -> np.ndarray:
    """Rows with NaN or infinity; several times faster than `numpy.isfinite`, and without a copy.

    The bits of infinity are the least of all values of its sign that are not finite: as a
    signed number among the positive ones, as an unsigned number among the negative ones.
    """
    n_bytes = stored.dtype.itemsize
    infinity, sign = _INFINITY[n_bytes], 1 << (8 * n_bytes - 1)
    positive = stored.view(f"<i{n_bytes}").max(axis=1) >= infinity
    negative = stored.view(f"<u{n_bytes}").max(axis=1) >= infinity + sign
    return np.asarray(positive | negative)


def _complaint(rows: np.ndarray, dtype: np.dtype[Any], start: int, bad: np.ndarray) -> str:
    values = rows[bad]
    # Infinity in a float16 network is nearly always its own overflow.
    is_half = rows.dtype.itemsize == 2
    is_overflow = (~np.isnan(values) if is_half else np.isfinite(values)).all(axis=1)
    numbers = ", ".join(str(start + row) for row in bad[:5].tolist()) + (
        ", ..." if len(bad) > 5 else ""
    )
    what = f"{len(bad)} row{'s' if len(bad) > 1 else ''} ({numbers})"
    if not is_overflow.all():
        return (
            f"{what} of features hold NaN or infinity as the network gave them: nothing of this "
            "batch was stored; check weights and preprocessing, or compute in float32 "
            "(--precision fp32)"
        )
    largest = float(np.abs(values).max())
    mend = "store float32 (--store-dtype float32)" if dtype.itemsize == 2 else "scale them down"
    return (
        f"{what} of features do not fit in {dtype.name}, the largest is {largest:.6g} where at "
        f"most {float(np.finfo(dtype).max):.6g} fits: {mend}"
    )
