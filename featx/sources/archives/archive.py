"""Images inside an archive, read in place: the layouts of folders, or WebDataset."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import numpy as np

from featx.errors import SourceError
from featx.progress import SILENT, Reporter
from featx.sources.archives.members import (
    TAR_ENDINGS,
    ArchiveFile,
    ArchiveSource,
    Index,
    archive_stem,
)
from featx.sources.archives.tar import TarSource, index_tar, is_header
from featx.sources.archives.unpacked import is_compressed, plain_tar
from featx.sources.archives.webdataset import looks_like_webdataset, open_indexed
from featx.sources.archives.zip import ZipSource, index_zip
from featx.sources.base import Source
from featx.sources.beside import is_metadata
from featx.sources.chosen import LayoutChoice
from featx.sources.layout import ENDINGS, ending, is_shown, list_images, others, some
from featx.sources.recognise import wrapper
from featx.sources.tree import MemberTree, View

__all__ = ["ARCHIVE_ENDINGS", "is_archive", "open_archive", "open_unlabelled"]

ARCHIVE_ENDINGS = (".zip", *TAR_ENDINGS)
"""Endings of the files that are taken as archives, in lower case."""


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a path is called like an archive; it need not be there.

    Examples
    --------
    >>> is_archive("photos.tar.gz"), is_archive("photos.csv")
    (True, False)
    """
    return os.fspath(path).lower().endswith(ARCHIVE_ENDINGS)


def open_archive(
    path: str | os.PathLike[str],
    *,
    layout: LayoutChoice | None = None,
    wanted: Collection[str] = (),
    data_dir: Path | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Source]:
    """List the images of an archive.

    The layouts are those of `featx.sources.folder.open_folder`; one folder that holds
    everything (``cifar10/train/...``) is looked through. A tar archive may also be a shard
    of a WebDataset. Nothing is unpacked but a compressed tar, once, to a plain one.
    """
    path = Path(path).expanduser().absolute()
    if _is_zip(path):
        return _open(index_zip(path), path, ZipSource, layout, wanted, reporter)
    index = index_tar(plain_tar(path, data_dir, reporter=reporter))
    if not layout and looks_like_webdataset(index):
        return open_indexed(path, index, reporter=reporter)
    return _open(index, path, TarSource, layout, wanted, reporter)


def open_unlabelled(
    path: str | os.PathLike[str], *, data_dir: Path | None = None, reporter: Reporter = SILENT
) -> Source:
    """List every image of an archive, whatever its folders."""
    path = Path(path).expanduser().absolute()
    kind: type[ArchiveSource] = ZipSource if _is_zip(path) else TarSource
    is_zip = kind is ZipSource
    index = index_zip(path) if is_zip else index_tar(plain_tar(path, data_dir, reporter=reporter))
    index.tell(reporter)
    names = sorted(name for name in index.files if _is_image(name))
    if not names:
        raise SourceError(f"{str(path)!r} has no images among its {len(index.files):,} files")
    if len(names) < len(index.files):
        n_others = len(index.files) - len(names)
        reporter.say(f"{str(path)!r}: {others(n_others)} left out")
    return kind(
        name=archive_stem(path),
        split="all",
        class_names=(),
        labels=np.full(len(names), -1, np.int64),
        paths=tuple(names),
        archives=(index.archive,),
        members=kind.table(index.rows[index.files[name]] for name in names),
    )


def _is_image(name: str) -> bool:
    return ending(name) in ENDINGS and all(map(is_shown, name.split("/")))


def _is_zip(path: Path) -> bool:
    """Tell by the first bytes, and by the name where these are of no archive at all."""
    with ArchiveFile.of(path).open() as stream:
        start = stream.read(512)
    is_tar = is_header(start) or is_compressed(start)
    return start[:2] == b"PK" or (path.suffix.lower() == ".zip" and not is_tar)


def _open(
    index: Index,
    path: Path,
    kind: type[ArchiveSource],
    choice: LayoutChoice | None,
    wanted: Collection[str],
    reporter: Reporter,
) -> dict[str, Source]:
    index.tell(reporter)
    tree = MemberTree(archive_stem(path), str(path), index.files, index.folders)
    if not choice and (metadata := [name for name in index.files if is_metadata(name)]):
        reporter.warn(
            f"{str(path)!r}: {some(metadata)} in the archive not read, the classes are the "
            "folders: to take its labels, unpack the archive and give that file after --data"
        )
    top = wrapper(View(tree, ENDINGS))
    return {
        split: kind(
            name=tree.name,
            split=split,
            class_names=found.class_names,
            labels=found.labels,
            paths=tuple(name.removeprefix(top) for name in found.paths),
            archives=(index.archive,),
            members=kind.table(index.rows[index.files[name]] for name in found.paths),
        )
        for split, found in list_images(tree, choice, wanted=wanted, reporter=reporter).items()
    }
