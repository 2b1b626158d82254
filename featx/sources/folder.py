"""A folder of images on the disk: one folder for each class, with or without train/ above."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from pathlib import Path

from featx.errors import ImageError, SourceError, read_error
from featx.progress import SILENT, Reporter
from featx.sources.base import Source
from featx.sources.chosen import LayoutChoice
from featx.sources.layout import ENDINGS, LAYOUT, list_images
from featx.sources.places import Stamp, stamp_file
from featx.sources.tree import Entry, Tree, ending

__all__ = ["ENDINGS", "MOST_IMAGE_BYTES", "DiskTree", "FolderSource", "open_folder", "read_file"]

MOST_IMAGE_BYTES = 1 << 30
"""Most bytes of an encoded image: any that `featx.images.decode` takes is smaller."""

_LEADS_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES)
_AT_ONCE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class FolderSource(Source):
    """A split of a folder of images."""

    root: str

    @property
    def place(self) -> str:
        """The folder; see `Source.place`."""
        return self.root

    def stamp(self, row: int) -> Stamp | None:
        """Stamp one file; see `Source.stamp`."""
        return stamp_file(f"{self.root}/{self.paths[row]}")

    def read(self, row: int) -> bytes:
        """Read the bytes of one file; see `Source.read`."""
        return read_file(f"{self.root}/{self.paths[row]}")


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Read an image file whole, without waiting for a pipe or drinking from ``/dev/zero``."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | _AT_ONCE), "rb", buffering=0) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("cannot be read: not a regular file")
            if status.st_size > MOST_IMAGE_BYTES:
                raise ImageError(f"{status.st_size:,} bytes, more than {MOST_IMAGE_BYTES:,}")
            data = stream.readall()
            if len(data) < status.st_size:
                raise OSError(errno.EIO, f"{len(data):,} of its {status.st_size:,} bytes came")
            return data
    except OSError as error:
        raise read_error(path, error) from error
    except ValueError as error:  # a NUL inside the path
        raise ImageError("cannot be read: not a possible file name") from error


def open_folder(
    path: str | os.PathLike[str],
    *,
    layout: LayoutChoice | None = None,
    wanted: Collection[str] = (),
    reporter: Reporter = SILENT,
) -> dict[str, Source]:
    """List a folder of images.

    Images are the files with one of `ENDINGS` inside a class folder, also in its
    sub-folders, in the order of their names. Hidden files, pipes, sockets and devices are
    left out, symbolic links are followed. A link that leads nowhere is taken as an image, or as a
    folder where it has no ending; reading it is an error.
    """
    tree = DiskTree(path)
    _check_folder(tree.root)
    return {
        split: FolderSource(
            name=tree.name,
            split=split,
            class_names=found.class_names,
            labels=found.labels,
            paths=found.paths,
            root=str(tree.root),
        )
        for split, found in list_images(tree, layout, wanted=wanted, reporter=reporter).items()
    }


class DiskTree(Tree):
    """A folder on the disk."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.root = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the links
        super().__init__(self.root.name or "data", str(self.root))

    def entries(self, prefix: str) -> list[Entry]:
        """List one folder; see `Tree.entries`."""
        try:
            with os.scandir(self.root / prefix) as found:
                return [_entry(entry) for entry in found]
        except OSError as error:
            raise SourceError(f"cannot list {self.path(prefix)!r}: {error.strerror}") from error

    def identity(self, prefix: str) -> Hashable:
        """Give the file system and the number of a folder; see `Tree.identity`."""
        return _identity(self.root / prefix)

    def above(self, prefix: str) -> frozenset[Hashable]:
        """Identify a folder and those above it; see `Tree.above`."""
        real = self.root.resolve()
        inside = [self.root / prefix[:end] for end, sign in enumerate(prefix) if sign == "/"]
        return frozenset(map(_identity, (self.root, *inside, real, *real.parents)))


def _entry(found: os.DirEntry[str]) -> Entry:
    try:
        if found.is_dir():
            return Entry(found.name, "folder")
        if not found.is_file():
            found.stat()  # fails for a link that leads nowhere
            return Entry(found.name, "special")
    except OSError as error:  # such a link is listed, and reading it is the error
        if error.errno not in _LEADS_NOWHERE:
            raise
        if error.errno != errno.ELOOP and not ending(found.name):
            return Entry(found.name, "folder")  # perhaps a class, on a disk that is not mounted
    return Entry(found.name, "file")


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
        return status.st_dev, status.st_ino
    except OSError as error:
        raise SourceError(f"cannot list {str(folder)!r}: {error.strerror}") from error


def _check_folder(root: Path) -> None:
    if root.is_dir():
        return
    if root.exists():
        raise SourceError(f"{str(root)!r} is a file, not a folder: {LAYOUT}")
    missing = root
    while not missing.parent.is_dir() and missing != missing.parent:
        missing = missing.parent
    raise SourceError(f"no folder {str(root)!r}: {str(missing.parent)!r} has no {missing.name!r}")
