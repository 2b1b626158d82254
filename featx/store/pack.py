"""Packing: a compressed copy of a finished cache, for archives."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from featx.progress import SILENT, Reporter
from featx.store import archive, disk, layout
from featx.store.archive import Codec, Stamp, hash_archive, in_order, open_codec
from featx.store.beside import file_beside
from featx.store.image import _create, _create_attribute
from featx.store.reader import Cache

__all__ = ["PackReport", "pack_cache", "packed_path"]

_SUFFIX: Final = ".featx.h5"


@dataclass(frozen=True)
class PackReport:
    """What packing or unpacking did."""

    path: Path
    source_bytes: int
    n_bytes: int
    seconds: float
    is_new: bool = True


def packed_path(source: str | os.PathLike[str]) -> Path:
    """Where `pack_cache` puts the archive of a cache by default."""
    path = Path(source)
    return path.with_name(path.stem + _SUFFIX)


def pack_cache(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    codec: str = "gzip",
    level: int | None = None,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> PackReport:
    """Write a compressed copy of a finished cache; every block of rows is verified."""
    began = time.monotonic()
    chosen = open_codec(codec, level)
    out = Path(packed_path(source) if target is None else target)
    with Cache.open(source) as cache, file_beside(out, overwrite=overwrite) as (_, fd):
        _write(fd, cache, chosen, reporter)
        _stamp(fd, out, reporter)
        source_bytes = cache.path.stat().st_size
    return PackReport(out, source_bytes, out.stat().st_size, time.monotonic() - began)


class _Stream(io.FileIO):
    """A file for HDF5 whose failures HDF5 never sees, because it crashes after one.

    The first error is kept in `error` and nothing is written after it.
    """

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "r+b", closefd=False)
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view, start = memoryview(data).cast("B"), self.tell()
        if self.error is None:
            try:
                disk.pwrite(self.fileno(), view, start)
            except OSError as error:
                self.error = error
        self.seek(start + len(view))
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        if self.error is None:
            try:
                disk.truncate(self.fileno(), size)
            except OSError as error:
                self.error = error
        return size

    def check(self) -> None:
        """Raise what went wrong."""
        if self.error is not None:
            raise self.error


def _write(fd: int, cache: Cache, codec: Codec, reporter: Reporter) -> None:
    stream = _Stream(fd)
    with h5py.File(stream, "w", userblock_size=layout.USERBLOCK_BYTES) as file:
        _write_small(fd, file, cache, codec)
        _write_features(file, cache, codec, stream, reporter)
    stream.check()


def _write_small(fd: int, file: h5py.File, cache: Cache, codec: Codec) -> None:
    for name in cache._header.extents:
        if name != "features":
            array = cache._array(name)
            offset = _create(file, name, array.shape, array.dtype)
            if array.nbytes:
                disk.pwrite(fd, array.tobytes(), offset)
    for name, value in _attributes(cache, codec).items():
        _create_attribute(file, name, value)


def _write_features(
    file: h5py.File, cache: Cache, codec: Codec, stream: _Stream, reporter: Reporter
) -> None:
    chunk_rows = min(cache._header.block_rows, len(cache))
    dataset = _create_features(file, cache, (chunk_rows, cache.n_features), codec)
    with reporter.bar(len(cache), f"pack {cache.path.name}", "row") as bar:
        for start, rows, data in _encoded(cache, codec, chunk_rows):
            if data is None:
                dataset[start : start + len(rows)] = rows
            else:
                dataset.id.write_direct_chunk((start, 0), data)
            stream.check()
            bar.update(len(rows))


def _attributes(cache: Cache, codec: Codec) -> Mapping[str, Any]:
    # As `CacheSpec.encoded_meta` writes it.
    meta = json.dumps(cache.meta, sort_keys=True, separators=(",", ":"))
    return {
        "encoding-type": archive.ENCODING_TYPE.encode(),
        "encoding-version": archive.ENCODING_VERSION.encode(),
        "codec": codec.name.encode(),
        "fingerprint": cache.fingerprint.encode(),
        "block_rows": np.int64(cache._header.block_rows),
        "meta": meta.encode("ascii"),
    }


def _create_features(
    file: h5py.File, cache: Cache, chunk: tuple[int, int], codec: Codec
) -> h5py.Dataset:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk(chunk)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)
    codec.add_to(plan)
    space = h5py.h5s.create_simple(cache.X.shape)
    kind = layout.hdf5_type(cache.X.stored_dtype)
    return h5py.Dataset(h5py.h5d.create(file.id, b"features", kind, space, plan))


def _encoded(
    cache: Cache, codec: Codec, chunk_rows: int
) -> Iterator[tuple[int, np.ndarray, bytes | None]]:
    def encode(start: int) -> tuple[int, np.ndarray, bytes | None]:
        rows = cache.X.stored[start : start + chunk_rows]
        return start, rows, codec.encode(rows, chunk_rows)

    return in_order(encode, range(0, len(cache), chunk_rows))


def _stamp(fd: int, out: Path, reporter: Reporter) -> None:
    digest = hash_archive(fd, reporter, f"seal {out.name}")
    disk.pwrite(fd, Stamp(os.fstat(fd).st_size, digest).render(), 0)
