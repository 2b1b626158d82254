"""The format of a packed cache: names, first bytes, and how features are compressed.

A packed cache is an HDF5 file with the datasets and attributes of the cache. Only
`features` is stored otherwise: in chunks of one digested block each, shuffled and
compressed. The user block holds the SHA-256 of everything behind it, so that
HDF5 parses no damaged file.
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np

from featx.errors import CacheError, MissingExtraError, UsageError
from featx.progress import Reporter
from featx.store import disk, layout
from featx.store.seal import is_featx

__all__ = [
    "CODECS",
    "ENCODING_TYPE",
    "ENCODING_VERSION",
    "Codec",
    "Stamp",
    "hash_archive",
    "in_order",
    "open_codec",
]

ENCODING_TYPE: Final = "featx-pack"
ENCODING_VERSION: Final = "1"
# And their default levels. Level 1 of zstd is faster than 3, and on features of SqueezeNet,
# most of which are zero, it is smaller too: 37.8 against 38.9 MB of 173 MB.
CODECS: Final = {"gzip": 4, "zstd": 1}
_LEVELS: Final = {"gzip": 9, "zstd": 22}
_FILTERS: Final = {"gzip": 1, "zstd": 32015}
_N_THREADS: Final = min(4, os.cpu_count() or 1)
_READ_BYTES: Final = 1 << 20
_ZSTD_MAGIC: Final = 0xFD2FB528
_TEXT = re.compile(
    rb"featx-pack 1\nfile_bytes (\d{1,18})\nseal ([0-9a-f]{64})\ncheck [0-9a-f]{64}\n"
)
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Stamp:
    """What the user block of an archive says."""

    file_bytes: int
    digest: str

    def render(self) -> bytes:
        """Write the user block: text with its own checksum, zeros up to 4,096 bytes."""
        text = f"featx-pack 1\nfile_bytes {self.file_bytes}\nseal {self.digest}\n"
        check = hashlib.sha256(text.encode()).hexdigest()
        return f"{text}check {check}\n".encode().ljust(layout.USERBLOCK_BYTES, b"\0")

    @classmethod
    def parse(cls, block: bytes) -> Stamp:
        """Read a user block in which every byte is as `render` writes it."""
        match = _TEXT.match(block)
        if match is not None:
            stamp = cls(int(match[1]), match[2].decode())
            if stamp.render() == block:
                return stamp
        if is_featx(block):
            raise CacheError("a cache, and not packed")
        newer = re.match(rb"featx-pack (\d{1,9})\n", block)
        if newer and int(newer[1]) > 1:
            raise CacheError("made by a newer featx: update featx")
        is_ours = block.startswith(b"featx-pack")
        raise CacheError("damaged: its first 4,096 bytes" if is_ours else "not a packed cache")


def hash_archive(fd: int, reporter: Reporter, label: str) -> str:
    """SHA-256 of all bytes of an open file behind its user block, in hexadecimal."""
    state = hashlib.sha256()
    start, stop = layout.USERBLOCK_BYTES, os.fstat(fd).st_size
    buffer = memoryview(bytearray(_READ_BYTES))
    with reporter.bar(len(range(start, stop, _READ_BYTES)), label, "MiB") as bar:
        for offset in range(start, stop, _READ_BYTES):
            view = buffer[: min(_READ_BYTES, stop - offset)]
            disk.pread_into(fd, view, offset)
            state.update(view)
            bar.update()
    return state.hexdigest()


@dataclass(frozen=True)
class Codec:
    """One way to compress a chunk of features."""

    name: str
    level: int

    @property
    def filters(self) -> list[int]:
        """HDF5's numbers of the filters, in their order: shuffle, then this one."""
        return [2, _FILTERS[self.name]]

    def require(self) -> None:
        """Make sure that it works here."""
        if self.name == "zstd":
            try:
                import hdf5plugin  # noqa: F401
            except ImportError as error:
                raise MissingExtraError("hdf5plugin", "pack", "the codec zstd") from error

    def add_to(self, plan: Any) -> None:
        """Add the filters to an HDF5 dataset creation property list."""
        plan.set_shuffle()
        if self.name == "gzip":
            plan.set_deflate(self.level)
        else:
            plan.set_filter(_FILTERS[self.name], 0, (self.level,))

    def encode(self, rows: np.ndarray, chunk_rows: int) -> bytes | None:
        """Compress a chunk as HDF5 would, but without its global lock."""
        if self.name != "gzip":
            return None
        flat = np.zeros((chunk_rows * rows.shape[1], rows.dtype.itemsize), "u1")
        flat[: rows.size] = rows.reshape(-1).view("u1").reshape(-1, rows.dtype.itemsize)
        return zlib.compress(disk.bytes_of(np.ascontiguousarray(flat.T)), self.level)

    def decode(self, data: bytes, n_values: int, dtype: np.dtype[Any]) -> np.ndarray:
        """Undo `encode` for gzip; never makes more bytes than a chunk has."""
        n_bytes = n_values * dtype.itemsize
        state = zlib.decompressobj()
        try:
            plain = state.decompress(data, n_bytes)
            is_whole = state.eof or not state.decompress(state.unconsumed_tail, 1)
        except zlib.error as error:
            raise CacheError(f"cannot be decompressed: {error}") from error
        if len(plain) != n_bytes or not (is_whole and state.eof) or state.unused_data:
            raise CacheError(f"decompresses to something else than {n_bytes:,} bytes")
        shuffled = np.frombuffer(plain, "u1").reshape(dtype.itemsize, n_values)
        return np.array(shuffled.T, order="C", copy=True).view(dtype).reshape(-1)

    def check_frame(self, data: bytes, n_bytes: int) -> None:
        """Refuse a zstd frame that does not say that it holds just `n_bytes`.

        HDF5's filter allocates what the frame's header asks for.
        """
        if _zstd_content_bytes(data) != n_bytes:
            raise CacheError(f"decompresses to something else than {n_bytes:,} bytes")


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


def open_codec(name: str, level: int | None = None) -> Codec:
    """Make a codec that works here."""
    if name not in CODECS:
        raise UsageError(f"unknown codec {name!r}: choose from {', '.join(CODECS)}")
    level = CODECS[name] if level is None else level
    if not 1 <= level <= _LEVELS[name]:
        raise UsageError(f"the level of {name} must be 1 to {_LEVELS[name]}, not {level}")
    codec = Codec(name, level)
    codec.require()
    return codec


def in_order(
    function: Callable[[_Item], _Result], items: Iterable[_Item], ahead: int = 2 * _N_THREADS
) -> Iterator[_Result]:
    """Map `function` in threads, in order, with at most `ahead` results waiting."""
    pool = ThreadPoolExecutor(_N_THREADS)
    waiting: deque[Future[_Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
