"""An older cache whose rows may be taken over, intact or damaged.

Where the seal holds, the file itself says what is where. Where it does not, HDF5
may not parse the file; but the layout follows from the wanted cache alone, so the
digests are read from where they must lie. A SHA-256 that matches is no accident.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from featx.errors import CacheError, CacheMismatchError
from featx.fingerprint import differences, fingerprint
from featx.store import disk, layout
from featx.store.features import Handle
from featx.store.image import Image, n_blocks
from featx.store.reader import Cache
from featx.store.seal import Seal, is_featx, is_readable_version, read_block
from featx.store.spec import CacheSpec

__all__ = ["SOURCE", "Donor", "open_donor", "without_source"]

SOURCE: Final = "source"
_IDENTITY: Final = re.compile(rb'"identity":')


@dataclass
class Donor:
    """Rows that may be taken over."""

    path: Path
    handle: Handle
    features_offset: int
    n_features: int
    dtype: np.dtype[Any]
    block_rows: int
    digests: np.ndarray
    image_digests: np.ndarray
    is_usable: np.ndarray
    notices: list[str] = field(default_factory=list)
    n_damaged: int = 0

    @property
    def n_rows(self) -> int:
        """Number of rows, good or not."""
        return len(self.image_digests)

    def read_block(self, block: int) -> np.ndarray | None:
        """Read and verify a block of rows."""
        start = block * self.block_rows
        rows = slice(start, min(start + self.block_rows, self.n_rows))
        values = np.empty((rows.stop - start, self.n_features), self.dtype)
        row_bytes = values.nbytes // len(values)
        try:
            self.handle.read_into(values, self.features_offset + start * row_bytes)
            is_good = not len(self.digests) or (
                hashlib.sha256(disk.bytes_of(values)).digest() == bytes(self.digests[block])
            )
        except CacheError:  # the file ends before, or the disk cannot read it
            is_good = False
        if not is_good:
            self.n_damaged += int(np.count_nonzero(self.is_usable[rows]))
            self.is_usable[rows] = False
            return None
        self.is_usable[rows] &= np.isfinite(values).all(axis=1)
        return values

    def close(self) -> None:
        """Close the file."""
        self.handle.close()


def open_donor(path: Path, spec: CacheSpec, image: Image) -> Donor:
    """Open a cache to take rows from it."""
    try:
        cache = Cache.open(path)
    except CacheError as error:
        return _salvage(path, spec, image, error)
    try:
        _require_same_settings(path, spec, cache)
        return _intact(cache)
    except BaseException:
        cache.close()
        raise


def without_source(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Give all of an identity but which images it is about."""
    return {key: value for key, value in identity.items() if key != SOURCE}


def _require_same_settings(path: Path, spec: CacheSpec, cache: Cache) -> None:
    found = cache.meta["identity"]
    lines = differences(without_source(spec.identity), without_source(found))
    for name, wanted, has in (
        ("n_features", spec.n_features, cache.n_features),
        ("dtype", spec.dtype, cache.X.stored_dtype.name),
    ):
        if wanted != has:
            lines.append(f"{name}: asked for {wanted!r}, the file has {has!r}")
    if lines:
        raise _mismatch(path, lines)


def _mismatch(path: Path, lines: list[str]) -> CacheMismatchError:
    return CacheMismatchError(
        f"{path} was made with other settings, so none of its rows can be reused: ask for the "
        "same settings, or start anew (--overwrite)",
        lines,
    )


def _intact(cache: Cache) -> Donor:
    header = cache._header
    return Donor(
        path=cache.path,
        handle=cache._handle,
        features_offset=header.features.offset,
        n_features=cache.n_features,
        dtype=cache.X.stored_dtype,
        block_rows=header.block_rows,
        digests=cache._array("digests"),
        image_digests=cache.image_digests,
        is_usable=(cache.status == layout.DONE) & cache.image_digests.any(axis=1),
    )


def _salvage(path: Path, spec: CacheSpec, image: Image, error: CacheError) -> Donor:
    if not path.is_file():
        raise error
    with disk.translated(f"cannot read {path}"):
        handle = Handle(str(path))
        try:
            donor = _unusable(path, spec, image, handle)
            block = read_block(handle.fd)
            if not is_readable_version(block):
                raise error
            reason = _why_elsewhere(block, image) or _adopt_digests(donor, spec, image)
            # A name or a number in the first bytes may be damaged; the identity is no accident.
            if reason and not is_featx(block):
                raise error
        except BaseException:
            handle.close()
            raise
    donor.notices.append(f"damaged: {error}")
    if reason:
        donor.notices.append(f"not reused: {path}: {reason}")
    return donor


def _why_elsewhere(block: bytes, image: Image) -> str:
    try:
        seal = Seal.parse(block)
    except CacheError:
        return ""  # these bytes are among the damaged ones: they say nothing
    found, wanted = (seal.features_offset, seal.features_bytes), image.features_bytes
    if found == (image.features_offset, wanted):
        return ""
    return "it has another size than a file of the images asked for, and is damaged"


def _unusable(path: Path, spec: CacheSpec, image: Image, handle: Handle) -> Donor:
    block_rows = layout.default_block_rows(spec.row_bytes)
    return Donor(
        path=path,
        handle=handle,
        features_offset=image.features_offset,
        n_features=spec.n_features,
        dtype=layout.feature_dtype(spec.dtype),
        block_rows=block_rows,
        digests=np.zeros((n_blocks(spec.n_rows, block_rows), layout.DIGEST_BYTES), "u1"),
        image_digests=np.zeros((spec.n_rows, layout.DIGEST_BYTES), "u1"),
        is_usable=np.zeros(spec.n_rows, bool),
    )


def _adopt_digests(donor: Donor, spec: CacheSpec, image: Image) -> str:
    """Read the digests from where they must lie; say why not, or nothing."""
    content = _read_around(donor.handle.fd, image)
    reason = _difference(content, donor, spec, image)
    if reason:
        return reason
    try:
        donor.handle.read_into(donor.digests, image.offsets["digests"])
        donor.handle.read_into(donor.image_digests, image.offsets["image_sha256"])
    except CacheError as error:
        return f"the digests of its rows are lost: {error}"
    donor.is_usable[:] = donor.image_digests.any(axis=1)
    if not (donor.image_digests == spec.image_digests).all(axis=1).any():
        return "the digests of its images are not where another such file has them"
    return ""


def _read_around(fd: int, image: Image) -> bytes:
    """Read what is neither features nor user block, as far as it is there."""
    head = os.pread(fd, image.features_offset - layout.USERBLOCK_BYTES, layout.USERBLOCK_BYTES)
    # The reasons of failed rows and longer meta make a finished file's end longer.
    return head + os.pread(fd, 2 * len(image.tail) + (16 << 20), image.tail_offset)


def _difference(content: bytes, donor: Donor, spec: CacheSpec, image: Image) -> str:
    """Why it is not certain that a damaged file is about the same images in the same order."""
    # With another number of rows the digests lie elsewhere, and a table read at a wrong
    # place would name wrong rows. So the whole fingerprint must agree, the source with it.
    expected = spec.fingerprint.encode()
    at = image.head.find(expected)
    if at >= 0 and os.pread(donor.handle.fd, len(expected), at) == expected:
        return ""
    for found in _identities(content):
        if fingerprint(found) == spec.fingerprint:
            return ""
        if fingerprint(found).encode() not in content:
            continue  # damaged as well
        lines = differences(without_source(spec.identity), without_source(found))
        if lines:
            raise _mismatch(donor.path, lines)
        return "it holds other images than those asked for, and is damaged outside its features"
    return "its settings can no longer be read, so it is not certain that its rows fit"


def _identities(content: bytes) -> Iterator[dict[str, Any]]:
    """All JSON objects behind the word "identity" in some bytes."""
    for match in _IDENTITY.finditer(content):
        text = content[match.end() : match.end() + layout.MAX_META_BYTES].decode("latin-1")
        try:
            found, _ = json.JSONDecoder().raw_decode(text)
            if isinstance(found, dict):
                fingerprint(found)
                yield found
        except (ValueError, RecursionError):
            continue
