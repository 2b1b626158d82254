"""Tables that lie beside class folders: whether their labels are those of the folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from featx.errors import MissingExtraError, SourceError
from featx.progress import SILENT, Reporter
from featx.sources.base import Source
from featx.sources.labels import name_classes
from featx.sources.manifest import LABEL_NAMES, PATH_NAMES
from featx.sources.splits import split_of_folder
from featx.sources.tables import TABLE_ENDINGS, find_column, read_table
from featx.sources.tree import is_shown

__all__ = ["check_tables", "is_metadata", "tables_in"]


_PREDICTED = frozenset({"score", "probability", "confidence", "rank"})  # no labels, but a guess


def is_metadata(name: str) -> bool:
    """Whether a file is called as Hugging Face calls the labels of a folder of images."""
    path = PurePosixPath(name.lower())
    return path.stem == "metadata" and path.suffix in TABLE_ENDINGS


def tables_in(root: Path) -> list[Path]:
    """List the tables of a folder, and of the folders in it that are called like splits."""
    splits = [path for path in root.iterdir() if split_of_folder(path.name) and path.is_dir()]
    return [path for folder in (root, *sorted(splits)) for path in _tables(folder)]


def _tables(folder: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in TABLE_ENDINGS and is_shown(path.name) and path.is_file()
        )
    return []


def check_tables(root: Path, splits: Mapping[str, Source], reporter: Reporter) -> None:
    """Compare the classes of folders with the labels of tables above them."""
    sources = [source for source in splits.values() if len(source)]
    above = {root / parent for source in sources for parent in Path(source.paths[0]).parents[1:]}
    classes = _Classes(sources) if any(map(_tables, above)) else None
    for table in [table for folder in sorted(above) for table in _tables(folder)]:
        if classes is not None:
            with suppress(MissingExtraError):
                _check(table, root, classes, reporter)


class _Classes:
    """The class of each image, by its path, or by its name where no other is called the same."""

    def __init__(self, sources: list[Source]) -> None:
        self._of: dict[str, str] = {}
        for source in sources:
            for path, label in zip(source.paths, source.labels.tolist(), strict=True):
                if label >= 0:
                    self._of[path] = source.class_names[label]
        self._paths: dict[str, list[str]] = {}
        for path in self._of:
            self._paths.setdefault(path.rpartition("/")[2], []).append(path)

    def find(self, folder: str, path: str) -> tuple[str, str] | None:
        """Give the path and the class of an image that a table in `folder` names."""
        whole = str(PurePosixPath(folder, path.strip().replace("\\", "/")))
        same = self._paths.get(whole.rpartition("/")[2], [])
        whole = same[0] if whole not in self._of and len(same) == 1 else whole
        return (whole, self._of[whole]) if whole in self._of else None


def _check(table: Path, root: Path, classes: _Classes, reporter: Reporter) -> None:
    try:
        columns = read_table(table)
        path = find_column(str(table), columns, PATH_NAMES)
        label = find_column(str(table), columns, LABEL_NAMES)
        name_of = name_classes(Counter(columns.get(label or "", [])), str(table), SILENT)
    except SourceError:
        return  # no table of images
    if any(name.strip().lower() in _PREDICTED for name in columns):
        return
    folder = table.parent.relative_to(root).as_posix()
    rows = [classes.find(folder, cell) for cell in columns.get(path or "", [])]
    if path is None or not any(rows):
        return
    if label is None:
        if is_metadata(table.name):
            reporter.warn(
                f"{table} names these images and is not read: the classes are the folders"
            )
        return
    names = map(name_of.get, columns[label])
    labels = {(*row, name) for name, row in zip(names, rows, strict=True) if row and name}
    if len({image for image, _, _ in labels}) < len(labels):
        return  # an image has several labels, as of objects in it
    label_of: dict[str, str] = {}
    class_of: dict[str, str] = {}
    for image, class_name, text in sorted(labels):
        one = (label_of.setdefault(class_name, text), class_of.setdefault(text, class_name))
        if one != (text, class_name):
            raise SourceError(
                f"{table} gives other classes than the folders: {image!r} lies in {class_name!r} "
                f"and has the label {text!r}. Say what counts: --data {table} for its labels, or "
                f"--classes-at {_depth(image, class_name)} for the folders"
            )


def _depth(path: str, class_name: str) -> int:
    parts = path.split("/")
    return parts.index(class_name) + 1 if class_name in parts else 1
