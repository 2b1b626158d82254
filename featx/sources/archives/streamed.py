"""WebDataset shards behind URLs: each streamed once to be listed, then read by ranges of bytes.

While a shard passes through a temporary file, its labels are read and its images are hashed, so
that nothing but the images themselves is read again.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from featx.errors import ReadError, SourceError, reason_of
from featx.progress import SILENT, Reporter
from featx.sources.archives.members import ArchiveFile
from featx.sources.archives.shard_labels import NAME_FILES
from featx.sources.archives.tar import index_tar, read_tar_member
from featx.sources.archives.webdataset import (
    Shard,
    SplitOfShards,
    choose_shards,
    expand_braces,
    sources_of,
)
from featx.sources.base import Source
from featx.sources.places import Remembered, Stamp
from featx.sources.tree import some
from featx.urls import download, join, name_of, parent, read_part, shown, stat_url

__all__ = ["RemoteArchive", "open_pattern", "open_streamed"]


@dataclass(frozen=True)
class RemoteArchive(ArchiveFile):
    """An archive behind a URL; read from a copy here while there is one."""

    url: str
    number: int
    copy: str | None = None

    def stamp(self) -> Stamp | None:
        """Give the size and the tag, as they were when it was listed."""
        return None if self.number < 0 else (self.n_bytes, 0, self.number)

    def open(self) -> io.FileIO:
        """Open the archive for reading."""
        return cast(io.FileIO, _Ranges(self)) if self.copy is None else io.FileIO(self.copy)


class _Ranges(io.RawIOBase):
    """A file of which each read is one request."""

    def __init__(self, archive: RemoteArchive) -> None:
        self.name, self._archive, self._at = archive.path, archive, 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (self._archive.n_bytes if whence == io.SEEK_END else 0)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._archive.n_bytes - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        data = read_part(self._archive.url, self._at, wanted)
        if len(data) < wanted:
            raise ReadError(f"{self.name!r} has changed since it was listed: start again")
        self._at += len(data)
        return data


def open_pattern(url: str, *, reporter: Reporter = SILENT) -> dict[str, Source]:
    """List the samples of the shards of a pattern such as ``s3://b/train-{000..012}.tar``."""
    urls = expand_braces(url)
    folder = parent(urls[0])
    return open_streamed(folder, [name_of(each) for each in urls], urls=urls, reporter=reporter)


def open_streamed(
    folder: str,
    names: Sequence[str],
    *,
    urls: Sequence[str] | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Source]:
    """List the samples of shards; see `open_webdataset`."""
    addresses = dict(zip(names, urls or [join(folder, name) for name in names], strict=True))
    _refuse_compressed(folder, names)
    name = name_of(folder) or "data"
    splits: dict[str, SplitOfShards] = {}
    digests: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory(prefix="featx-") as here:
        shards = choose_shards([Shard.called(each) for each in names], name, reporter)
        with reporter.bar(len(shards), f"listing {name}", "shard") as bar:
            for shard in shards:
                split = splits.setdefault(shard.split or "all", SplitOfShards())
                digests |= _add(split, shard, addresses[str(shard.path)], Path(here), reporter)
                bar.update()
        _fetch_names(folder, Path(here))
        found = sources_of(name, Path(here), splits, reporter)
    for source in found.values():
        _remember(source, digests)
    return found


def _refuse_compressed(folder: str, names: Sequence[str]) -> None:
    packed = [name for name in names if not name.lower().endswith(".tar")]
    if packed:
        raise SourceError(
            f"{shown(folder)}: {some(packed)} is compressed, and its images cannot be read one by "
            "one: pack it again as plain .tar (images are compressed already), or fetch the files"
        )


def _add(
    split: SplitOfShards, shard: Shard, url: str, folder: Path, reporter: Reporter
) -> dict[str, bytes]:
    """List one shard, and hash its images, while a copy of it is here."""
    stat, copy = stat_url(url), folder / "shard.tar"
    if stat is None:
        raise SourceError(f"there is no shard {shown(url)!r}")
    try:
        download(url, copy)
        n_bytes = copy.stat().st_size
    except OSError as error:
        raise SourceError(
            f"{shown(url)} cannot pass through {folder}: {reason_of(error)}; TMPDIR names another "
            "folder"
        ) from error
    archive = RemoteArchive(shown(url), n_bytes, 0, url, stat.number, str(copy))
    index = index_tar(archive)
    index.tell(reporter)
    n_before = len(split.paths)
    split.add(shard, index)
    split.archives[-1] = replace(archive, copy=None)
    digests = {}
    with archive.open() as stream:
        for path, (_, *where) in zip(split.paths[n_before:], split.rows[n_before:], strict=True):
            digests[path] = hashlib.sha256(read_tar_member(stream, *where)).digest()
    return digests


def _fetch_names(folder: str, here: Path) -> None:
    """Fetch the list of the classes' names, if there is one."""
    for name in NAME_FILES:
        if stat_url(join(folder, name)) is not None:
            download(join(folder, name), here / name)


def _remember(source: Source, digests: Mapping[str, bytes]) -> None:
    remembered = Remembered(source.place)
    for row, path in enumerate(source.paths):
        remembered.add(path, source.stamp(row), digests[path])
    remembered.save()
