"""Names, types and limits of the cache file: what writer and reader agree on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import h5py
import numpy as np

from featx.errors import CacheError

__all__ = [
    "ATTRIBUTES",
    "DATASETS",
    "DIGEST_BYTES",
    "DONE",
    "ENCODING_TYPE",
    "ENCODING_VERSION",
    "FAILED",
    "MAX_META_BYTES",
    "MISSING",
    "SMALL_DATASETS",
    "USERBLOCK_BYTES",
    "Extent",
    "default_block_rows",
    "encode_errors",
    "errors_dtype",
    "feature_dtype",
    "hdf5_type",
    "n_blocks",
]

ENCODING_TYPE: Final = "featx-cache"
ENCODING_VERSION: Final = "1"
USERBLOCK_BYTES: Final = 4096
DIGEST_BYTES: Final = 32
MISSING, DONE, FAILED = 0, 1, 2
DATASETS: Final = (
    "features",
    "digests",
    "image_sha256",
    "status",
    "labels",
    "class_names",
    "paths",
    "errors",
)
SMALL_DATASETS: Final = DATASETS[1:]
ATTRIBUTES: Final = (
    "encoding-type",
    "encoding-version",
    "complete",
    "fingerprint",
    "block_rows",
    "meta",
)
# An attribute lies in its object's header, whose messages are at most 64 KiB long.
MAX_META_BYTES: Final = 60_000
_MAX_REASON_BYTES: Final = 400
_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Extent:
    """Where an array lies in a file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def n_bytes(self) -> int:
        """Its size in bytes, also where no machine could hold it."""
        return math.prod(self.shape) * self.dtype.itemsize


def feature_dtype(name: str) -> np.dtype[Any]:
    """Little-endian NumPy type of the stored features."""
    if name not in ("float16", "float32"):
        raise CacheError(f"features are stored as float16 or float32, not {name!r}")
    return np.dtype(name).newbyteorder("<")


def default_block_rows(row_bytes: int) -> int:
    """Rows in a digested block: about 1 MiB, at least one row."""
    return max(1, _BLOCK_BYTES // row_bytes)


def n_blocks(n_rows: int, block_rows: int) -> int:
    """Count digested blocks; the last may be short."""
    return -(-n_rows // block_rows)


def errors_dtype(width: int) -> np.dtype[Any]:
    """Packed record type of `errors` with reasons of `width` bytes."""
    return np.dtype([("row", "<i8"), ("reason", f"S{width}")])


@lru_cache(256)
def hdf5_type(dtype: np.dtype[Any]) -> Any:
    """HDF5 type of a NumPy type; byte strings become fixed-length UTF-8."""
    if dtype.kind == "S":
        dtype = h5py.string_dtype("utf-8", dtype.itemsize)
    elif dtype.names:
        fields = [(n, dtype[n]) for n in dtype.names]
        dtype = np.dtype(
            [(n, h5py.string_dtype("utf-8", t.itemsize) if t.kind == "S" else t) for n, t in fields]
        )
    return h5py.h5t.py_create(dtype, logical=True)


def encode_errors(failed: dict[int, str]) -> np.ndarray:
    """Reasons of failed rows as records sorted by row; long reasons are cut."""
    rows = sorted(failed)
    reasons = [_cut(failed[row]) for row in rows]
    table = np.zeros(len(rows), errors_dtype(max(map(len, reasons), default=1) or 1))
    table["row"] = rows
    table["reason"] = reasons
    return table


def _cut(reason: str) -> bytes:
    data = reason.replace("\0", " ").encode("utf-8", "replace")
    if len(data) <= _MAX_REASON_BYTES:
        return data
    return data[: _MAX_REASON_BYTES - 3].decode("utf-8", "ignore").encode() + b"..."
