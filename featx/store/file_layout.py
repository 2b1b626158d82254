"""All of a cache file but its features, as bytes in memory.

HDF5 lays the file out in memory and never touches the disk, because the library
crashes at exit when a disk fills while it has something to write. The bytes
before and after the features are then written like any others.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from featx.errors import CacheError
from featx.store import disk, layout
from featx.store.header import PARTIAL_BLOCK, HeaderBlock, hash_bytes
from featx.store.spec import CacheSpec

__all__ = ["FileLayout", "create_attribute", "create_dataset", "lay_out"]


@dataclass(frozen=True)
class FileLayout:
    """A cache file in memory, with a gap where the features lie."""

    head: bytearray
    tail: bytearray
    features_bytes: int
    offsets: dict[str, int]

    @property
    def features_offset(self) -> int:
        """Where the features start, in bytes from the start of the file."""
        return len(self.head)

    @property
    def tail_offset(self) -> int:
        """The first byte after the features."""
        return len(self.head) + self.features_bytes

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return self.tail_offset + len(self.tail)


class _Memory(io.RawIOBase):
    """A file that keeps what was written, in pieces, and reads zeros elsewhere."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, bytes | memoryview]] = []
        self.n_bytes = 0
        self._at = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.n_bytes}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self.pieces.append((self._at, piece))
        self._at += len(piece)
        self.n_bytes = max(self.n_bytes, self._at)
        return len(piece)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        view[:] = self.span(self._at, self._at + len(view))
        self._at += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self.n_bytes = self._at if size is None else size
        return self.n_bytes

    def span(self, start: int, stop: int) -> bytearray:
        """Give the bytes from `start` to `stop`."""
        out = bytearray(stop - start)
        for offset, piece in self.pieces:
            low, high = max(start, offset), min(stop, offset + len(piece))
            if low < high:
                out[low - start : high - start] = piece[low - offset : high - offset]
        return out


def lay_out(
    spec: CacheSpec,
    status: np.ndarray | None = None,
    failed: Mapping[int, str] | None = None,
    digests: np.ndarray | None = None,
) -> FileLayout:
    """Lay out a cache file; complete and sealed if the results are given."""
    block_rows = layout.default_block_rows(spec.row_bytes)
    is_complete = status is not None and digests is not None
    blocks = (layout.n_blocks(spec.n_rows, block_rows), layout.DIGEST_BYTES)
    # Digests come first, so that their place depends on no name's length.
    arrays = {
        "digests": np.zeros(blocks, "u1") if digests is None else digests,
        "image_sha256": spec.image_digests,
        "status": np.zeros(spec.n_rows, "u1") if status is None else status,
        "labels": spec.labels,
        "class_names": spec.encoded_class_names,
        "paths": spec.encoded_paths,
        "errors": layout.encode_errors(dict(failed or {})),
    }
    attributes = {
        "encoding-type": layout.ENCODING_TYPE.encode(),
        "encoding-version": layout.ENCODING_VERSION.encode(),
        "complete": np.uint8(is_complete),
        "fingerprint": spec.fingerprint.encode(),
        "block_rows": np.int64(block_rows),
        "meta": spec.encoded_meta,
    }
    memory = _Memory()
    offsets = _create_objects(memory, spec, arrays, attributes)
    return _cut_out(memory, spec.n_rows * spec.row_bytes, offsets, is_complete=is_complete)


def _create_objects(
    memory: _Memory,
    spec: CacheSpec,
    arrays: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any],
) -> dict[str, int]:
    features_bytes = spec.n_rows * spec.row_bytes
    # HDF5 aligns what is at least as large as the threshold: the features, however few.
    with h5py.File(
        memory,
        "w",
        userblock_size=layout.USERBLOCK_BYTES,
        alignment_threshold=min(features_bytes, 4096),
        alignment_interval=4096,
    ) as file:
        # Features come before all that varies in size, so that their place depends on none of it.
        for name, value in attributes.items():
            if name != "meta":
                create_attribute(file, name, value)
        shape = (spec.n_rows, spec.n_features)
        dtype = layout.feature_dtype(spec.dtype)
        offsets = {"features": create_dataset(file, "features", shape, dtype)}
        for name, array in arrays.items():
            offsets[name] = create_dataset(file, name, array.shape, array.dtype)
            if array.nbytes:
                memory.pieces.append((offsets[name], disk.bytes_of(np.ascontiguousarray(array))))
        create_attribute(file, "meta", attributes["meta"])
    return offsets


def create_dataset(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Make room for an array in one piece; give its place in bytes."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)
    space = h5py.h5s.create_simple(shape)
    dataset = h5py.h5d.create(file.id, name.encode(), layout.hdf5_type(dtype), space, plan)
    return int(dataset.get_offset())


def create_attribute(file: h5py.File, name: str, value: Any) -> None:
    """Write an attribute of the whole file."""
    kind = np.dtype(f"S{len(value)}") if isinstance(value, bytes) else value.dtype
    space = h5py.h5s.create(h5py.h5s.SCALAR)
    attribute = h5py.h5a.create(file.id, name.encode(), layout.hdf5_type(kind), space)
    attribute.write(np.array(value, kind), mtype=layout.hdf5_type(kind))


def _cut_out(
    memory: _Memory, features_bytes: int, offsets: dict[str, int], *, is_complete: bool
) -> FileLayout:
    start = offsets["features"]
    stop = start + features_bytes
    if any(offset < stop and start < offset + len(piece) for offset, piece in memory.pieces):
        raise CacheError("this version of HDF5 writes into the features: report it as a bug")
    file_bytes = max(memory.n_bytes, stop)
    head = memory.span(0, start)
    tail = memory.span(stop, file_bytes)
    block = PARTIAL_BLOCK
    if is_complete:
        digest = hash_bytes([memoryview(head)[layout.USERBLOCK_BYTES :], tail])
        block = HeaderBlock(file_bytes, start, features_bytes, digest).render()
    head[: layout.USERBLOCK_BYTES] = block
    return FileLayout(head, tail, features_bytes, offsets)
