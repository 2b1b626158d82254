"""What is known of a cache before the first image, and which rows of features fit it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np

from featx.errors import CacheError
from featx.fingerprint import fingerprint
from featx.store import disk, layout
from featx.store.names import encode_names

__all__ = ["CacheSpec", "as_stored", "check_rows"]

# The bits of infinity, by the size of the float in bytes.
_INFINITY: Final = {2: 0x7C00, 4: 0x7F800000}


@dataclass(frozen=True, eq=False)
class CacheSpec:
    """Everything about a cache that is known before the first image."""

    identity: Mapping[str, Any]
    meta: Mapping[str, Any]
    labels: np.ndarray
    class_names: Sequence[str]
    paths: Sequence[str]
    n_features: int
    dtype: str
    image_digests: np.ndarray = field(default_factory=lambda: np.zeros((0, 32), "u1"))

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        layout.feature_dtype(self.dtype)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise CacheError(f"labels must be a row of integers, not {_kind(labels)}")
        if len(labels) == 0 or self.n_features < 1:
            raise CacheError(f"nothing to store: {len(labels)} rows of {self.n_features} features")
        if len(labels) != len(self.paths):
            raise CacheError(f"{len(labels)} labels do not fit {len(self.paths)} paths")
        if labels.min() < -1 or labels.max() >= len(self.class_names):
            raise CacheError(
                f"labels must lie in -1..{len(self.class_names) - 1}, "
                f"not {labels.min()}..{labels.max()}"
            )
        object.__setattr__(self, "labels", labels.astype("<i8"))
        object.__setattr__(self, "image_digests", self._checked_digests())

    def _checked_digests(self) -> np.ndarray:
        digests, wanted = np.asarray(self.image_digests), (self.n_rows, layout.DIGEST_BYTES)
        if digests.shape == (0, layout.DIGEST_BYTES):
            digests = np.zeros(wanted, "u1")
        if digests.shape != wanted or digests.dtype != np.uint8:
            raise CacheError(f"image_digests must be {wanted} uint8, not {_kind(digests)}")
        return np.ascontiguousarray(digests)

    @property
    def n_rows(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of features."""
        return self.n_features * layout.feature_dtype(self.dtype).itemsize

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the identity, 64 hexadecimal digits."""
        try:
            return fingerprint(self.identity)
        except (TypeError, ValueError) as error:
            raise CacheError(f"the identity cannot be written as JSON: {error}") from error

    @cached_property
    def encoded_paths(self) -> np.ndarray:
        """Paths as stored: shape (N,), fixed-length UTF-8."""
        return encode_names(self.paths, "path")

    @cached_property
    def encoded_class_names(self) -> np.ndarray:
        """Class names as stored: shape (C,), fixed-length UTF-8."""
        return encode_names(self.class_names, "class name")

    @cached_property
    def encoded_meta(self) -> bytes:
        """The `meta` attribute: ASCII JSON with the identity inside."""
        value = {**self.meta, "identity": self.identity}
        try:
            text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CacheError(f"the cache's meta cannot be written as JSON: {error}") from error
        if len(text) > layout.MAX_META_BYTES:
            raise CacheError(
                f"the cache's meta is {len(text):,} bytes of JSON; at most "
                f"{layout.MAX_META_BYTES:,} fit in an HDF5 attribute: record less"
            )
        return text.encode("ascii")

    @cached_property
    def content(self) -> str:
        """SHA-256 of shape, labels, names, images: what a resumed run must share besides."""
        state = hashlib.sha256(f"{self.n_rows},{self.n_features},{self.dtype};".encode())
        names = (self.encoded_class_names, self.encoded_paths)
        for array in (self.labels, *names, self.image_digests):
            state.update(f"{array.dtype.str}{array.shape};".encode())
            state.update(disk.bytes_of(np.ascontiguousarray(array)))
        return state.hexdigest()


def _kind(array: np.ndarray) -> str:
    return f"{array.shape} {array.dtype}"


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
