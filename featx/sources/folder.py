"""A folder of images: one folder for each class, with or without train/, val/ and test/ above."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featx.errors import ImageError, SourceError
from featx.progress import SILENT, Reporter
from featx.sources.base import Source
from featx.sources.splits import in_order, split_of

__all__ = ["ENDINGS", "FolderSource", "open_folder"]

ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif"})
"""Endings of the files that are taken as images, in lower case."""

_IGNORED = frozenset({"thumbs.db", "desktop.ini", "__macosx"})  # besides all that is hidden
_LAYOUT = (
    "featx reads <folder>/<class>/<image> or <folder>/train/<class>/<image> and test/ likewise"
)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class FolderSource(Source):
    """A split of a folder of images.

    Parameters
    ----------
    root : str
        The absolute folder that `paths` are relative to.
    """

    root: str

    def read(self, row: int) -> bytes:
        """Read the bytes of one file; see `Source.read`."""
        try:
            return Path(self.root, self.paths[row]).read_bytes()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ImageError(f"cannot be read: {reason}") from error


@dataclass
class _LeftOut:
    """What one walk over the folder found and did not take."""

    endings: Counter[str] = field(default_factory=Counter)
    n_outside: int = 0  # images in no class folder

    def tell(self, root: Path, reporter: Reporter) -> None:
        if self.n_outside:
            reporter.warn(f"{root.name!r}: {self.n_outside:,} images in no class folder left out")
        if self.endings:
            counts = ", ".join(
                f"{n:,} {ending if ending.isprintable() else repr(ending)}"
                for ending, n in self.endings.most_common(5)
            )
            n_files = self.endings.total()
            reporter.say(f"{root.name!r}: {n_files:,} files that are no images left out ({counts})")


def open_folder(path: str | os.PathLike[str], *, reporter: Reporter = SILENT) -> dict[str, Source]:
    """List a folder of images.

    Images are the files with one of `ENDINGS` inside a class folder, also in its
    sub-folders, in the order of their names. Hidden files are left out, symbolic links
    are followed. A link that leads nowhere is listed and fails when it is read.

    Parameters
    ----------
    path : path-like
        A folder with a folder for each class, or with ``train/``, ``val/``
        (``valid/``, ``validation/``) and ``test/`` that have them.
    reporter : Reporter, optional
        Is told about files and folders that are left out.

    Returns
    -------
    dict of str to Source
        The splits in the order train, val, test; or ``"all"`` alone.

    Raises
    ------
    SourceError
        If the folder is missing or not laid out like this.
    """
    root = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the links
    _check_folder(root)
    left_out = _LeftOut()
    prefixes = _find_splits(root, left_out, reporter)
    images = {split: _list_classes(root, prefixes[split], left_out) for split in prefixes}
    _check_same_classes(images, prefixes)
    left_out.tell(root, reporter)
    return {split: _source(root, split, classes) for split, classes in images.items()}


def _source(root: Path, split: str, classes: dict[str, list[str]]) -> FolderSource:
    counts = [len(paths) for paths in classes.values()]
    return FolderSource(
        name=root.name or "data",
        split=split,
        class_names=tuple(classes),
        labels=np.repeat(np.arange(len(classes), dtype=np.int64), counts),
        paths=tuple(path for paths in classes.values() for path in paths),
        root=str(root),
    )


def _check_folder(root: Path) -> None:
    if root.is_dir():
        return
    if root.exists():
        raise SourceError(f"{str(root)!r} is a file, not a folder: {_LAYOUT}")
    missing = root
    while not missing.parent.is_dir() and missing != missing.parent:
        missing = missing.parent
    raise SourceError(f"no folder {str(root)!r}: {str(missing.parent)!r} has no {missing.name!r}")


def _find_splits(root: Path, left_out: _LeftOut, reporter: Reporter) -> dict[str, str]:
    """Map each split to its folder's prefix; {"all": ""} where the classes lie in the root.

    A class may be called "train": its folder counts as a split only if all folders
    are called like splits, or if it has folders and no images of its own.
    """
    folders, files = _entries(root, "")
    named = [entry.name for entry in folders if split_of(entry.name)]
    if len(named) < len(folders):
        named = [name for name in named if _holds_classes(root, name)]
    if not named:
        return {"all": ""}
    left_out.n_outside += _n_images(files)
    strays = [entry.name for entry in folders if entry.name not in named]
    if strays:
        reporter.warn(f"{root.name!r}: only {_some(named)} read, {_some(strays)} left out")
    return _ordered_splits(root, named)


def _ordered_splits(root: Path, named: list[str]) -> dict[str, str]:
    prefixes: dict[str, str] = {}
    for name in named:
        split = split_of(name) or name
        if split in prefixes:
            both = _some([prefixes[split].rstrip("/"), name])
            raise SourceError(f"{str(root)!r} has both {both} for the split {split}: keep one")
        prefixes[split] = f"{name}/"
    return in_order(prefixes)


def _holds_classes(root: Path, name: str) -> bool:
    folders, files = _entries(root, f"{name}/")
    return bool(folders) and not _n_images(files)


def _n_images(files: list[os.DirEntry[str]]) -> int:
    return sum(_ending(entry.name) in ENDINGS for entry in files)


def _list_classes(root: Path, prefix: str, left_out: _LeftOut) -> dict[str, list[str]]:
    """List the images of each class under root/prefix, as paths relative to root."""
    folders, files = _entries(root, prefix)
    where = str(root / prefix)
    n_outside = _n_images(files)
    left_out.n_outside += n_outside
    if n_outside and not folders:
        raise SourceError(
            f"{where!r} has {n_outside:,} images but no class folders: move the images of "
            "each class into a folder with the name of the class"
        )
    if not folders:
        raise SourceError(f"{where!r} has no images and no class folders: {_LAYOUT}")
    above = _folders_above(root, prefix)
    names = [entry.name for entry in folders]
    classes = {name: sorted(_walk(root, f"{prefix}{name}/", above, left_out)) for name in names}
    _check_classes(where, classes)
    return classes


def _check_classes(where: str, classes: dict[str, list[str]]) -> None:
    empty = [name for name, paths in classes.items() if not paths]
    if len(empty) == len(classes):
        raise SourceError(
            f"{where!r} has no images in {_some(empty)}: "
            f"image files end in {', '.join(sorted(ENDINGS))}"
        )
    if empty:
        raise SourceError(
            f"{where!r} has no images in {_some(empty)}: add images or remove the folder"
        )
    if len(classes) == 1:
        [name] = classes
        raise SourceError(
            f"{where!r} has one class only ({name!r}) and a classifier needs two: add another, "
            f"or give {str(Path(where, name))!r} if the folders in it are the classes"
        )


def _folders_above(root: Path, prefix: str) -> frozenset[tuple[int, int]]:
    """Identify the folders above the classes: a link back to one must not be followed."""
    real = root.resolve()
    return frozenset(_identity(folder) for folder in (root / prefix, real, *real.parents))


def _walk(
    root: Path, top: str, above: frozenset[tuple[int, int]], left_out: _LeftOut
) -> Iterator[str]:
    """Give the images below root/top; each real folder once, so that loops of links end."""
    pending, seen = [top], set(above)
    while pending:
        prefix = pending.pop()
        identity = _identity(root / prefix)
        if identity in seen:
            continue
        seen.add(identity)
        folders, files = _entries(root, prefix)
        pending += [f"{prefix}{entry.name}/" for entry in reversed(folders)]
        for entry in files:
            ending = _ending(entry.name)
            if ending in ENDINGS and (entry.is_symlink() or entry.is_file()):
                yield prefix + entry.name
            else:
                left_out.endings[ending or "without ending"] += 1


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
        return status.st_dev, status.st_ino
    except OSError as error:
        raise SourceError(f"cannot list {str(folder)!r}: {error.strerror}") from error


def _entries(root: Path, prefix: str) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
    """Give the folders and the other entries of root/prefix by name, without the hidden ones."""
    try:
        with os.scandir(root / prefix) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(f"cannot list {str(root / prefix)!r}: {error.strerror}") from error
    shown = [e for e in entries if e.name[0] != "." and e.name.lower() not in _IGNORED]
    folders = [entry for entry in shown if _is_folder(entry)]
    return folders, [entry for entry in shown if not _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - 60,000 Path objects are slow


def _some(names: Iterable[str], n: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(repr(name) for name in names[:n]) + more


def _check_same_classes(images: dict[str, dict[str, list[str]]], prefixes: dict[str, str]) -> None:
    first, *others = images
    for other in others:
        for left, right in ((first, other), (other, first)):
            lacking = [name for name in images[left] if name not in images[right]]
            if lacking:
                raise SourceError(
                    f"{_some(lacking)} in {prefixes[left]} but not in {prefixes[right]}: "
                    "all splits need the same class folders"
                )
