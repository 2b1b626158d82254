"""A table of images: CSV, TSV or Parquet with the columns path, label and perhaps split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from featx.errors import SourceError
from featx.progress import SILENT, Reporter
from featx.sources.base import Source
from featx.sources.folder import read_file
from featx.sources.labels import index_labels, sorted_names
from featx.sources.remembered import Stamp, stamp_file
from featx.sources.splits import in_order, split_of
from featx.sources.tables import read_numbered_table

__all__ = ["ManifestSource", "list_paths", "open_manifest"]

_PATH_NAMES = (
    *("path", "image", "image_path", "file", "filename", "file_name", "filepath", "file_path"),
    "img",
)
_LABEL_NAMES = ("label", "class", "class_name", "category", "target")
_SPLIT_NAMES = ("split", "subset", "fold", "set", "partition")
_LAYOUT = "the first line must name the columns, such as  path,label  or  path,label,split"
_N_TRIED = 100


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ManifestSource(Source):
    """The images of one split of a manifest.

    Parameters
    ----------
    root : str
        The absolute folder that `paths` are relative to; a path may be absolute itself.
    """

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
    classes; if all are whole numbers, classes are in the order of their values, otherwise
    in that of the text. An empty label is unknown (-1). A path that comes again is left out.
    A file that is missing is a row that fails when it is read.

    Parameters
    ----------
    path : path-like
        ``.csv``, ``.tsv`` or ``.parquet``, with columns for the path (``path``, ``image``,
        ``file``, ``filename``, ...), the label (``label``, ``class``, ``category``, ``target``)
        and perhaps the split (``split``; ``subset`` or ``fold`` where they hold such names).
    reporter : Reporter, optional
        Is told which columns were taken and what was left out.

    Returns
    -------
    dict of str to Source
        The splits in their usual order, or ``"all"`` alone; all with the same classes.

    Raises
    ------
    SourceError
        If the table cannot be read, lacks a column, names a split that there is not, gives
        one path two labels or splits, has one class only, or none of the first 100
        images exists.
    MissingExtraError
        If it is a Parquet file and pyarrow is not installed.
    """
    file = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the links
    rows = _without_repeats(_read(file, reporter), reporter)
    _check_files(rows)
    class_names = sorted_names(rows.labels)
    if len(class_names) < 2:
        raise SourceError(
            f"{file} has {_count(class_names)}, and a classifier needs two: "
            "add images of another class"
        )
    labels = index_labels(rows.labels, class_names)
    members: dict[str, list[int]] = {}
    for row, split in enumerate(rows.splits):
        members.setdefault(split, []).append(row)
    return in_order(
        {
            split: _source(rows, split, class_names, labels, chosen)
            for split, chosen in members.items()
        }
    )


def list_paths(path: str | os.PathLike[str]) -> list[Path]:
    """Give the images that a table lists, whatever else it has.

    Parameters
    ----------
    path : path-like
        As for `open_manifest`; a label is not needed.

    Returns
    -------
    list of Path
        In the order of the table, also where one comes again.

    Raises
    ------
    SourceError
        If the table cannot be read, or has no column of paths.
    """
    file = Path(path)
    columns, numbers = read_numbered_table(file)
    name = _find(file, columns, {name.lower(): name for name in columns}, _PATH_NAMES)
    words = columns[name]
    rows = _Rows(Path(os.path.abspath(file)), words, [], [], numbers)  # noqa: PTH100
    return [file.parent / word for word in _cleaned(rows)]


def _source(
    rows: _Rows, split: str, class_names: tuple[str, ...], labels: np.ndarray, chosen: list[int]
) -> ManifestSource:
    return ManifestSource(
        name=rows.file.stem,
        split=split,
        class_names=class_names,
        labels=labels[chosen],
        paths=tuple(rows.paths[row] for row in chosen),
        root=str(rows.file.parent),
    )


def _count(class_names: tuple[str, ...]) -> str:
    return f"one class only ({class_names[0]!r})" if class_names else "no label at all"


def _read(file: Path, reporter: Reporter) -> _Rows:
    columns, numbers = read_numbered_table(file)
    if not numbers:
        raise SourceError(f"{file} lists no images")
    names = {name.lower(): name for name in columns}
    path = _find(file, columns, names, _PATH_NAMES)
    label = _find(file, columns, names, _LABEL_NAMES)
    split = _find_split(columns, names, reporter)
    if (path, label, split or "split") != ("path", "label", "split"):
        split_taken = f", split from {split!r}" if split else ""
        reporter.say(f"{file.name}: path from {path!r}, label from {label!r}{split_taken}")
    labels = [word.strip() for word in columns[label]]
    rows = _Rows(file, columns[path], labels, ["all"] * len(numbers), numbers)
    splits = _splits(rows, columns[split]) if split else rows.splits
    return _Rows(file, _cleaned(rows), labels, splits, numbers)


def _find(
    file: Path, columns: dict[str, list[str]], names: dict[str, str], wanted: tuple[str, ...]
) -> str:
    for name in wanted:
        if name in names:
            return names[name]
    have = ", ".join(repr(name) for name in list(columns)[:12])
    raise SourceError(f"{file} has no column {wanted[0]!r} but {have}: {_LAYOUT}")


def _find_split(
    columns: dict[str, list[str]], names: dict[str, str], reporter: Reporter
) -> str | None:
    """Find the column of the splits; but for `split` itself, it must hold names of splits."""
    for wanted in _SPLIT_NAMES:
        if wanted not in names:
            continue
        name = names[wanted]
        strange = [word for word in dict.fromkeys(columns[name]) if not split_of(word.strip())]
        if wanted == "split" or not strange:
            return name
        reporter.say(f"column {name!r} is not taken as the split: {strange[0]!r} is no such name")
    return None


def _splits(rows: _Rows, words: list[str]) -> list[str]:
    known = {word: split_of(word.strip()) for word in dict.fromkeys(words)}
    splits = [known[word] for word in words]
    named = [split for split in splits if split]
    if len(named) < len(splits):
        row = splits.index(None)
        raise SourceError(
            f"{rows.file}, {rows.at(row)}: {words[row]!r} is no split; "
            "choose from train, val, test, unlabeled"
        )
    return named


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
