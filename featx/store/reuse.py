"""Rows of an older file, taken into a new one where it is certain that they belong there.

A row is taken if the settings of both files agree in all but the source, if the checksum of its
block or range is right, and if the SHA-256 of its image is that of a wanted one. So the older file
may hold more, fewer, renamed or relabelled images in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from featx.atomic import is_flocked
from featx.errors import CacheError, CacheMismatchError
from featx.fingerprint import differences
from featx.progress import Reporter
from featx.store import layout
from featx.store.disk import OpenFile
from featx.store.file_layout import lay_out
from featx.store.header import is_featx, is_readable_version
from featx.store.journal import journal_path, read_journal
from featx.store.partial import verified
from featx.store.reader import Cache
from featx.store.recognise import first_bytes
from featx.store.spec import CacheSpec

__all__ = [
    "SOURCE",
    "OlderCache",
    "copy_rows",
    "is_same_file",
    "is_wanted",
    "open_older",
    "open_unfinished",
    "without_source",
]

SOURCE: Final = "source"
_Write: TypeAlias = Callable[[int, np.ndarray], None]


@dataclass
class OlderCache:
    """Rows that may be taken over."""

    path: Path
    read: Callable[[int, int], np.ndarray]
    """Reads neighbouring rows, the first and the end given; a CacheError where they changed."""
    close: Callable[[], object]
    block_rows: int
    image_digests: np.ndarray
    is_usable: np.ndarray
    n_damaged: int = 0

    @property
    def n_rows(self) -> int:
        """Number of rows, good or not."""
        return len(self.image_digests)

    def read_block(self, block: int) -> np.ndarray | None:
        """Read a block of rows; None where it changed since it was written."""
        start = block * self.block_rows
        rows = slice(start, min(start + self.block_rows, self.n_rows))
        try:
            values = self.read(rows.start, rows.stop)
        except CacheError:
            self.n_damaged += int(np.count_nonzero(self.is_usable[rows]))
            self.is_usable[rows] = False
            return None
        self.is_usable[rows] &= np.isfinite(values).all(axis=1)
        return values


def open_older(path: Path, spec: CacheSpec, tell: Callable[[str], object]) -> OlderCache | None:
    """Open a cache to take rows from it; None, and a notice, where it is damaged outside them."""
    try:
        cache = Cache.open(path)
    except CacheError:
        start = first_bytes(path.resolve())
        if is_featx(start) and is_readable_version(start):
            tell(f"not reused: {path} is damaged outside its features: all rows are computed")
            return None
        raise
    try:
        _require_same_settings(cache, spec)
    except BaseException:
        cache.close()
        raise
    features = cache.X.stored
    return OlderCache(
        path=path,
        read=lambda start, stop: features[start:stop],
        close=cache.close,
        block_rows=features.block_rows,
        image_digests=cache.image_digests,
        is_usable=(cache.status == layout.DONE) & cache.image_digests.any(axis=1),
    )


def without_source(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Give all of an identity but which images it is about."""
    return {key: value for key, value in identity.items() if key != SOURCE}


def _require_same_settings(cache: Cache, spec: CacheSpec) -> None:
    found = cache.meta["identity"]
    lines = differences(without_source(spec.identity), without_source(found))
    for name, wanted, has in (
        ("n_features", spec.n_features, cache.n_features),
        ("dtype", spec.dtype, cache.X.stored_dtype.name),
    ):
        if wanted != has:
            lines.append(f"{name}: asked for {wanted!r}, the file has {has!r}")
    if lines:
        raise CacheMismatchError(
            f"{cache.path} was made with other settings, so none of its rows can be reused: ask "
            "for the same settings, or start anew (--overwrite)",
            lines,
        )


def open_unfinished(path: Path, spec: CacheSpec, reporter: Reporter) -> OlderCache | None:
    """Open a partial file that was made as `spec` says, of other images; None if it is no such."""
    if is_flocked(path):
        return None
    try:
        header, ranges, _ = read_journal(journal_path(path))
        settings = without_source(spec.identity), without_source(header.meta["identity"])
        same_type = (header.n_features, header.dtype) == (spec.n_features, spec.dtype)
        if not same_type or differences(*settings):
            return None
        n, features_offset = header.n_rows, header.features_offset
        old = replace(
            spec,
            labels=np.full(n, -1),
            class_names=(),
            paths=["?"] * n,
            image_digests=np.zeros((0, layout.DIGEST_BYTES), "u1"),
        )
        expected = lay_out(old)  # the place of the digests depends on no name
        if expected.features_offset != features_offset:
            return None
        file = OpenFile(str(path))
        digests, is_usable = np.empty((n, layout.DIGEST_BYTES), "u1"), np.zeros(n, bool)
        file.read_into(digests, expected.offsets["image_sha256"])
        for item in verified(file.fd, ranges, old, features_offset, reporter):
            is_usable[item.start : item.stop] = True
            is_usable[list(item.failed)] = False
    except (CacheError, OSError, KeyError):
        return None

    def read(start: int, stop: int) -> np.ndarray:
        rows = np.empty((stop - start, spec.n_features), layout.feature_dtype(spec.dtype))
        file.read_into(rows, features_offset + start * spec.row_bytes)
        return rows

    return OlderCache(
        path=path,
        read=read,
        close=file.close,
        block_rows=layout.default_block_rows(spec.row_bytes),
        image_digests=digests,
        is_usable=is_usable & digests.any(axis=1),
    )


def is_same_file(one: Path, other: Path) -> bool:
    """Whether two paths mean one file; also if nothing is there yet."""
    try:
        return one == other or one.samefile(other)
    except OSError:
        return False


def copy_rows(
    older: OlderCache, spec: CacheSpec, missing: np.ndarray, write: _Write, reporter: Reporter
) -> list[str]:
    """Copy every row that is missing and can be had."""
    if not spec.image_digests.any():
        return [f"not reused: {older.path}: the digests of the wanted images are not known"]
    missing = missing & spec.image_digests.any(axis=1)
    n_wanted = int(np.count_nonzero(missing))
    with reporter.bar(n_wanted, f"reuse rows of {older.path.name}", "row") as bar:
        # A round copies a row, or finds that one cannot be had; another may hold the same image.
        while (source := _sources(older, spec, missing)).max(initial=-1) >= 0:
            for start, rows in _chunks(older, source):
                write(start, rows)
                missing[start : start + len(rows)] = False
                bar.update(len(rows))
    n_copied = n_wanted - int(np.count_nonzero(missing))
    notices = [f"reused: {n_copied:,} of {spec.n_rows:,} rows from {older.path}"]
    if older.n_damaged:
        notices.append(
            f"not reused: {older.n_damaged:,} rows of {older.path} lie in blocks that changed "
            "since they were written"
        )
    return notices


def _sources(older: OlderCache, spec: CacheSpec, missing: np.ndarray) -> np.ndarray:
    """Row of `older` for each row; shape (N,), int64, -1 where there is none."""
    source = np.full(spec.n_rows, -1)
    n_both = min(spec.n_rows, older.n_rows)
    # The same place goes first: the network need not be deterministic among equal images.
    is_same = (spec.image_digests[:n_both] == older.image_digests[:n_both]).all(axis=1)
    here = np.flatnonzero(is_same & missing[:n_both] & older.is_usable[:n_both])
    source[here] = here
    wanted, offered = np.flatnonzero(missing & (source < 0)), np.flatnonzero(older.is_usable)
    if len(wanted) == 0 or len(offered) == 0:
        return source
    names = _as_text(older.image_digests[offered])
    order = np.argsort(names, kind="stable")
    found = _as_text(spec.image_digests[wanted])
    at = np.minimum(np.searchsorted(names[order], found), len(order) - 1)
    source[wanted] = np.where(names[order][at] == found, offered[order][at], -1)
    return source


def is_wanted(older: OlderCache, spec: CacheSpec) -> np.ndarray:
    """Whether each usable row of an older cache is one of the wanted images."""
    offered = _as_text(older.image_digests[older.is_usable])
    return np.isin(offered, _as_text(spec.image_digests))


def _as_text(digests: np.ndarray) -> np.ndarray:
    # NumPy can sort byte strings; it ignores zeros at the end, all of equal length here.
    return np.ascontiguousarray(digests).view("S32").reshape(-1)


def _chunks(older: OlderCache, source: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Read the older file block by block; give the first row's number, and neighbouring rows."""
    rows = np.flatnonzero(source >= 0)
    rows = rows[np.argsort(source[rows], kind="stable")]
    blocks = source[rows] // older.block_rows
    for part in np.split(rows, np.flatnonzero(np.diff(blocks)) + 1):
        block = int(source[part[0]]) // older.block_rows
        values = older.read_block(block)
        if values is None:
            continue
        here = part[older.is_usable[source[part]]]
        inside = source[here] - block * older.block_rows
        breaks = np.flatnonzero((np.diff(here) != 1) | (np.diff(inside) != 1)) + 1
        for run, at in zip(np.split(here, breaks), np.split(inside, breaks), strict=True):
            if len(run):
                yield int(run[0]), values[at[0] : at[0] + len(at)]
