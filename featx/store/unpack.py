"""Unpacking: the cache that an archive was made of, bit by bit the same."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from featx.errors import CacheError
from featx.progress import SILENT, Reporter
from featx.store import disk
from featx.store.pack import PackReport
from featx.store.packed import Archive, is_same, open_archive
from featx.store.reader import Cache
from featx.store.writer import CacheWriter

__all__ = ["unpack_cache", "unpacked_path"]


def unpacked_path(source: str | os.PathLike[str]) -> Path:
    """Where `unpack_cache` puts the cache of an archive by default."""
    path = Path(source)
    stem = path.name.removesuffix(".h5").removesuffix(".featx")
    name = f"{stem}.h5"
    return path.with_name(name if name != path.name else f"{stem}.unpacked.h5")


def unpack_cache(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> PackReport:
    """Give back the cache that was packed; every block of rows is verified."""
    began = time.monotonic()
    out = Path(unpacked_path(source) if target is None else target)
    with open_archive(source, reporter) as packed:
        packed.codec.require()
        with CacheWriter.open(out, packed.spec, overwrite=overwrite, reporter=reporter) as writer:
            is_new = not writer.is_complete
            if is_new:
                _copy(packed, writer, reporter)
                writer.finish()
        if not is_new:
            _compare(packed, out)
        n_bytes = packed.n_bytes
    return PackReport(out, n_bytes, out.stat().st_size, time.monotonic() - began, is_new)


def _copy(packed: Archive, writer: CacheWriter, reporter: Reporter) -> None:
    missing = writer.missing()
    with reporter.bar(len(missing), f"unpack {packed.path.name}", "row") as bar:
        for start, rows in packed.blocks():
            is_missing = missing[start : start + len(rows)]
            if not is_missing.all():
                _check_kept(packed, writer, start, rows[~is_missing], ~is_missing)
            for low, high in _runs(is_missing):
                here = range(start + low, start + high)
                failed = {row: packed.failed[row] for row in here if row in packed.failed}
                writer.write(start + low, rows[low:high], failed)
            bar.update(len(rows))


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(low), int(high)) for low, high in edges.reshape(-1, 2)]


def _check_kept(
    packed: Archive, writer: CacheWriter, start: int, rows: np.ndarray, is_kept: np.ndarray
) -> None:
    # A partial file of an extraction with the same settings may be resumed here;
    # its rows may differ in the last bit, and only the archive's are wanted.
    partial, row_bytes = writer._partial, writer.spec.row_bytes
    if partial is None:
        return
    for row, expected in zip(np.flatnonzero(is_kept), rows, strict=True):
        found = np.empty_like(expected)
        offset = writer._image.features_offset + (start + int(row)) * row_bytes
        disk.pread_into(partial.fd, disk.bytes_of(found), offset)
        if found.tobytes() != expected.tobytes():
            raise CacheError(
                f"{partial.path} holds another row {start + row} than {packed.path}: finish that "
                "run, or delete its file, or choose another name (-o)"
            )


def _compare(packed: Archive, target: Path) -> None:
    with Cache.open(target) as cache:
        names = [name for name in packed.arrays if name in cache._header.extents]
        other = [n for n in names if not is_same(cache._array(n), packed.arrays[n])]
        if other:
            raise CacheError(
                f"{target} is there already and has other {', '.join(other)} than the archive: "
                "choose another name (-o), or delete it first"
            )
