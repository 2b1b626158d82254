"""Partial files: made whole before the first image, taken up again after a stop."""

from __future__ import annotations

import errno
import functools
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from featx.atomic import is_open_as, try_flock, unlock
from featx.errors import CacheError
from featx.progress import Reporter
from featx.store import disk
from featx.store.file_layout import FileLayout
from featx.store.journal import Journal, JournalHeader, Range, journal_path, read_journal
from featx.store.spec import CacheSpec
from featx.store.threads import in_threads

__all__ = [
    "Partial",
    "adopt",
    "create",
    "describe_partial",
    "discard",
    "find_begun",
    "find_partials",
    "summarize_partial",
    "sweep",
    "verified",
    "write_layout",
]

_SUFFIX: Final = ".partial"


@dataclass
class Partial:
    """A partial file that this process writes."""

    path: Path
    fd: int
    journal: Journal
    ranges: list[Range]

    def close(self) -> None:
        """Close both files; they stay."""
        self.journal.close()
        if self.fd >= 0:
            unlock(self.fd)
            os.close(self.fd)
            self.fd = -1


def find_partials(target: str | os.PathLike[str]) -> list[Path]:
    """Partial files of a cache, in the order of their names."""
    target = Path(target)
    if not target.parent.is_dir():
        return []
    start = target.name + "."
    names = (p for p in target.parent.iterdir() if p.name.startswith(start))
    return sorted(p for p in names if p.name.endswith(_SUFFIX) and not p.is_symlink())


def find_begun(target: Path, spec: CacheSpec) -> dict[str, Any] | None:
    """Give what the fullest partial file of the same features records, if it has any row."""
    found = []
    for path in find_partials(target):
        with suppress(CacheError, OSError):
            header, ranges, _ = read_journal(journal_path(path))
            if (header.fingerprint, header.content) == (spec.fingerprint, spec.content):
                found.append((sum(item.n_rows for item in ranges), path, header.meta))
    n_rows, _, meta = max(found, default=(0, None, None))
    return meta if n_rows else None


def summarize_partial(path: Path) -> dict[str, Any]:
    """Describe a partial file by its journal; see `featx.store.read_summary`."""
    try:
        with disk.translated(f"cannot read the journal of {path}"):
            header, ranges, _ = read_journal(journal_path(path))
    except CacheError as error:
        raise CacheError(f"{path}: {error}") from error
    return {
        "path": str(path),
        "complete": False,
        "n_rows": header.n_rows,
        "n_features": header.n_features,
        "dtype": header.dtype,
        "n_done": sum(item.n_rows - len(item.failed) for item in ranges),
        "n_failed": sum(len(item.failed) for item in ranges),
        "n_classes": None,
        "file_bytes": path.stat().st_size,
        "fingerprint": header.fingerprint,
        "meta": header.meta,
        "failed": [],
    }


def describe_partial(path: Path) -> str:
    """Say in one line how far a partial file is, and how to go on."""
    mend = "run the same featx extract again to resume it"
    try:
        found = summarize_partial(path)
    except CacheError:
        return f"incomplete, and its journal is missing or damaged ({path.name}): {mend}"
    n_rows = found["n_done"] + found["n_failed"]
    return f"incomplete: {n_rows:,} of {found['n_rows']:,} rows are written ({path.name}): {mend}"


def sweep(target: Path) -> None:
    """Remove journals whose partial file was finished or removed.

    No lock is needed: a partial file is there before its journal is, and a run
    needs no journal once its file has the target's name.
    """
    for path in _orphans(target):
        disk.unlink(path)


def has_leftovers(target: Path) -> bool:
    """Whether an unfinished, or a killed, run left anything beside a cache."""
    return bool(find_partials(target) or _orphans(target))


def _orphans(target: Path) -> list[Path]:
    found = []
    for path in target.parent.iterdir():
        partial, is_journal, rest = path.name.rpartition(_SUFFIX + ".journal")
        is_ours = path.name.startswith(target.name + ".") and is_journal and rest in ("", ".new")
        if is_ours and not path.with_name(partial + _SUFFIX).exists():
            found.append(path)
    return found


def discard(path: Path) -> None:
    """Remove a partial file and its journal."""
    disk.unlink(path)
    journal = journal_path(path)
    disk.unlink(journal)
    disk.unlink(journal.with_name(journal.name + ".new"))


def create(target: Path, spec: CacheSpec, file_layout: FileLayout) -> Partial:
    """Make a partial file with all its blocks, and its journal, durably."""
    disk.require_space(target.parent, file_layout.file_bytes, target.name)
    token = f"{spec.fingerprint[:12]}-{secrets.token_hex(4)}"
    path = target.with_name(f"{target.name}.{token}{_SUFFIX}")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try_flock(fd)
        _allocate(fd, file_layout, target)
        write_layout(fd, file_layout)
        disk.fsync(fd)
        journal = Journal.create(journal_path(path), _header(spec, file_layout))
    except BaseException:
        os.close(fd)
        discard(path)
        raise
    return Partial(path, fd, journal, [])


def _allocate(fd: int, file_layout: FileLayout, target: Path) -> None:
    try:
        disk.allocate(fd, file_layout.file_bytes)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(target.parent).free
        raise disk.no_space(target.parent, file_layout.file_bytes, free, target.name) from error


def write_layout(fd: int, file_layout: FileLayout) -> None:
    """Write all of a file but its features."""
    disk.pwrite(fd, file_layout.head, 0)
    disk.pwrite(fd, file_layout.tail, file_layout.tail_offset)


def _header(spec: CacheSpec, file_layout: FileLayout) -> JournalHeader:
    return JournalHeader(
        fingerprint=spec.fingerprint,
        content=spec.content,
        n_rows=spec.n_rows,
        n_features=spec.n_features,
        row_bytes=spec.row_bytes,
        dtype=spec.dtype,
        features_offset=file_layout.features_offset,
        file_bytes=file_layout.file_bytes,
        meta={**spec.meta, "identity": dict(spec.identity)},
    )


def adopt(
    target: Path, spec: CacheSpec, file_layout: FileLayout, reporter: Reporter
) -> tuple[Partial | None, list[str]]:
    """Take up the fullest partial file that was made for the same features."""
    notices: list[str] = []
    candidates: list[tuple[int, Path]] = []
    for path in find_partials(target):
        try:
            n_rows = _n_matching_rows(path, spec, file_layout)
        except FileNotFoundError:
            notices += _remove_empty(path)
        except (CacheError, OSError) as error:
            size = disk.readable_bytes(path.stat().st_size) if path.exists() else "gone"
            notices.append(f"left alone: {path} ({size}): {error}; delete it if nobody needs it")
        else:
            candidates.append((n_rows, path))
    for _, path in sorted(candidates, reverse=True):
        partial, reasons = _take(path, spec, file_layout, reporter)
        notices += reasons
        if partial is not None:
            return partial, notices
    return None, notices


def _remove_empty(path: Path) -> list[str]:
    # The journal is made last and durably, so without one no row was ever promised.
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        if try_flock(fd) is not True:
            return [f"left alone: {path}: another process is making it"]
        discard(path)
        return [f"removed: {path}: it was stopped before its first row"]
    finally:
        os.close(fd)


def _n_matching_rows(path: Path, spec: CacheSpec, file_layout: FileLayout) -> int:
    header, ranges, _ = read_journal(journal_path(path))
    if header.fingerprint != spec.fingerprint:
        raise CacheError("it was made with other settings")
    if header.content != spec.content:
        raise CacheError("it was made from other paths, labels, class names or images")
    if header.features_offset != file_layout.features_offset:
        raise CacheError("another version of HDF5 laid it out")
    if path.stat().st_size < file_layout.tail_offset:
        raise CacheError("it is shorter than its journal says")
    return sum(item.n_rows for item in ranges)


def _take(
    path: Path, spec: CacheSpec, file_layout: FileLayout, reporter: Reporter
) -> tuple[Partial | None, list[str]]:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError as error:
        return None, [f"left alone: {path}: {error.strerror}"]
    try:
        if try_flock(fd) is not True or not is_open_as(fd, path):
            os.close(fd)
            return None, [f"left alone: {path}: another process is writing it, or it has no lock"]
        _, ranges, n_dropped = read_journal(journal_path(path))
        good = list(verified(fd, ranges, spec, file_layout.features_offset, reporter))
        journal = Journal.create(journal_path(path), _header(spec, file_layout), good)
    except BaseException:
        os.close(fd)
        raise
    n_rows = sum(item.n_rows for item in good)
    notices = [f"resumed: {path}: {n_rows:,} of {spec.n_rows:,} rows are there"]
    if n_dropped or len(good) < len(ranges):
        notices.append(
            f"computed again: {n_dropped} damaged lines of its journal, "
            f"{len(ranges) - len(good)} ranges of rows that changed since they were written"
        )
    return Partial(path, fd, journal, good), notices


def verified(
    fd: int, ranges: list[Range], spec: CacheSpec, features_offset: int, reporter: Reporter
) -> Iterator[Range]:
    """Give the ranges whose bytes are those that were journalled."""

    def crc(item: Range) -> int:
        start = features_offset + item.start * spec.row_bytes
        pieces = disk.read_pieces(fd, start, item.n_rows * spec.row_bytes)
        return functools.reduce(lambda value, piece: zlib.crc32(piece, value), pieces, 0)

    total = sum(item.n_rows for item in ranges)
    with reporter.bar(total, "check the rows there are", "row") as bar:
        for item, actual in zip(ranges, in_threads(crc, ranges), strict=True):
            bar.update(item.n_rows)
            if actual == item.crc:
                yield item
