"""Packing: a compressed copy of a finished cache, and back, bit by bit the same."""

from __future__ import annotations

import io
import json
import os
import time
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from featx.errors import CacheError, UsageError
from featx.progress import SILENT, Reporter
from featx.store import disk, layout
from featx.store.file_layout import create_attribute, create_dataset
from featx.store.header import HeaderBlock, hash_file
from featx.store.new_file import file_beside
from featx.store.packed import ATTRIBUTES, ENCODING_TYPE, PackedCache, render, require_codec
from featx.store.reader import Cache
from featx.store.threads import N_THREADS, in_threads
from featx.store.writer import CacheWriter

__all__ = ["CODECS", "PackReport", "copy_missing", "pack_cache", "unpack_cache"]

# And their default levels. Level 1 of zstd is faster than 3, and on features of SqueezeNet,
# most of which are zero, it is smaller too: 37.8 against 38.9 MB of 173 MB.
CODECS: Final = {"gzip": 4, "zstd": 1}
_LEVELS: Final = {"gzip": 9, "zstd": 22}


@dataclass(frozen=True)
class PackReport:
    """What packing or unpacking did."""

    path: Path
    source_bytes: int
    n_bytes: int
    seconds: float
    is_new: bool = True


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
    filters = _filters(codec, level)
    out = Path(source).with_suffix(".featx.h5") if target is None else Path(target)
    with Cache.open(source) as cache, file_beside(out, overwrite=overwrite) as (_, fd):
        stream = _Stream(fd)
        with h5py.File(stream, "w", userblock_size=layout.USERBLOCK_BYTES) as file:
            _write_small(fd, file, cache, codec)
            _write_features(file, cache, filters, stream, reporter)
        stream.check()
        n_bytes = os.fstat(fd).st_size
        disk.pwrite(fd, render(n_bytes, hash_file(fd, HeaderBlock(n_bytes, n_bytes, 0, ""))), 0)
        source_bytes = cache.path.stat().st_size
    return PackReport(out, source_bytes, n_bytes, time.monotonic() - began)


def _filters(codec: str, level: int | None) -> dict[str, Any]:
    """Give what h5py calls the filters of a dataset."""
    if codec not in CODECS:
        raise UsageError(f"unknown codec {codec!r}: choose from {', '.join(CODECS)}")
    level = CODECS[codec] if level is None else level
    if not 1 <= level <= _LEVELS[codec]:
        raise UsageError(f"the level of {codec} must be 1 to {_LEVELS[codec]}, not {level}")
    require_codec(codec)
    if codec == "gzip":
        return {"shuffle": True, "compression": codec, "compression_opts": level}
    import hdf5plugin

    return {"shuffle": True, **hdf5plugin.Zstd(clevel=level)}


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


def _write_small(fd: int, file: h5py.File, cache: Cache, codec: str) -> None:
    for name in layout.SMALL_DATASETS:
        array = cache.stored_array(name)
        offset = create_dataset(file, name, array.shape, array.dtype)
        disk.pwrite(fd, array.tobytes(), offset)
    # As `CacheSpec.encoded_meta` writes it.
    meta = json.dumps(cache.meta, sort_keys=True, separators=(",", ":")).encode("ascii")
    texts = (ENCODING_TYPE.encode(), b"1", codec.encode(), cache.fingerprint.encode())
    values = (*texts, np.int64(cache.X.block_rows), meta)
    for name, value in zip(ATTRIBUTES, values, strict=True):
        create_attribute(file, name, value)


def _write_features(
    file: h5py.File, cache: Cache, filters: dict[str, Any], stream: _Stream, reporter: Reporter
) -> None:
    features = cache.X.stored
    n_rows = min(features.block_rows, len(cache))
    dataset = file.create_dataset(
        "features", features.shape, features.dtype, chunks=(n_rows, cache.n_features), **filters
    )
    deflate = partial(_deflate, n_rows=n_rows, level=filters["compression_opts"])
    with reporter.bar(len(cache), f"pack {cache.path.name}", "row") as bar:
        for start, rows in features.iter_blocks(N_THREADS * n_rows):
            if filters["compression"] == "gzip":  # not by HDF5, which computes in one thread
                chunks = [rows[at : at + n_rows] for at in range(0, len(rows), n_rows)]
                for i, data in enumerate(in_threads(deflate, chunks)):
                    dataset.id.write_direct_chunk((start + i * n_rows, 0), data)
            else:
                dataset[start : start + len(rows)] = rows
            stream.check()
            bar.update(len(rows))


def _deflate(rows: np.ndarray, n_rows: int, level: int) -> bytes:
    """Shuffle and compress a chunk of `n_rows` as HDF5 does; zeros follow the last row."""
    chunk = np.zeros((n_rows, rows.shape[1]), rows.dtype)
    chunk[: len(rows)] = rows
    return zlib.compress(chunk.view("u1").reshape(-1, rows.itemsize).T.tobytes(), level)


def unpack_cache(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> PackReport:
    """Give back the cache that was packed; every block of rows is verified."""
    began = time.monotonic()
    if not Path(source).is_file():
        raise CacheError(f"no file {source}: name a file that  featx pack  wrote")
    out = _unpacked_path(Path(source)) if target is None else Path(target)
    with PackedCache.open(source) as packed:
        require_codec(packed.codec)
        with CacheWriter.open(out, packed.spec, overwrite=overwrite, reporter=reporter) as writer:
            is_new = not writer.is_complete
            if is_new:
                copy_missing(packed, writer, "unpack", reporter)
                writer.finish(packed.stored_array("digests"))
        if not is_new:
            _compare(packed, out)
        n_bytes = packed.path.stat().st_size
    return PackReport(out, n_bytes, out.stat().st_size, time.monotonic() - began, is_new)


def _unpacked_path(path: Path) -> Path:
    stem = path.name.removesuffix(".h5").removesuffix(".featx")
    return path.with_name(f"{stem}.h5" if f"{stem}.h5" != path.name else f"{stem}.unpacked.h5")


def copy_missing(cache: Cache, writer: CacheWriter, verb: str, reporter: Reporter) -> None:
    """Write the rows that a file lacks, from another cache of the same rows."""
    missing, errors = writer.missing(), cache.errors
    with reporter.bar(len(cache), f"{verb} {cache.path.name}", "row") as bar:
        for start, rows in cache.X.stored.iter_blocks(N_THREADS * cache.X.block_rows):
            ends = np.flatnonzero(np.diff(missing[start : start + len(rows)])) + 1
            for run in np.split(np.arange(start, start + len(rows)), ends):
                if missing[run[0]]:
                    failed = {row: errors[row] for row in run.tolist() if row in errors}
                    writer.write(int(run[0]), rows[run[0] - start :][: len(run)], failed)
            bar.update(len(rows))


def _compare(packed: PackedCache, target: Path) -> None:
    with Cache.open(target) as cache:
        arrays = ((n, cache.stored_array(n), packed.stored_array(n)) for n in layout.SMALL_DATASETS)
        other = [name for name, *both in arrays if not _is_same(*both)]
    if other:
        raise CacheError(
            f"{target} is there already and has other {', '.join(other)} than the archive: "
            "choose another name (-o), or delete it first"
        )


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape) and one.tobytes() == other.tobytes()
