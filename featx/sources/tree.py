"""What the rules of layout see of a folder, on the disk or inside an archive."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable
from typing import Literal, NamedTuple

__all__ = ["Entry", "MemberTree", "Tree"]


class Entry(NamedTuple):
    """One name in a folder.

    Attributes
    ----------
    name : str
        Without the folder.
    kind : str
        ``"folder"``, ``"file"``, or ``"special"`` (a pipe, a socket, a device).
    """

    name: str
    kind: Literal["folder", "file", "special"]


class Tree(ABC):
    """A folder with everything below it. A prefix is ``""`` or ends with ``/``.

    Parameters
    ----------
    name : str
        What the data set is called.
    where : str
        What a person calls the folder: its path.
    """

    way_below = "give"
    """How a person opens a folder of the tree in place of the whole."""

    def __init__(self, name: str, where: str) -> None:
        self.name, self.where = name, where

    def path(self, prefix: str) -> str:
        """Give the path of a folder of the tree, as a person would write it."""
        return f"{self.where.rstrip('/')}/{prefix}".rstrip("/") or "/"

    @abstractmethod
    def entries(self, prefix: str) -> list[Entry]:
        """List one folder.

        Parameters
        ----------
        prefix : str
            The folder.

        Returns
        -------
        list of Entry
            In any order.

        Raises
        ------
        SourceError
            If the folder cannot be listed.
        """

    def identity(self, prefix: str) -> Hashable:
        """Tell a folder from all others: two prefixes with links may lead to one folder."""
        return prefix

    def above(self, prefix: str) -> frozenset[Hashable]:
        """Identify the folders that hold `prefix`, and `prefix`: no link may lead back to one."""
        del prefix
        return frozenset()


class MemberTree(Tree):
    """The files of an archive, by name.

    Parameters
    ----------
    name, where : str
        See `Tree`.
    files, folders : iterable of str
        Names with ``/`` between the folders and at no end.

    Attributes
    ----------
    top : str
        The prefix of the folder that counts as the root.
    """

    way_below = "unpack it and give"

    def __init__(
        self, name: str, where: str, files: Iterable[str], folders: Iterable[str] = ()
    ) -> None:
        super().__init__(name, where)
        self.top = ""
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

    def path(self, prefix: str) -> str:
        """Give the path of a folder as if the archive were one; see `Tree.path`."""
        return super().path(self.top + prefix)

    def entries(self, prefix: str) -> list[Entry]:
        """List one folder; see `Tree.entries`."""
        return self._found[self.top + prefix]
