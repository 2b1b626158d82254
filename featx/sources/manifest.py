"""A table of images: CSV, TSV or Parquet with the columns path, label and perhaps split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from featx.errors import SourceError
from featx.progress import SILENT, Reporter
from featx.sources.base import Source
from featx.sources.folder import read_file
from featx.sources.labels import number_labels
from featx.sources.remembered import Stamp, stamp_file
from featx.sources.split_columns import divide, find_split
from featx.sources.splits import split_of_folder
from featx.sources.tables import find_column, read_numbered_table
from featx.sources.tree import some

__all__ = ["LABEL_NAMES", "PATH_NAMES", "ManifestSource", "list_paths", "open_manifest"]

PATH_NAMES = (
    *("path", "image", "image_path", "file", "filename", "file_name", "filepath", "file_path"),
    "img",
)
LABEL_NAMES = ("label", "class", "class_name", "category", "target")
_LAYOUT = "the first line must name the columns, such as  path,label  or  path,label,split"
_N_TRIED = 100


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ManifestSource(Source):
    """The images of one split of a manifest."""

    root: str

    @property
    def place(self) -> str:
        """The folder of the table; see `Source.place`."""
        return self.root

    def stamp(self, row: int) -> Stamp | None:
        """Stamp one file; see `Source.stamp`."""
        return stamp_file(os.path.join(self.root, self.paths[row]))  # noqa: PTH118 - fast

    def read(self, row: int) -> bytes:
        """Read the bytes of one file; see `Source.read`."""
        return read_file(Path(self.root, self.paths[row]))


@dataclass(frozen=True)
class _Rows:
    """What a manifest says, and on which line: all of length N."""

    file: Path
    paths: list[str]
    labels: list[str]
    splits: list[str]
    numbers: Sequence[int]

    def at(self, row: int) -> str:
        """Say where a row stands."""
        unit = "row" if self.file.suffix.lower() == ".parquet" else "line"
        return f"{unit} {self.numbers[row]:,}"

    def keep(self, rows: Sequence[int]) -> _Rows:
        """Leave out all other rows."""

        def chosen(values: Sequence[str]) -> list[str]:
            return [values[row] for row in rows]

        numbers = [self.numbers[row] for row in rows]
        return _Rows(
            self.file, chosen(self.paths), chosen(self.labels), chosen(self.splits), numbers
        )


def open_manifest(
    path: str | os.PathLike[str], *, reporter: Reporter = SILENT
) -> dict[str, Source]:
    """Open a table that lists images.

    Paths are relative to the folder of the table, or absolute. Labels are the names of
    classes, in natural order; an empty one and -1 are unknown (docs/data.md). A path that
    comes again is left out. A file that is missing is a row that fails when it is read.
    """
    file = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the links
    rows = _without_repeats(_read(file, reporter), reporter)
    _check_files(rows)
    class_names, labels = number_labels({"all": rows.labels}, file.name, reporter)
    if len(class_names) < 2:
        raise SourceError(
            f"{file} has {_count(class_names)}, and a classifier needs two: "
            "add images of another class"
        )
    source = ManifestSource(
        name=file.stem,
        split="all",
        class_names=class_names,
        labels=labels["all"],
        paths=tuple(rows.paths),
        root=str(file.parent),
    )
    return divide(source, rows.splits)


def list_paths(path: str | os.PathLike[str]) -> list[Path]:
    """Give the images that a table lists, whatever else it has."""
    file = Path(path)
    columns, numbers = read_numbered_table(file)
    name = _find(file, columns, PATH_NAMES)
    words = columns[name]
    rows = _Rows(Path(os.path.abspath(file)), words, [], [], numbers)  # noqa: PTH100
    return [file.parent / word for word in _cleaned(rows)]


def _count(class_names: tuple[str, ...]) -> str:
    return f"one class only ({class_names[0]!r})" if class_names else "no label at all"


def _read(file: Path, reporter: Reporter) -> _Rows:
    columns, numbers = read_numbered_table(file)
    if not numbers:
        raise SourceError(f"{file} lists no images")
    path = _find(file, columns, PATH_NAMES)
    label = _find(file, columns, LABEL_NAMES)
    others = {name: cells for name, cells in columns.items() if name not in (path, label)}
    split, splits = find_split(others, str(file), reporter) or ("", ["all"] * len(numbers))
    if not split:
        _tell_folders_of_splits(file, columns[path], reporter)
    if (path, label, split or "'split'") != ("path", "label", "'split'"):
        split_taken = f", split from {split}" if split else ""
        reporter.say(f"{file.name}: path from {path!r}, label from {label!r}{split_taken}")
    labels = [word.strip() for word in columns[label]]
    rows = _Rows(file, columns[path], labels, splits, numbers)
    return replace(rows, paths=_cleaned(rows))


def _tell_folders_of_splits(file: Path, paths: list[str], reporter: Reporter) -> None:
    """Warn where paths lie in folders of several splits, and no column keeps these apart."""
    folders = {part for folder in set(map(_folder, paths)) for part in folder.split("/")}
    splits = {folder: split for folder in folders if (split := split_of_folder(folder))}
    if len({*splits.values()}) > 1:
        reporter.warn(
            f"{file.name}: no column gives the split, so all images are one set, though they lie "
            f"in {some(sorted(splits))}: add a column  split  to keep these apart"
        )


def _folder(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[0]


def _find(file: Path, columns: dict[str, list[str]], wanted: tuple[str, ...]) -> str:
    found = find_column(str(file), columns, wanted)
    if found is None:
        have = ", ".join(repr(name) for name in list(columns)[:12])
        raise SourceError(f"{file} has no column {wanted[0]!r} but {have}: {_LAYOUT}")
    return found


def _cleaned(rows: _Rows) -> list[str]:
    """Write each path in one way only: relative where it can be, with single ``/``."""
    if "" in rows.paths:
        raise SourceError(f"{rows.file}, {rows.at(rows.paths.index(''))}: the path is empty")
    root = f"{rows.file.parent}/"
    paths = [_tidy(path.removeprefix(root)) for path in rows.paths]
    if any("\\" in path for path in paths) and _is_windows(rows.file.parent, paths):
        paths = [path.replace("\\", "/") for path in paths]
    return paths


def _tidy(path: str) -> str:
    is_tidy = not (path.startswith("./") or "//" in path or "/./" in path)
    return path if is_tidy else str(PurePosixPath(path))


def _is_windows(root: Path, paths: list[str]) -> bool:
    """Tell from the first files whether a backslash separates folders."""
    tried = [path for path in paths if "\\" in path][:_N_TRIED]
    if any(_exists(root, path) for path in tried):
        return False
    return any(_exists(root, path.replace("\\", "/")) for path in tried)


def _exists(root: Path, path: str) -> bool:
    try:
        return (root / path).exists()
    except (OSError, ValueError):
        return False


def _without_repeats(rows: _Rows, reporter: Reporter) -> _Rows:
    first: dict[str, int] = {}
    kept = [row for row, path in enumerate(rows.paths) if first.setdefault(path, row) == row]
    if len(kept) == len(rows.paths):
        return rows
    for row, path in enumerate(rows.paths):
        other = first[path]
        for what, values in (("labels", rows.labels), ("splits", rows.splits)):
            if values[row] != values[other]:
                raise SourceError(
                    f"{rows.file}: {path!r} has two {what}, {values[other]!r} on "
                    f"{rows.at(other)} and {values[row]!r} on {rows.at(row)}: keep one"
                )
    n_repeats = len(rows.paths) - len(kept)
    reporter.warn(f"{rows.file.name}: {n_repeats:,} paths that come again left out")
    return rows.keep(kept)


def _check_files(rows: _Rows) -> None:
    tried = rows.paths[:_N_TRIED]
    if any(_exists(rows.file.parent, path) for path in tried):
        return
    which = "the image" if len(tried) == 1 else f"any of the first {len(tried)} images"
    raise SourceError(
        f"{rows.file} names files that are not there: looked for {which} relative to its folder, "
        f"first at {rows.file.parent / tried[0]}: move the table, or correct the paths"
    )
