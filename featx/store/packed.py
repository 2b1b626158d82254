"""A packed cache, opened for reading: an ordinary HDF5 file with its features in compressed chunks.

A chunk has the rows of one digested block. The user block holds the SHA-256 of everything behind
it, so that HDF5 parses no damaged file; anybody can seal one, so nothing is believed unchecked.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Self

import h5py
import numpy as np

from featx.errors import CacheError, MissingExtraError, UsageError
from featx.halves import convert
from featx.progress import SILENT, Reporter
from featx.store import disk, layout, structure
from featx.store.disk import OpenFile
from featx.store.features import FeatureArray
from featx.store.file_layout import lay_out
from featx.store.header import HeaderBlock, is_featx, read_block, with_check
from featx.store.layout import Extent
from featx.store.reader import Cache, Damage
from featx.store.recognise import is_archive_file
from featx.store.sharded import ShardedCache
from featx.store.shards import is_place
from featx.store.structure import Structure
from featx.store.threads import N_THREADS

__all__ = [
    "ATTRIBUTES",
    "ENCODING_TYPE",
    "PackedCache",
    "distinct",
    "open_any",
    "render",
    "require_codec",
]

ENCODING_TYPE: Final = "featx-pack"
ATTRIBUTES: Final = (
    "encoding-type",
    "encoding-version",
    "codec",
    "fingerprint",
    "block_rows",
    "meta",
)
_FILTERS: Final = {"gzip": 1, "zstd": 32015}  # HDF5's numbers
_SHUFFLE: Final = 2
# Upper bounds of the compression ratio: 1,032 for deflate, some 32,768 for zstd (runs of one byte).
_MAX_RATIO: Final = {"gzip": 1_040, "zstd": 40_000}
_ZSTD_MAGIC: Final = 0xFD2FB528
_TEXT: Final = re.compile(
    rb"featx-pack 1\nfile_bytes (\d{1,18})\nseal ([0-9a-f]{64})\ncheck [0-9a-f]{64}\n"
)
_MEND: Final = "take another copy of it, or pack the cache again"


def open_any(path: str | os.PathLike[str], *, dtype: Any = "float32") -> Cache:
    """Open a cache to read it, packed, in shards, or neither; see `Cache.open`."""
    kind = ShardedCache if is_place(path) else PackedCache if is_archive_file(path) else Cache
    return kind.open(path, dtype=dtype)


def distinct(caches: Iterable[Cache]) -> list[Cache]:
    """Keep one cache of each fingerprint: plain files come before places of shards."""
    found: dict[str, Cache] = {}
    for cache in sorted(caches, key=lambda cache: type(cache) is not Cache):
        found.setdefault(cache.fingerprint, cache)
    return list(found.values())


class PackedCache(Cache):
    """A packed cache; a block of rows is decompressed when one of them is read."""

    codec: str

    @classmethod
    def _read(cls, path: Path, file: OpenFile, is_sealed: bool) -> Self:
        with disk.translated("cannot read it"):
            block = _parse(read_block(file.fd))
            block.check_size(file.fd, _MEND)
            if is_sealed:
                block.check_seal(file.fd, _MEND)
            found, codec, hdf5 = _read_structure(file, block.file_bytes)
        cache = cls(path, file, block, found)
        cache.codec, cache.X = codec, _PackedFeatures(cache.X, hdf5, codec)
        cache._check_values()
        return cache

    @property
    def unpacked_bytes(self) -> int:
        """Size of the cache that was packed."""
        digests = self.stored_array("digests")
        return lay_out(self.spec, self.status, self.errors, digests).file_bytes

    def verify(self, reporter: Reporter = SILENT) -> list[Damage]:
        """Decompress everything and compare it with the digests; see `Cache.verify`."""
        with reporter.bar(len(self), f"verify {self.path.name}", "row") as bar:
            try:
                for _, rows in self.X.stored.iter_blocks(N_THREADS * self.X.block_rows):
                    bar.update(len(rows))
            except CacheError as error:
                return [Damage("file", 0, 0, str(error))]
        return []


class _PackedFeatures(FeatureArray):
    """Features in compressed chunks; a thread keeps the block that it read last."""

    def __init__(self, features: FeatureArray, hdf5: h5py.File, codec: str) -> None:
        self.__dict__.update(features.__dict__)
        self._hdf5, self._codec = hdf5, codec  # without the file object, HDF5 closes the dataset
        self._dataset, self._last = hdf5["features"], threading.local()

    def _read(self, out: np.ndarray, row: int) -> None:
        block, place = divmod(row, self.block_rows)
        if getattr(self._last, "block", None) != block:
            rows = np.empty((self._rows_of(block), self.shape[1]), self.stored_dtype)
            self._read_block(block, rows)
            self._last.block, self._last.rows = block, rows
        convert(self._last.rows[place : place + len(out)], out)

    def _read_block(self, block: int, rows: np.ndarray) -> None:
        path, first, _ = self._file.path, block * self.block_rows, self._file.fd
        require_codec(self._codec)
        try:
            self._decompress(rows, first)
            if hashlib.sha256(disk.bytes_of(rows)).digest() != self._digests[block].tobytes():
                raise CacheError("its digest is another")
        except Exception as error:  # HDF5 raises nearly any type for a damaged file
            raise CacheError(
                f"{path}: damaged: features rows {first}-{first + len(rows) - 1}: {error}: {_MEND}"
            ) from error

    def _decompress(self, rows: np.ndarray, first: int) -> None:
        """Fill `rows` by a chunk, which must have the size that it says before it is believed."""
        n_bytes = min(self.block_rows, len(self)) * self._row_bytes
        info = self._dataset.id.get_chunk_info_by_coord((first, 0))
        if info.byte_offset is None or info.filter_mask or not 0 < info.size <= 2 * n_bytes + 1024:
            raise CacheError("its chunk is missing, or is not compressed as featx does it")
        data = self._dataset.id.read_direct_chunk((first, 0))[1]
        if self._codec == "gzip":
            plain = np.frombuffer(_inflate(data, n_bytes), "u1")
            values = plain.reshape(rows.itemsize, -1).T.copy().view(rows.dtype)
            rows[:] = values.reshape(-1, rows.shape[1])[: len(rows)]
            return
        if _zstd_content_bytes(data) != n_bytes:  # HDF5's filter allocates what it says
            raise CacheError(f"decompresses to something else than {n_bytes:,} bytes")
        self._dataset.read_direct(rows, np.s_[first : first + len(rows)])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("packed features become an array by a copy")
        return super().__array__(dtype, copy=True)

    def memmap(self) -> np.memmap[Any, Any]:
        """Refuse: what is compressed cannot be mapped."""
        path = self._file.path
        raise UsageError(f"{path} is packed, and cannot be mapped: run  featx unpack {path}  first")


def require_codec(name: str) -> None:
    """Make sure that a codec works here."""
    if name == "zstd":
        try:
            import hdf5plugin  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("hdf5plugin", "pack", "the codec zstd") from error


def render(file_bytes: int, digest: str) -> bytes:
    """Write the user block: text with its own checksum, zeros up to 4,096 bytes."""
    return with_check(f"featx-pack 1\nfile_bytes {file_bytes}\nseal {digest}\n")


def _parse(block: bytes) -> HeaderBlock:
    """Read a user block in which every byte is as `render` writes it."""
    match = _TEXT.match(block)
    if match is not None and render(int(match[1]), match[2].decode()) == block:
        return HeaderBlock(int(match[1]), int(match[1]), 0, match[2].decode())
    newer = re.match(rb"featx-pack (\d{1,9})\n", block)
    if newer and int(newer[1]) > 1:
        raise CacheError("made by a newer featx: update featx")
    if block.startswith(b"featx-pack"):
        raise CacheError(f"damaged: its first 4,096 bytes: {_MEND}")
    raise CacheError("a cache, and not packed" if is_featx(block) else "not a packed cache")


def _read_structure(file: OpenFile, n_bytes: int) -> tuple[Structure, str, h5py.File]:
    with structure.hdf5_errors():
        hdf5 = h5py.File(io.FileIO(file.fd, closefd=False), "r")
        found, values = structure.read_objects(hdf5, ATTRIBUTES, ENCODING_TYPE, _read_extent)
        arrays = {name: found.extents[name] for name in layout.SMALL_DATASETS}
        structure.check_places(arrays, n_bytes)
        _check_storage(hdf5["features"], found, values["codec"], n_bytes)
    return found, values["codec"], hdf5


def _read_extent(hdf5: h5py.File, name: str) -> Extent:
    features = h5py.Dataset(structure.open_dataset(hdf5, name))
    if features.chunks is None:  # so it is neither virtual nor in another file
        raise CacheError(f"{name!r} is not stored in chunks")
    if len(features.attrs):
        raise CacheError(f"{name!r} has attributes")
    return Extent(0, features.shape, structure.read_dtype(features.id, name))


def _check_storage(features: h5py.Dataset, found: Structure, codec: str, n_bytes: int) -> None:
    if codec not in _FILTERS:
        raise CacheError(f"its codec is {codec!r:.40}")
    if found.features.n_bytes > n_bytes * _MAX_RATIO[codec]:
        raise CacheError(f"{n_bytes:,} bytes cannot hold features of the shape {features.shape}")
    chunk = (min(found.block_rows, features.shape[0]), features.shape[1])
    if features.chunks != chunk:
        raise CacheError(f"'features' is not stored in chunks of {chunk}")
    plan = features.id.get_create_plist()
    filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
    if filters != [_SHUFFLE, _FILTERS[codec]]:
        raise CacheError(f"'features' has the filters {filters}, not those of {codec}")


def _inflate(data: bytes, n_bytes: int) -> bytes:
    """Decompress a chunk of gzip; never makes more than one byte too many."""
    state = zlib.decompressobj()
    plain = state.decompress(data, n_bytes + 1)
    if len(plain) != n_bytes or not state.eof or state.unused_data:
        raise CacheError(f"decompresses to something else than {n_bytes:,} bytes")
    return plain


def _zstd_content_bytes(data: bytes) -> int | None:
    # RFC 8878, section 3.1.1.1: magic, descriptor, window, dictionary id, content size.
    if len(data) < 5 or int.from_bytes(data[:4], "little") != _ZSTD_MAGIC:
        return None
    descriptor = data[4]
    is_single, size_flag = bool(descriptor & 0x20), descriptor >> 6
    start = 5 + (not is_single) + (0, 1, 2, 4)[descriptor & 3]
    width = (int(is_single), 2, 4, 8)[size_flag]
    if width == 0 or len(data) < start + width:
        return None
    return int.from_bytes(data[start : start + width], "little") + (256 if width == 2 else 0)
