"""The layout of images in folders: one folder for each class, with or without train/ above."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from featx.errors import SourceError
from featx.progress import SILENT, Reporter
from featx.sources.splits import in_order, split_of
from featx.sources.tree import Entry, Tree

__all__ = [
    "ENDINGS",
    "LAYOUT",
    "Listing",
    "check_two_classes",
    "common_top",
    "ending",
    "is_shown",
    "list_images",
    "some",
]

ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif"})
"""Endings of the files that are taken as images, in lower case."""

LAYOUT = "featx reads <folder>/<class>/<image> or <folder>/train/<class>/<image> and test/ likewise"
"""What is allowed, for the texts of errors."""

_IGNORED = frozenset({"thumbs.db", "desktop.ini", "__macosx"})  # besides all that is hidden


@dataclass(frozen=True)
class Listing:
    """The images of one split.

    Parameters
    ----------
    class_names : tuple of str
        In the order of the labels.
    labels : ndarray of int64, shape (N,)
        Index into `class_names`.
    paths : tuple of str
        Relative to the root.
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    paths: tuple[str, ...]


@dataclass
class _LeftOut:
    """What one walk over the folder found and did not take."""

    endings: Counter[str] = field(default_factory=Counter)
    n_outside: int = 0  # images in no class folder

    def tell(self, name: str, reporter: Reporter) -> None:
        if self.n_outside:
            reporter.warn(f"{name!r}: {self.n_outside:,} images in no class folder left out")
        if self.endings:
            counts = ", ".join(
                f"{n:,} {ending if ending.isprintable() else repr(ending)}"
                for ending, n in self.endings.most_common(5)
            )
            n_files = self.endings.total()
            reporter.say(f"{name!r}: {n_files:,} files that are no images left out ({counts})")


def list_images(tree: Tree, *, reporter: Reporter = SILENT) -> dict[str, Listing]:
    """Find the splits, the classes and the images of a tree.

    Images are the files with one of `ENDINGS` inside a class folder, also in its
    sub-folders, in the order of their names. Hidden files are left out.

    Parameters
    ----------
    tree : Tree
        A folder with a folder for each class, or with ``train/``, ``val/``
        (``valid/``, ``validation/``) and ``test/`` that have them.
    reporter : Reporter, optional
        Is told about files and folders that are left out.

    Returns
    -------
    dict of str to Listing
        The splits in the order train, val, test; or ``"all"`` alone.

    Raises
    ------
    SourceError
        If the tree is not laid out like this.
    """
    left_out = _LeftOut()
    prefixes = _find_splits(tree, left_out, reporter)
    images = {split: _list_classes(tree, prefixes[split], left_out) for split in prefixes}
    _check_same_classes(images, prefixes)
    left_out.tell(tree.name, reporter)
    return {split: _listing(classes) for split, classes in images.items()}


def common_top(tree: Tree) -> str:
    """Give the prefix of the one folder that holds everything, as archives often have it.

    Parameters
    ----------
    tree : Tree
        As it lies in the archive.

    Returns
    -------
    str
        ``"cifar10/"``; or ``""`` where the folder is a split, or has images or no folders of
        its own, and so may be a class.
    """
    folders, files = _entries(tree, "")
    if len(folders) != 1 or split_of(folders[0].name) or _n_images(files):
        return ""
    top = folders[0].name
    return f"{top}/" if _holds_classes(tree, top) else ""


def is_shown(name: str) -> bool:
    """Whether a file or folder counts: it is not hidden, nor a system's own, as Thumbs.db is."""
    return name[0] != "." and name.lower() not in _IGNORED


def ending(name: str) -> str:
    """Give the ending of a file's name in lower case, as in `ENDINGS`."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - 60,000 Path objects are slow


def some(names: Iterable[str], n: int = 5) -> str:
    """Write the first few of many names, for a message on one line."""
    names = list(names)
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(repr(name) for name in names[:n]) + more


def _listing(classes: dict[str, list[str]]) -> Listing:
    counts = [len(paths) for paths in classes.values()]
    return Listing(
        class_names=tuple(classes),
        labels=np.repeat(np.arange(len(classes), dtype=np.int64), counts),
        paths=tuple(path for paths in classes.values() for path in paths),
    )


def _find_splits(tree: Tree, left_out: _LeftOut, reporter: Reporter) -> dict[str, str]:
    """Map each split to its folder's prefix; {"all": ""} where the classes lie in the root.

    A class may be called "train": its folder counts as a split only if all folders
    are called like splits, or if it has folders and no images of its own.
    """
    folders, files = _entries(tree, "")
    named = [entry.name for entry in folders if split_of(entry.name)]
    if len(named) < len(folders):
        named = [name for name in named if _holds_classes(tree, name)]
    if not named:
        return {"all": ""}
    left_out.n_outside += _n_images(files)
    strays = [entry.name for entry in folders if entry.name not in named]
    if strays:
        reporter.warn(f"{tree.name!r}: only {some(named)} read, {some(strays)} left out")
    return _ordered_splits(tree, named)


def _ordered_splits(tree: Tree, named: list[str]) -> dict[str, str]:
    prefixes: dict[str, str] = {}
    for name in named:
        split = split_of(name) or name
        if split in prefixes:
            both = some([prefixes[split].rstrip("/"), name])
            raise SourceError(f"{tree.path('')!r} has both {both} for the split {split}: keep one")
        prefixes[split] = f"{name}/"
    return in_order(prefixes)


def _holds_classes(tree: Tree, name: str) -> bool:
    folders, files = _entries(tree, f"{name}/")
    return bool(folders) and not _n_images(files)


def _n_images(files: list[Entry]) -> int:
    return sum(ending(entry.name) in ENDINGS for entry in files)


def _list_classes(tree: Tree, prefix: str, left_out: _LeftOut) -> dict[str, list[str]]:
    """List the images of each class under the prefix, as paths relative to the root."""
    folders, files = _entries(tree, prefix)
    where = tree.path(prefix)
    n_outside = _n_images(files)
    left_out.n_outside += n_outside
    if n_outside and not folders:
        raise SourceError(
            f"{where!r} has {n_outside:,} images but no class folders: move the images of "
            "each class into a folder with the name of the class"
        )
    if not folders:
        raise SourceError(f"{where!r} has no images and no class folders: {LAYOUT}")
    above = tree.above(prefix)
    names = [entry.name for entry in folders]
    classes = {name: sorted(_walk(tree, f"{prefix}{name}/", above, left_out)) for name in names}
    _check_no_empty_class(where, classes)
    check_two_classes(where, classes, f"{tree.way_below} {tree.path(prefix + names[0])!r}")
    return classes


def _check_no_empty_class(where: str, classes: dict[str, list[str]]) -> None:
    empty = [name for name, paths in classes.items() if not paths]
    if len(empty) == len(classes):
        raise SourceError(
            f"{where!r} has no images in {some(empty)}: "
            f"image files end in {', '.join(sorted(ENDINGS))}"
        )
    if empty:
        raise SourceError(
            f"{where!r} has no images in {some(empty)}: add images or remove the folder"
        )


def check_two_classes(where: str, classes: Iterable[str], way_below: str = "") -> None:
    """Refuse a single class.

    Parameters
    ----------
    where : str
        What has the classes.
    classes : iterable of str
        Their names.
    way_below : str, optional
        How to take the folders inside the class as classes.

    Raises
    ------
    SourceError
        If there is one class.
    """
    names = list(classes)
    if len(names) == 1:
        hint = f", or {way_below} if the folders in it are the classes" if way_below else ""
        raise SourceError(
            f"{where!r} has one class only ({names[0]!r}) and a classifier needs two: "
            f"add another{hint}"
        )


def _walk(tree: Tree, top: str, above: frozenset[Hashable], left_out: _LeftOut) -> Iterator[str]:
    """Give the images below `top`; each real folder once, so that loops of links end."""
    pending, seen = [top], set(above)
    while pending:
        prefix = pending.pop()
        identity = tree.identity(prefix)
        if identity in seen:
            continue
        seen.add(identity)
        folders, files = _entries(tree, prefix)
        pending += [f"{prefix}{entry.name}/" for entry in reversed(folders)]
        for name, kind in files:
            if kind == "special":
                left_out.endings["pipe, socket or device"] += 1
            elif (end := ending(name)) in ENDINGS:
                yield prefix + name
            else:
                left_out.endings[end or "without ending"] += 1


def _entries(tree: Tree, prefix: str) -> tuple[list[Entry], list[Entry]]:
    """Give the folders and the other entries by name, without the hidden ones."""
    shown = sorted(entry for entry in tree.entries(prefix) if is_shown(entry.name))
    folders = [entry for entry in shown if entry.kind == "folder"]
    return folders, [entry for entry in shown if entry.kind != "folder"]


def _check_same_classes(images: dict[str, dict[str, list[str]]], prefixes: dict[str, str]) -> None:
    first, *others = images
    for other in others:
        for left, right in ((first, other), (other, first)):
            lacking = [name for name in images[left] if name not in images[right]]
            if lacking:
                raise SourceError(
                    f"{some(lacking)} in {prefixes[left]} but not in {prefixes[right]}: "
                    "all splits need the same class folders"
                )
