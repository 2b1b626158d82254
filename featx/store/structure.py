"""The structure of a cache file, checked object by object before any data is read.

A seal keeps accidents away from HDF5, but anybody can seal a file. So nothing in
it is followed: each name must be an object of the file itself, stored in one
piece that lies inside the file, of the one type that featx writes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import h5py
import numpy as np

from featx.errors import CacheError
from featx.fingerprint import fingerprint
from featx.records import parse_json
from featx.store import layout
from featx.store.header import HeaderBlock
from featx.store.layout import Extent

__all__ = [
    "Structure",
    "check_places",
    "hdf5_errors",
    "open_dataset",
    "read_dtype",
    "read_extent",
    "read_objects",
    "read_structure",
]

_MAX_NAME_BYTES: Final = 1 << 16
_MAX_ATTRIBUTE_BYTES: Final = 1 << 16
_TABLES: Final = ("features", "digests", "image_sha256")  # of two axes, the others of one
_TYPES: Final = {"labels": "<i8", "status": "u1", "digests": "u1", "image_sha256": "u1"}


@dataclass(frozen=True)
class Structure:
    """What the HDF5 structure of a cache file says."""

    fingerprint: str
    meta: dict[str, Any]
    block_rows: int
    extents: dict[str, Extent]
    """Where each array lies; that of packed features is 0."""

    @property
    def features(self) -> Extent:
        """Where the features lie."""
        return self.extents["features"]


def read_structure(fd: int, block: HeaderBlock) -> Structure:
    """Read and check the structure of an open cache file."""
    stream = io.FileIO(fd, closefd=False)
    with hdf5_errors(), h5py.File(stream, "r") as file:
        found, values = read_objects(file, layout.ATTRIBUTES, layout.ENCODING_TYPE, read_extent)
    if values["complete"] != 1:
        raise CacheError(f"incomplete: its attribute 'complete' is {values['complete']}")
    features = found.features
    if (features.offset, features.n_bytes) != (block.features_offset, block.features_bytes):
        raise CacheError("its features lie elsewhere than its first bytes say")
    check_places(found.extents, block.file_bytes)
    return found


def read_objects(
    file: h5py.File,
    attributes: Sequence[str],
    kind: str,
    read_features: Callable[[h5py.File, str], Extent],
) -> tuple[Structure, dict[str, Any]]:
    """Read and check attributes and datasets of a file of this encoding type."""
    values = _read_attributes(file, attributes, kind)
    _check_names(file)
    extents = {name: read_extent(file, name) for name in layout.SMALL_DATASETS}
    found = Structure(
        fingerprint=values["fingerprint"],
        meta=_read_meta(values["meta"], values["fingerprint"]),
        block_rows=values["block_rows"],
        extents={"features": read_features(file, "features"), **extents},
    )
    _check_sizes(found)
    return found, values


@contextmanager
def hdf5_errors() -> Iterator[None]:
    """Turn the errors of HDF5, which are of nearly any type for a damaged file, into ours."""
    try:
        yield
    except CacheError:
        raise
    except Exception as error:
        raise CacheError(f"HDF5 cannot read it: {error}") from error


def _check_names(file: h5py.File) -> None:
    """Refuse other objects than the datasets of a cache."""
    if len(file) > len(layout.DATASETS):
        raise CacheError(f"unexpected objects: {len(file)} in place of {len(layout.DATASETS)}")
    odd = sorted(set(file) ^ set(layout.DATASETS))
    if odd:
        raise CacheError(f"unexpected or missing objects: {', '.join(map(repr, odd[:5]))}")


def _read_meta(text: str, digest: str) -> dict[str, Any]:
    """Read what was recorded, and compare its identity with the fingerprint."""
    try:
        meta = parse_json(text)
    except ValueError as error:
        raise CacheError(f"its meta is not JSON: {error}") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("identity"), dict):
        raise CacheError("its meta names no identity")
    try:
        actual = fingerprint(meta["identity"])
    except (ValueError, RecursionError) as error:
        raise CacheError(f"its identity has no fingerprint: {error}") from error
    if actual != digest:
        raise CacheError("its fingerprint is not that of its identity")
    return meta


def _read_attributes(file: h5py.File, names: Sequence[str], kind: str) -> dict[str, Any]:
    """Read just these attributes of a file of this encoding type."""
    if file.userblock_size != layout.USERBLOCK_BYTES:
        raise CacheError(f"its user block has {file.userblock_size} bytes, not 4096")
    attributes = file.attrs
    if len(attributes) != len(names):
        raise CacheError(f"{len(attributes)} attributes in place of {len(names)}")
    values: dict[str, Any] = {}
    for name in names:
        if name not in attributes:
            raise CacheError(f"no attribute {name!r}")
        values[name] = _read_attribute(attributes.get_id(name), name)
    if values["encoding-type"] != kind:
        raise CacheError(f"its encoding-type is {values['encoding-type']!r}")
    if values["encoding-version"] != layout.ENCODING_VERSION:
        raise CacheError(f"its encoding-version is {values['encoding-version']!r}: update featx")
    return values


def _read_attribute(attribute: Any, name: str) -> Any:
    kind, n_bytes = attribute.get_type(), attribute.get_storage_size()
    if attribute.get_space().get_simple_extent_type() != h5py.h5s.SCALAR:
        raise CacheError(f"attribute {name!r} is not one value")
    if not 0 < n_bytes <= _MAX_ATTRIBUTE_BYTES or n_bytes != kind.get_size():
        raise CacheError(f"attribute {name!r} has {n_bytes:,} bytes")
    numbers = {"complete": "u1", "block_rows": "<i8"}
    expected: np.dtype[Any] = np.dtype(numbers.get(name, f"S{kind.get_size()}"))
    _check_type(kind, expected, f"attribute {name!r}")
    value = np.zeros((), expected)
    attribute.read(value, mtype=kind)
    return int(value) if expected.kind in "iu" else value.item().decode("utf-8")


def _check_type(kind: Any, expected: np.dtype[Any], what: str) -> None:
    if not kind.equal(layout.hdf5_type(expected)):
        raise CacheError(f"{what} has another type than {expected}")


def open_dataset(file: h5py.File, name: str) -> h5py.h5d.DatasetID:
    """Open a dataset of this file itself."""
    # Not by h5py's objects for links and datasets: they double the time to open a cache.
    root, raw = file.id, name.encode()
    if root.links.get_info(raw).type != h5py.h5l.TYPE_HARD:
        raise CacheError(f"{name!r} is a link to somewhere else")
    if h5py.h5o.get_info(root, raw).type != h5py.h5o.TYPE_DATASET:
        raise CacheError(f"{name!r} is not a dataset")
    return h5py.h5d.open(root, raw)


def read_extent(file: h5py.File, name: str) -> Extent:
    """Find where an array lies that is stored in one piece."""
    dataset = open_dataset(file, name)
    plan = dataset.get_create_plist()
    if plan.get_layout() != h5py.h5d.CONTIGUOUS:
        raise CacheError(f"{name!r} is not stored in one piece (chunked, compact or virtual)")
    if plan.get_external_count() or plan.get_nfilters():
        raise CacheError(f"{name!r} is stored in another file, or compressed")
    if h5py.h5a.get_num_attrs(dataset):
        raise CacheError(f"{name!r} has attributes")
    if not dataset.shape:
        raise CacheError(f"{name!r} is not an array")
    dtype = read_dtype(dataset, name)
    extent = Extent(dataset.get_offset() or 0, tuple(map(int, dataset.shape)), dtype)
    if dataset.get_storage_size() != extent.n_bytes:
        raise CacheError(f"{name!r} has {extent.shape} values of {dtype}, but other storage")
    return extent


def read_dtype(dataset: h5py.h5d.DatasetID, name: str) -> np.dtype[Any]:
    """Give the type of a dataset, which must be the one that featx writes."""
    kind = dataset.get_type()
    size = kind.get_size()
    if size > _MAX_NAME_BYTES:
        raise CacheError(f"{name!r} has values of {size:,} bytes")
    if name == "features":
        expected = layout.feature_dtype("float32" if size == 4 else "float16")
    elif name == "errors":
        expected = layout.errors_dtype(max(1, size - 8))
    else:
        expected = np.dtype(_TYPES.get(name, f"S{size}"))
    _check_type(kind, expected, repr(name))
    return expected


def _check_sizes(found: Structure) -> None:
    """Refuse arrays whose shapes do not fit together."""
    features = found.features
    if len(features.shape) != 2 or min(*features.shape, found.block_rows) < 1:
        raise CacheError(f"its features have the shape {features.shape}")
    n_rows, row_bytes = features.shape[0], features.n_bytes // features.shape[0]
    # Readers hold a whole block.
    if found.block_rows != layout.default_block_rows(row_bytes):
        raise CacheError(f"it has blocks of {found.block_rows:,} rows of {row_bytes:,} bytes")
    blocks = layout.n_blocks(n_rows, found.block_rows)
    shapes: dict[str, tuple[int, ...]] = {
        "labels": (n_rows,),
        "paths": (n_rows,),
        "status": (n_rows,),
        "digests": (blocks, layout.DIGEST_BYTES),
        "image_sha256": (n_rows, layout.DIGEST_BYTES),
    }
    for name, extent in found.extents.items():
        if len(extent.shape) != 1 + (name in _TABLES):
            raise CacheError(f"{name!r} has the shape {extent.shape}")
        if name in shapes and extent.shape != shapes[name]:
            raise CacheError(f"{name!r} has the shape {extent.shape}, not {shapes[name]}")
    if found.extents["errors"].shape[0] > n_rows:
        raise CacheError("it has more errors than rows")


def check_places(extents: dict[str, Extent], file_bytes: int) -> None:
    """Refuse arrays that overlap, or do not lie inside the file."""
    end, before = layout.USERBLOCK_BYTES, "the user block"
    placed = [(e.offset, e.n_bytes, name) for name, e in extents.items() if e.n_bytes]
    for offset, n_bytes, name in sorted(placed):
        if offset < end:
            raise CacheError(f"{name!r} overlaps {before}")
        end, before = offset + n_bytes, repr(name)
        if end > file_bytes:
            raise CacheError(f"{name!r} does not lie inside the file")
