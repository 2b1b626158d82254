"""Everything about a cache that is known before the first image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from featx.errors import CacheError
from featx.fingerprint import fingerprint
from featx.store import layout

__all__ = ["CacheSpec"]


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
        return layout.encode_names(self.paths, "path")

    @cached_property
    def encoded_class_names(self) -> np.ndarray:
        """Class names as stored: shape (C,), fixed-length UTF-8."""
        return layout.encode_names(self.class_names, "class name")

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
            state.update(array.tobytes())
        return state.hexdigest()


def _kind(array: np.ndarray) -> str:
    return f"{array.shape} {array.dtype}"
