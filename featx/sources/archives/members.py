"""Files inside an archive: their names made safe, where their bytes lie, and reading them."""

from __future__ import annotations

import errno
import io
import os
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

import numpy as np

from featx.errors import ReadError, SourceError, read_error
from featx.progress import Reporter
from featx.sources.base import Source
from featx.sources.places import Stamp, stamp_file

__all__ = [
    "MOST_MEMBERS",
    "TAR_ENDINGS",
    "ArchiveFile",
    "ArchiveSource",
    "Index",
    "archive_stem",
    "clean_name",
    "read_range",
]

TAR_ENDINGS = (
    *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst"),
)
"""Endings of tar archives, in lower case."""

MOST_MEMBERS = 20_000_000
"""Most members of one archive; the largest public sets of images have 14 million."""

_LONGEST_NAME = 4096  # as the paths of Linux
_DRIVE = re.compile("[A-Za-z]:")


class _Stream(io.FileIO):
    """A file whose errors of reading name it."""

    def readinto(self, buffer: Any) -> int | None:
        try:
            return super().readinto(buffer)
        except OSError as error:
            raise read_error(self.name, error) from error

    def read(self, size: int | None = -1) -> bytes:
        try:
            return super().read(size) or b""
        except OSError as error:
            raise read_error(self.name, error) from error


@dataclass(frozen=True)
class ArchiveFile:
    """An archive on the disk, and what tells whether it is still the same.

    Nothing is kept open between reads. So a source goes to worker processes, forked or spawned,
    and is read by several threads, with no handle to share; opening takes microseconds.
    """

    path: str
    n_bytes: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Look at an archive."""
        try:
            status = path.stat()
        except OSError as error:
            raise SourceError(f"cannot read {str(path)!r}: {error.strerror}") from error
        if not path.is_file():
            raise SourceError(f"{str(path)!r} is no archive but a folder or a device")
        return cls(str(path.absolute()), status.st_size, status.st_mtime_ns)

    def stamp(self) -> Stamp | None:
        """Tell a changed archive from an unchanged one; see `Source.stamp`."""
        return stamp_file(self.path)

    def open(self) -> io.FileIO:
        """Open the archive for reading."""
        try:
            stream = _Stream(self.path)
            status = os.fstat(stream.fileno())
        except OSError as error:
            raise read_error(self.path, error) from error
        if (status.st_size, status.st_mtime_ns) != (self.n_bytes, self.changed_ns):
            stream.close()
            raise ReadError(f"{self.path!r} has changed since it was listed: start again")
        return stream


@dataclass
class Index:
    """What one archive holds."""

    archive: ArchiveFile
    files: dict[str, int] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    rows: list[tuple[int, ...]] = field(default_factory=list)
    _left_out: Counter[str] = field(default_factory=Counter)
    _example: dict[str, str] = field(default_factory=dict)

    def add_file(self, raw: str, row: tuple[int, ...]) -> None:
        """Take a file, or leave it out if its name is not safe."""
        name = clean_name(raw)
        if name is None:
            self.leave_out("members with names that lead elsewhere", raw)
            return
        if name in self.files:
            raise SourceError(
                f"{self.archive.path!r} has {name!r} twice (members {self.files[name] + 1:,} and "
                f"{len(self.rows) + 1:,} of its files): pack it again with one of them"
            )
        if len(self.rows) >= MOST_MEMBERS:
            raise SourceError(f"{self.archive.path!r} has more than {MOST_MEMBERS:,} files")
        self.files[name] = len(self.rows)
        self.rows.append(row)

    def add_folder(self, raw: str) -> None:
        """Take a folder, so that an empty class is seen."""
        name = clean_name(raw)
        if name:
            self.folders.add(name)
        elif raw.strip("./"):
            self.leave_out("members with names that lead elsewhere", raw)

    def leave_out(self, kind: str, raw: str) -> None:
        """Count a member that is not taken."""
        self._left_out[kind] += 1
        self._example.setdefault(kind, raw)

    def tell(self, reporter: Reporter) -> None:
        """Warn of all that was left out, on one line."""
        if self._left_out:
            counts = ", ".join(
                f"{n:,} {kind} ({self._example[kind][:80]!r})"
                for kind, n in self._left_out.most_common()
            )
            reporter.warn(f"{Path(self.archive.path).name!r}: {counts} left out")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ArchiveSource(Source):
    """Images inside archives, read in place."""

    fields: ClassVar[np.dtype[np.void]]
    """Type of `members`."""

    per_row = (*Source.per_row, "members")

    archives: tuple[ArchiveFile, ...]
    members: np.ndarray

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.members.shape != self.labels.shape:
            raise ValueError("members must give one image for each label")

    @property
    def place(self) -> str | None:
        """The archive, or the folder of the shards; see `Source.place`."""
        paths = [archive.path for archive in self.archives]
        return os.path.commonpath(paths) if paths else None

    def stamp(self, row: int) -> Stamp | None:
        """Stamp the archive of one image; see `Source.stamp`."""
        archive: ArchiveFile = self.archives[self.members[row]["file"]]
        return archive.stamp()

    def read(self, row: int) -> bytes:
        """Read the bytes of one member; see `Source.read`."""
        member = self.members[row]
        with self.archives[member["file"]].open() as stream:
            return self._read(stream, member)

    @classmethod
    def table(cls, rows: Iterable[tuple[int, ...]]) -> np.ndarray:
        """Make `members` of rows of an `Index`."""
        return np.array(list(rows), cls.fields)

    @abstractmethod
    def _read(self, stream: BinaryIO, member: Any) -> bytes:
        """Read one member from its open archive."""


def clean_name(raw: str) -> str | None:
    """Give the name of a member as its path below the archive.

    Examples
    --------
    >>> clean_name("./train//cat/1.jpg"), clean_name("../1.jpg")
    ('train/cat/1.jpg', None)
    """
    if raw.startswith("/") or "\\" in raw or "\0" in raw or _DRIVE.match(raw):
        return None
    parts = [part for part in raw.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or len(raw) > _LONGEST_NAME:
        return None
    return "/".join(parts)


def archive_stem(path: Path) -> str:
    """Give the name of an archive without its ending: ``cifar10`` for ``cifar10.tar.xz``."""
    name = path.name
    found = [end for end in (*TAR_ENDINGS, ".zip") if name.lower().endswith(end)]
    return (name[: -max(map(len, found))] if found else path.stem) or "data"


def read_range(stream: BinaryIO, offset: int, n_bytes: int) -> bytes:
    """Read a piece of a file."""
    stream.seek(offset)
    data = stream.read(n_bytes)
    while len(data) < n_bytes and (more := stream.read(n_bytes - len(data))):
        data += more
    if len(data) < n_bytes and offset + len(data) < stream.seek(0, os.SEEK_END):
        error = OSError(errno.EIO, f"{len(data):,} of {n_bytes:,} bytes came")
        raise read_error(stream.name, error)
    return data
