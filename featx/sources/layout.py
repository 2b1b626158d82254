"""The layout of images in folders: one folder for each class, with or without train/ above."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from featx.errors import SourceError
from featx.images import ENDINGS
from featx.progress import SILENT, Reporter
from featx.sources.chosen import LayoutChoice, find_chosen
from featx.sources.doubts import masks_beside
from featx.sources.labels import name_classes, sorted_names
from featx.sources.recognise import Recogniser, Root
from featx.sources.splits import names_test
from featx.sources.tree import Tree, View, ending, is_shown, some

__all__ = [
    "ENDINGS",
    "LAYOUT",
    "Listing",
    "check_two_classes",
    "ending",
    "is_shown",
    "list_images",
    "others",
    "some",
]

LAYOUT = "featx reads <folder>/<class>/<image> or <folder>/train/<class>/<image> and test/ likewise"
"""What is allowed, for the texts of errors."""


_LISTS = frozenset({".txt", ".lst", ".csv", ".tsv", ".json", ".jsonl", ".mat"})


def others(n_files: int) -> str:
    """Count files that are no images."""
    return "1 file that is no image" if n_files == 1 else f"{n_files:,} files that are no images"


@dataclass(frozen=True)
class Listing:
    """The images of one split."""

    class_names: tuple[str, ...]
    labels: np.ndarray
    paths: tuple[str, ...]


@dataclass
class _LeftOut:
    """What one walk over the folder found and did not take."""

    endings: Counter[str] = field(default_factory=Counter)
    n_outside: int = 0  # images in no class folder
    masks: list[str] = field(default_factory=list)  # taken, though they seem to be masks

    def tell(self, name: str, reporter: Reporter) -> None:
        if self.masks:
            reporter.warn(
                f"{name!r}: {len(self.masks):,} images are called like masks of others beside them "
                f"({self.masks[0]!r}) and count to their class: move them away if they are masks"
            )
        if self.n_outside:
            reporter.warn(f"{name!r}: {self.n_outside:,} images in no class folder left out")
        if self.endings:
            counts = ", ".join(
                f"{n:,} {ending if ending.isprintable() else repr(ending)}"
                for ending, n in self.endings.most_common(5)
            )
            n_files = self.endings.total()
            reporter.say(f"{name!r}: {others(n_files)} left out ({counts})")


def list_images(
    tree: Tree,
    choice: LayoutChoice | None = None,
    *,
    wanted: Collection[str] = (),
    reporter: Reporter = SILENT,
) -> dict[str, Listing]:
    """Find the splits, the classes and the images of a tree.

    Images are the files with one of `ENDINGS` inside a class folder, also in its
    sub-folders, in the order of their names. Hidden files are left out. Where only some splits are
    `wanted`, others may be wrong.
    """
    view, left_out = View(tree, ENDINGS), _LeftOut()
    recogniser = Recogniser(view)
    try:
        roots = find_chosen(recogniser, choice) if choice else recogniser.find(wanted)
        images = _images_of_splits(recogniser, roots, wanted, left_out)
    finally:
        recogniser.tell(reporter)
    roots = {split: root for split, root in roots.items() if split in images}
    images = _by_class(images, tree.where, reporter)
    left_out.n_outside = _n_outside(view, roots)
    if choice and not choice.folders:
        n_read = sum(len(paths) for classes in images.values() for paths in classes.values())
        left_out.n_outside = sum(map(view.n_images, view.below(""))) - n_read
    left_out.tell(tree.name, reporter)
    if not choice and [*roots] == ["all"]:
        _tell_lists_of_splits(view, roots["all"], reporter)
    class_names = sorted_names(name for classes in images.values() for name in classes)
    _tell_different_classes(tree.name, images, class_names, reporter)
    first = next(iter(roots.values()))
    where = tree.path(first.prefix)
    check_two_classes(where, class_names, "" if choice else _way_below(view, first))
    return {split: _listing(class_names, classes) for split, classes in images.items()}


def _images_of_splits(
    recogniser: Recogniser, roots: dict[str, Root], wanted: Collection[str], left_out: _LeftOut
) -> dict[str, dict[str, list[str]]]:
    """List the images of each split by the folders of the classes, all of which have some."""
    images: dict[str, dict[str, list[str]]] = {}
    for split, root in roots.items():
        try:
            images[split] = _images(recogniser, root, left_out)
        except SourceError as error:
            if not wanted or split in wanted:
                raise
            recogniser.warnings.append(f"the split {split} left out: {error}")
    filled = {name for classes in images.values() for name, paths in classes.items() if paths}
    for split, classes in images.items():
        where = recogniser.view.tree.path(roots[split].prefix)
        _check_no_empty_class(where, classes, filled)
    return {
        split: {name: paths for name, paths in classes.items() if paths}
        for split, classes in images.items()
    }


def _tell_different_classes(
    name: str,
    images: Mapping[str, Mapping[str, list[str]]],
    class_names: Iterable[str],
    reporter: Reporter,
) -> None:
    """Warn of classes that some splits lack, as a table may have them too."""
    for split, classes in images.items():
        lacking = [class_name for class_name in class_names if class_name not in classes]
        if lacking and "" not in classes:
            reporter.warn(
                f"{name!r}: the split {split} has no images of {some(lacking)}. If these are "
                "misspelt, rename their folders; else leave them out with --drop"
            )


def _by_class(
    folders: dict[str, dict[str, list[str]]], where: str, reporter: Reporter
) -> dict[str, dict[str, list[str]]]:
    """Turn the folders of each split into classes, in their order; "" has what has no label."""
    counts: Counter[str] = Counter()
    for found in folders.values():
        counts.update({folder: len(paths) for folder, paths in found.items()})
    images: dict[str, dict[str, list[str]]] = {split: {} for split in folders}
    for folder, class_name in name_classes(counts, where, reporter).items():
        for split, found in folders.items():
            if folder in found:
                joined = images[split].get(class_name, []) + found[folder]
                images[split][class_name] = sorted(joined)
    return images


def _listing(class_names: tuple[str, ...], classes: dict[str, list[str]]) -> Listing:
    numbers = {name: number for number, name in enumerate(class_names)} | {"": -1}
    counts = [len(paths) for paths in classes.values()]
    return Listing(
        class_names=class_names,
        labels=np.repeat(np.array([numbers[name] for name in classes], np.int64), counts),
        paths=tuple(path for paths in classes.values() for path in paths),
    )


def _n_outside(view: View, roots: Mapping[str, Root]) -> int:
    """Count the images in the folders that hold classes, and so in no class."""
    classes = {p for root in roots.values() for paths in root.classes.values() for p in paths}
    return sum(map(view.n_images, _above(classes) - classes))


def _above(prefixes: Iterable[str]) -> set[str]:
    """Give all folders above some, with the root."""
    found = {p[: i + 1] for p in prefixes for i, sign in enumerate(p[:-1]) if sign == "/"}
    return {"", *found}


def _tell_lists_of_splits(view: View, root: Root, reporter: Reporter) -> None:
    """Warn of files such as ``meta/test.txt``: official splits that are not read."""
    above = _above([path for paths in root.classes.values() for path in paths])
    empty = [f"{p}{n}/" for p in above for n in view.folders(p) if not view.has_images(f"{p}{n}/")]
    files = [
        (prefix, entry.name) for prefix in (*sorted(above), *empty) for entry in view.files(prefix)
    ]
    lists = [prefix + name for prefix, name in files if ending(name) in _LISTS and names_test(name)]
    if lists:
        reporter.warn(
            f"{view.tree.name!r}: {some(lists, 3)} may list official splits, and are not read: all "
            "images are one set. To keep such splits apart, give a table with the columns path, "
            "label and split after --data"
        )


def _images(recogniser: Recogniser, root: Root, left_out: _LeftOut) -> dict[str, list[str]]:
    """List the images of each class of a split, as paths relative to the root of the tree."""
    view = recogniser.view
    where, n_outside = view.tree.path(root.prefix), view.n_images(root.prefix)
    if n_outside and not root.classes:
        raise SourceError(
            f"{where!r} has {n_outside:,} images but no class folders: move the images of each "
            "class into a folder with the name of the class, or give a table with the columns "
            "path and label after --data"
        )
    if not root.classes:
        raise SourceError(f"{where!r} has no images and no class folders: {LAYOUT}")
    classes = {
        name: sorted(path for top in folders for path in _walk(recogniser, top, left_out))
        for name, folders in root.classes.items()
    }
    left_out.masks += [path for paths in classes.values() for path in masks_beside(paths)]
    return classes


def _way_below(view: View, root: Root) -> str:
    """Give the flag that takes folders in the only class folder as the classes, if it has some."""
    top = next(iter(root.classes.values()))[0]
    forks = (prefix for prefix in view.below(top) if len(view.folders(prefix)) > 1)
    fork = next(forks, None)
    return f"--classes-at {fork.count('/') + 1}" if fork else ""


def _check_no_empty_class(where: str, classes: dict[str, list[str]], filled: set[str]) -> None:
    """Refuse class folders without images; one that has some in another split is told later."""
    empty = [name for name, paths in classes.items() if not paths and name not in filled]
    if not any(classes.values()):
        raise SourceError(
            f"{where!r} has no images in {some(empty)}: "
            f"image files end in {', '.join(sorted(ENDINGS))}"
        )
    if empty:
        raise SourceError(
            f"{where!r} has no images in {some(empty)}: add images or remove the folder"
        )


def check_two_classes(where: str, classes: Iterable[str], way_below: str = "") -> None:
    """Refuse a single class, and images without any."""
    names = list(classes)
    if not names:
        raise SourceError(f"{where!r} has no class, and a classifier needs two: label its images")
    if len(names) == 1:
        hint = f", or give {way_below} if the folders in it are the classes" if way_below else ""
        raise SourceError(
            f"{where!r} has one class only ({names[0]!r}) and a classifier needs two: "
            f"add another{hint}"
        )


def _walk(recogniser: Recogniser, top: str, left_out: _LeftOut) -> Iterator[str]:
    """Give the images in a class folder, and count what is none."""
    view = recogniser.view
    for prefix in view.below(top, recogniser.folders):
        for entry in view.files(prefix):
            if view.is_image(entry):
                yield prefix + entry.name
            elif entry.kind == "special":
                left_out.endings["pipe, socket or device"] += 1
            else:
                left_out.endings[ending(entry.name) or "without ending"] += 1
