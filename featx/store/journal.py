"""Which rows of a run are written, which are on the disk, and the journal that says so.

The journal of a partial file is a text of lines ``checksum JSON``. The first line says which run
this is; each other line names rows that were durable before the line was written.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from featx.errors import CacheError
from featx.records import parse_json
from featx.store import disk, layout

__all__ = ["Journal", "JournalHeader", "Range", "RowStates", "journal_path", "read_journal"]

_VERSION: Final = 1
_CHECK_DIGITS: Final = 16
_GROUP_BYTES: Final = 128 << 20
_GROUP_SECONDS: Final = 1.0


@dataclass(frozen=True)
class JournalHeader:
    """What a partial file will become."""

    fingerprint: str
    content: str
    n_rows: int
    n_features: int
    row_bytes: int
    dtype: str
    features_offset: int
    file_bytes: int
    meta: dict[str, Any]
    version: int = _VERSION


@dataclass
class Range:
    """Rows that are on the disk."""

    start: int
    stop: int
    crc: int
    failed: dict[int, str] = field(default_factory=dict)
    run: str = ""

    @property
    def n_rows(self) -> int:
        """How many they are."""
        return self.stop - self.start


def journal_path(partial: Path) -> Path:
    """Where the journal of a partial file lies."""
    return partial.with_name(partial.name + ".journal")


def _line(value: dict[str, Any]) -> bytes:
    body = json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")
    return hashlib.sha256(body).hexdigest()[:_CHECK_DIGITS].encode() + b" " + body + b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    check, _, body = line.partition(b" ")
    if hashlib.sha256(body).hexdigest()[:_CHECK_DIGITS].encode() != check:
        return None
    try:
        value = parse_json(body)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _parse_range(line: bytes, n_rows: int) -> Range | None:
    value = _parse(line)
    try:
        found = Range(**value) if value is not None else None
        if found is None or not 0 <= found.start < found.stop <= n_rows:
            return None
        found.failed = {int(row): str(reason) for row, reason in found.failed.items()}
    except (TypeError, ValueError, AttributeError):
        return None
    return found if all(found.start <= row < found.stop for row in found.failed) else None


def read_journal(path: Path) -> tuple[JournalHeader, list[Range], int]:
    """Read a journal; lines that are torn, damaged or overlap earlier ones are left out."""
    first, *lines = path.read_bytes().split(b"\n")
    header = _parse_header(first)
    if lines and lines[-1] == b"":
        lines.pop()
    found = [_parse_range(line, header.n_rows) for line in lines]
    ranges: list[Range] = []
    is_taken = np.zeros(header.n_rows, bool)
    for item in found:
        if item is not None and not is_taken[item.start : item.stop].any():
            ranges.append(item)
            is_taken[item.start : item.stop] = True
    return header, ranges, len(found) - len(ranges)


def _parse_header(line: bytes) -> JournalHeader:
    value = _parse(line)
    if value is None:
        raise CacheError("the first line of its journal is damaged")
    if value.get("version") != _VERSION:
        raise CacheError("its journal was written by another version of featx")
    try:
        return JournalHeader(**value)
    except TypeError as error:
        raise CacheError("its journal was written by another version of featx") from error


class Journal:
    """A journal that is being written."""

    def __init__(self, path: Path, fd: int, n_bytes: int) -> None:
        self.path, self.fd, self._n_bytes = path, fd, n_bytes

    @classmethod
    def create(cls, path: Path, header: JournalHeader, ranges: Iterable[Range] = ()) -> Journal:
        """Write a journal whole, durably, in one step, in place of any other."""
        draft = path.with_name(path.name + ".new")
        text = b"".join([_line(asdict(header)), *(_line(asdict(r)) for r in ranges)])
        draft.unlink(missing_ok=True)  # of a killed run, or a link, which is never written through
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            disk.pwrite(fd, text, 0)
            disk.fsync(fd)
            disk.replace(draft, path)
            disk.fsync_folder(path.parent)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, len(text))

    def append(self, ranges: Iterable[Range]) -> None:
        """Write a line for each range, durably."""
        text = b"".join(_line(asdict(r)) for r in ranges)
        disk.pwrite(self.fd, text, self._n_bytes)
        disk.fdatasync(self.fd)
        self._n_bytes += len(text)

    def close(self) -> None:
        """Close the descriptor; the file stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class RowStates:
    """The state of each row of a run."""

    def __init__(self, n_rows: int) -> None:
        self.status = np.zeros(n_rows, "u1")
        self.is_committed = np.zeros(n_rows, bool)
        self.failed: dict[int, str] = {}
        self.pending: list[Range] = []
        self._pending_bytes = 0
        self._committed_at = time.monotonic()

    @property
    def n_committed(self) -> int:
        """Number of durable rows."""
        return int(np.count_nonzero(self.is_committed))

    @property
    def is_due(self) -> bool:
        """Whether enough was written, or enough time went by, for a commit."""
        is_late = time.monotonic() - self._committed_at >= _GROUP_SECONDS
        return self._pending_bytes >= _GROUP_BYTES or is_late

    def adopt(self, item: Range) -> None:
        """Count rows that an earlier run made durable."""
        self._note(item)
        self.is_committed[item.start : item.stop] = True

    def queue(self, item: Range, n_bytes: int) -> Range:
        """Count rows that were written just now."""
        self._note(item)
        self._pending_bytes += n_bytes
        last = self.pending[-1] if self.pending else None
        if last is None or last.stop != item.start:
            self.pending.append(item)
            return item
        last.stop = item.stop
        last.failed.update(item.failed)
        return last

    def take_group(self) -> list[Range]:
        """Begin a new group; give the ranges of the old one, which may be none."""
        self._committed_at = time.monotonic()
        group, self.pending, self._pending_bytes = self.pending, [], 0
        return group

    def end_commit(self, group: list[Range]) -> None:
        """Count the rows of a group as durable."""
        for item in group:
            self.is_committed[item.start : item.stop] = True

    def _note(self, item: Range) -> None:
        self.status[item.start : item.stop] = layout.DONE
        self.status[list(item.failed)] = layout.FAILED
        self.failed.update(item.failed)
