"""Where the splits and the classes of folders and the columns of tables are, as the user says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from featx.errors import SourceError, UsageError
from featx.sources.recognise import Recogniser, Root
from featx.sources.splits import in_order, split_in
from featx.sources.tree import View, some

__all__ = ["LAYOUT_FIELDS", "LayoutChoice", "find_chosen"]


_COLUMNS = ("path", "label", "split")


@dataclass(frozen=True)
class LayoutChoice:
    """What the user said of the folders, where featx cannot or shall not tell by itself.

    Parameters
    ----------
    train_folder, val_folder, test_folder : str, optional
        The folders of the splits, relative to the data. Others are left out.
    classes_at : int, optional
        The classes are the folders at this depth, counted from the data, or from the folders of
        the splits where they are given; equal names are one class. Folders above that are called
        like splits give the split.
    images_root : str, optional
        Of a table: the folder that its paths are relative to, in place of the table's own.
    columns : tuple of str, optional
        Of a table: which column is what, ``("path=image_id", "label=breed")``; ``split`` too.

    Raises
    ------
    UsageError
        If the depth is no number of at least 1, or a folder no text.
    """

    train_folder: str | None = None
    val_folder: str | None = None
    test_folder: str | None = None
    classes_at: int | None = None
    images_root: str | None = None
    columns: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        depth = self.classes_at
        if depth is not None and not (isinstance(depth, int) and depth >= 1):
            raise UsageError(f"classes-at is {depth!r}: it must be a whole number of at least 1")
        for word in self.columns or ():
            if word.partition("=")[0] not in _COLUMNS or not word.partition("=")[2]:
                raise UsageError(
                    f"columns has {word!r}: write path=NAME, label=NAME or split=NAME, by the "
                    "names in the first line of the table"
                )
        for split, folder in self.folders.items():
            if not isinstance(folder, str):
                raise UsageError(f"{split}-folder is {folder!r}: it must be the name of a folder")

    def __bool__(self) -> bool:
        return self.has_folders or self.is_of_table

    @property
    def has_folders(self) -> bool:
        """Whether it says something about folders."""
        return bool(self.classes_at or self.folders)

    @property
    def is_of_table(self) -> bool:
        """Whether it says something about a table."""
        return bool(self.images_root or self.columns)

    def column(self, what: str) -> str | None:
        """Give the column of the path, the label or the split, if it was named."""
        named = dict(word.split("=", 1) for word in self.columns or ())
        return named.get(what)

    @classmethod
    def of(cls, plan: Mapping[str, Any] | object) -> Self:
        """Take the choice out of a plan, or out of the request that a cache recorded."""
        known = plan if isinstance(plan, Mapping) else vars(plan)
        return cls(**{name: known.get(name) for name in LAYOUT_FIELDS})

    @property
    def folders(self) -> dict[str, str]:
        """The folder of each split that was named."""
        named = {"train": self.train_folder, "val": self.val_folder, "test": self.test_folder}
        return {split: folder for split, folder in named.items() if folder is not None}


LAYOUT_FIELDS = tuple(field.name for field in fields(LayoutChoice))
"""What plans and the records of caches have of a `LayoutChoice`."""


def find_chosen(recogniser: Recogniser, choice: LayoutChoice) -> dict[str, Root]:
    """Find the classes where the user said that they are."""
    view, depth, found = recogniser.view, choice.classes_at, dict[str, Root]()
    for split, folder in choice.folders.items():
        top = _existing(view, split, folder)
        root = found[split] = Root(top if depth else recogniser.inside(top), {})
        for prefix in _at_depth(view, root.prefix, depth or 1):
            root.classes.setdefault(prefix.split("/")[-2], []).append(prefix)
    if found or depth is None:
        return found
    for prefix in _at_depth(view, "", depth):
        *above, name, _ = prefix.split("/")
        root = found.setdefault(_split_above(view, above), Root("", {}))
        root.classes.setdefault(name, []).append(prefix)
    if len(found) > 1 and "all" in found:
        raise _chosen_wrong(view, f"at depth {depth}, some classes lie in no split", found)
    return in_order(found) or {"all": Root("", {})}


def _existing(view: View, split: str, folder: str) -> str:
    parts = [part for part in folder.split("/") if part not in ("", ".")]
    prefix = ""
    for part in parts:
        if part not in view.folders(prefix):
            raise UsageError(
                f"--{split}-folder {folder}: {view.tree.path(prefix)!r} has no folder {part!r} but "
                f"{some(view.folders(prefix)) or 'none'}; the folder is relative to --data"
            )
        prefix += f"{part}/"
    return prefix


def _at_depth(view: View, top: str, depth: int) -> list[str]:
    prefixes = [top]
    for _ in range(depth):
        prefixes = [f"{prefix}{name}/" for prefix in prefixes for name in view.folders(prefix)]
    return [prefix for prefix in prefixes if depth == 1 or view.has_images(prefix)]


def _split_above(view: View, folders: list[str]) -> str:
    named = {split for name in folders if (split := split_in(name)[0])}
    if len(named) > 1:
        raise _chosen_wrong(view, f"{'/'.join(folders)!r} names two splits", named)
    return named.pop() if named else "all"


def _chosen_wrong(view: View, reason: str, splits: Iterable[str]) -> SourceError:
    return SourceError(
        f"{view.tree.path('')!r}: {reason} ({', '.join(sorted(splits))}): name the folders of the "
        "splits with --train-folder and --test-folder, and --classes-at counted from them"
    )
