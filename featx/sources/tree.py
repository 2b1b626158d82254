"""What the rules of layout see of a folder, on the disk or inside an archive."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from functools import cache
from typing import Literal, NamedTuple

__all__ = ["Entry", "MemberTree", "Tree", "View", "ending", "is_shown", "some"]

# Besides all that is hidden: of Windows, macOS, Synology (small copies of images), ext4, QNAP.
_IGNORED = frozenset(
    {"thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "__macosx"}
    | {"@eadir", "#recycle", "lost+found", "@recycle"}
)


class Entry(NamedTuple):
    """One name in a folder."""

    name: str
    kind: Literal["folder", "file", "special"]


class Tree(ABC):
    """A folder with everything below it. A prefix is ``""`` or ends with ``/``."""

    def __init__(self, name: str, where: str) -> None:
        self.name, self.where = name, where

    def path(self, prefix: str) -> str:
        """Give the path of a folder of the tree, as a person would write it."""
        return f"{self.where.rstrip('/')}/{prefix}".rstrip("/") or "/"

    @abstractmethod
    def entries(self, prefix: str) -> list[Entry]:
        """List one folder."""

    def identity(self, prefix: str) -> Hashable:
        """Tell a folder from all others: two prefixes with links may lead to one folder."""
        return prefix

    def above(self, prefix: str) -> frozenset[Hashable]:
        """Identify the folders that hold `prefix`, and `prefix`: no link may lead back to one."""
        del prefix
        return frozenset()


class MemberTree(Tree):
    """The files of an archive, by name."""

    def __init__(
        self, name: str, where: str, files: Iterable[str], folders: Iterable[str] = ()
    ) -> None:
        super().__init__(name, where)
        self._found: dict[str, list[Entry]] = {"": []}
        for folder in folders:
            self._add_folder(f"{folder}/")
        for file in files:
            prefix = file[: file.rfind("/") + 1]
            self._add_folder(prefix)
            self._found[prefix].append(Entry(file[len(prefix) :], "file"))

    def _add_folder(self, prefix: str) -> None:
        missing = []
        while prefix not in self._found:
            missing.append(prefix)
            prefix = prefix[: prefix.rfind("/", 0, -1) + 1]
        for folder in reversed(missing):
            self._found[prefix].append(Entry(folder[len(prefix) : -1], "folder"))
            self._found[folder] = []
            prefix = folder

    def entries(self, prefix: str) -> list[Entry]:
        """List one folder; see `Tree.entries`."""
        return self._found[prefix]


class View:
    """A tree without what is hidden. Nothing is listed or counted twice."""

    def __init__(self, tree: Tree, endings: Collection[str]) -> None:
        self.tree, self._endings = tree, endings
        self._identity, self._above = cache(tree.identity), cache(tree.above)
        self._listed = cache(self._list)
        self.n_images = cache(self._count)
        self.has_images = cache(self._has_images)

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders in a folder, sorted."""
        return self._listed(prefix)[0]

    def files(self, prefix: str) -> list[Entry]:
        """Whatever else is in a folder, sorted."""
        return self._listed(prefix)[1]

    def _list(self, prefix: str) -> tuple[list[str], list[Entry]]:
        shown = sorted(entry for entry in self.tree.entries(prefix) if is_shown(entry.name))
        folders = [entry.name for entry in shown if entry.kind == "folder"]
        return folders, [entry for entry in shown if entry.kind != "folder"]

    def is_image(self, entry: Entry) -> bool:
        """Whether a file is called like an image."""
        return entry.kind == "file" and ending(entry.name) in self._endings

    def _count(self, prefix: str) -> int:
        """Count the images that lie in a folder itself."""
        return sum(map(self.is_image, self.files(prefix)))

    def _has_images(self, top: str) -> bool:
        """Whether there is an image in a folder or below it."""
        return any(map(self.n_images, self.below(top)))

    def below(self, top: str, folders: Callable[[str], list[str]] | None = None) -> Iterator[str]:
        """Give `top` and all folders below it; each real one once, so that loops of links end."""
        folders = folders or self.folders
        parent = top[: top.rfind("/", 0, -1) + 1]
        pending, seen = [top], set(self._above(parent)) if top else set()
        while pending:
            prefix = pending.pop()
            identity = self._identity(prefix)
            if identity not in seen:
                seen.add(identity)
                yield prefix
                pending += [f"{prefix}{name}/" for name in reversed(folders(prefix))]

    def images(self, top: str) -> Iterator[str]:
        """Give the images in a folder and below it, as paths relative to the root."""
        for prefix in self.below(top):
            yield from (prefix + entry.name for entry in self.files(prefix) if self.is_image(entry))


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
