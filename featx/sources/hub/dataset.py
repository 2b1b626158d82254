"""Data sets of Hugging Face that lie on this machine: saved by `datasets`, or Parquet files.

The files are read by pyarrow alone. No code that comes with a data set is run, nothing is
downloaded, and no file of these kinds holds pickles.
"""

from __future__ import annotations

import bisect
import os
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from featx.errors import ImageError, MissingExtraError, ReadError, SourceError
from featx.progress import SILENT, Reporter
from featx.sources.base import Source
from featx.sources.hub.columns import (
    Columns,
    choose_columns,
    features_of,
    has_images,
    join_labels,
    read_labels,
    read_short_columns,
)
from featx.sources.hub.files import HubFiles, find_files, is_saved, parquet_files
from featx.sources.hub.shards import Recent, Shard, open_shard
from featx.sources.split_columns import divide, find_split
from featx.sources.splits import in_order, split_of
from featx.sources.tree import some

__all__ = ["HubSource", "is_hub_dataset", "open_hub"]

_MOST_OPEN = 64  # files, in each process
_BYTES_OF_PARTS = 256 << 20  # of decoded row groups, in each process


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class HubSource(Source):
    """One split of a data set of Hugging Face.

    Images are read from the files row by row: mapped from Arrow files, by row group from Parquet.
    """

    per_row = (*Source.per_row, "rows")

    files: tuple[str, ...]
    ends: tuple[int, ...]
    column: str
    rows: np.ndarray
    _shards: Recent[Shard] = field(init=False)
    _parts: Recent[Any] = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows.shape != self.labels.shape:
            raise ValueError("rows must give one image for each label")
        self._start()

    def _start(self) -> None:
        self.__dict__.update(_shards=Recent(_MOST_OPEN), _parts=Recent(_BYTES_OF_PARTS))

    def read(self, row: int) -> bytes:
        """Read the stored bytes of one image; see `Source.read`."""
        image = int(self.rows[row])
        index = bisect.bisect_right(self.ends, image)
        shard = self._shards.get(index, lambda: (open_shard(self.files[index]), 1))
        if shard.n_rows != self.ends[index] - (self.ends[index - 1] if index else 0):
            raise ReadError(f"{shard.file} has changed since it was listed: start again")
        data = shard.image(self.column, image - self.ends[index] + shard.n_rows, self._parts)
        if data is None:
            raise ImageError("the data set has no bytes of this image")
        return data

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name[0] != "_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()


def is_hub_dataset(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path is a data set of Hugging Face."""
    path = Path(path)
    if path.is_dir() and is_saved(path):
        return True
    if path.is_dir():
        files = parquet_files(path)
    else:
        files = [path] if path.suffix.lower() == ".parquet" and path.is_file() else []
    if not files:
        return False
    try:
        return has_images(open_shard(str(files[0])).schema)
    except (SourceError, MissingExtraError):
        return path.is_dir()  # what else could it be


def open_hub(path: str | os.PathLike[str], *, reporter: Reporter = SILENT) -> dict[str, Source]:
    """Open a data set of Hugging Face that lies on this machine."""
    found = find_files(Path(os.path.abspath(path)), reporter)  # noqa: PTH100 - keeps links
    columns = _columns(found, open_shard(next(iter(found.splits.values()))[0]))
    parts = {
        split: [_read(found, file, columns) for file in files]
        for split, files in found.splits.items()
    }
    class_names, labels = join_labels(
        {split: [part.labels for part in parts[split]] for split in parts},
        columns.class_names,
        found.name,
        reporter,
    )
    if len(class_names) < 2:
        raise SourceError(
            f"{found.root} has {len(class_names)} classes, and a classifier needs two"
        )
    sources: dict[str, Source] = {
        split: _source((found.name, split), columns.image, class_names, labels[split], read)
        for split, read in parts.items()
    }
    if len(sources) == 1:
        return _divided(found, columns, next(iter(sources.values())), reporter)
    _check_splits(found, columns)
    return in_order(sources)


def _check_splits(found: HubFiles, columns: Columns) -> None:
    """Refuse a file of one split whose column of splits names another."""
    for split, files in found.splits.items():
        for file in files:
            shard = open_shard(file)
            if "split" not in shard.schema.names:
                continue
            features = found.features.get(file) or features_of(shard.schema)
            cells = read_short_columns(shard, columns, features).get("split", [])
            others = {split_of(cell.strip()) for cell in set(cells)} - {None, split}
            if others:
                raise SourceError(
                    f"{file} belongs to the split {split!r}, but its column 'split' has rows of "
                    f"{some(sorted(map(str, others)))}: write one file for each split, or give a "
                    "folder with this file alone"
                )


def _divided(
    found: HubFiles, columns: Columns, source: Source, reporter: Reporter
) -> dict[str, Source]:
    """Divide the one part that the files make by a column of splits, if there is one."""
    cells: dict[str, list[str]] = {}
    n_before = 0
    for file in found.splits[source.split]:
        shard = open_shard(file)
        features = found.features.get(file) or features_of(shard.schema)
        for name, values in read_short_columns(shard, columns, features).items():
            column = cells.setdefault(name, [])
            column += [""] * (n_before - len(column)) + values
        n_before += shard.n_rows
    whole = {name: values + [""] * (n_before - len(values)) for name, values in cells.items()}
    split = find_split(whole, str(found.root), reporter)
    if split is None:
        return {source.split: source}
    reporter.say(f"{found.name}: split from {split[0]}")
    return divide(source, split[1])


@dataclass(frozen=True)
class _Part:
    """A file, its number of rows, and their labels as numbers or words."""

    file: str
    n_rows: int
    labels: np.ndarray | list[str]


def _columns(found: HubFiles, shard: Shard) -> Columns:
    features = found.features.get(shard.file) or features_of(shard.schema)
    return choose_columns(shard.file, shard.schema, features)


def _read(found: HubFiles, file: str, columns: Columns) -> _Part:
    """Read the labels of one file, which is closed again: there may be thousands."""
    shard = open_shard(file)
    if _columns(found, shard) != columns:
        raise SourceError(
            f"{file} has other columns or class names than the files before: all files of a "
            "data set must have the same"
        )
    return _Part(file, shard.n_rows, read_labels(shard, columns))


def _source(
    name_and_split: tuple[str, str],
    column: str,
    class_names: tuple[str, ...],
    labels: np.ndarray,
    parts: list[_Part],
) -> HubSource:
    name, split = name_and_split
    return HubSource(
        name=name,
        split=split,
        class_names=class_names,
        labels=labels,
        paths=tuple(f"{split}/{row:05d}" for row in range(len(labels))),
        files=tuple(part.file for part in parts),
        ends=tuple(accumulate(part.n_rows for part in parts)),
        column=column,
        rows=np.arange(len(labels)),
    )
