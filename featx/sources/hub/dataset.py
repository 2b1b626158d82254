"""Data sets of Hugging Face that lie on this machine: saved by `datasets`, or Parquet files.

The files are read by pyarrow alone. No code that comes with a data set is run, nothing is
downloaded, and no file of these kinds holds pickles. Names of files say their splits.
"""

from __future__ import annotations

import bisect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from featx.errors import ImageError, MissingExtraError, ReadError, SourceError
from featx.progress import SILENT, Reporter
from featx.records import parse_json
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
from featx.sources.hub.shards import Recent, Shard, open_shard
from featx.sources.split_columns import divide, find_split
from featx.sources.splits import in_order, split_of, split_of_shard
from featx.sources.tree import some

__all__ = [
    "HubFiles",
    "HubSource",
    "find_files",
    "is_hub_dataset",
    "is_saved",
    "open_hub",
    "parquet_files",
]


_DICT, _STATE, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"
_SHARD = re.compile(r"(?P<word>.+?)-(?P<index>\d{5})-of-(?P<n>\d{5})(-[0-9a-f]+)?")


@dataclass(frozen=True)
class HubFiles:
    """Where a data set lies."""

    name: str
    root: Path
    splits: Mapping[str, list[str]]
    features: Mapping[str, Any] = field(default_factory=dict)


def is_saved(folder: Path) -> bool:
    """Tell whether `datasets` wrote a folder with ``save_to_disk``."""
    return (folder / _DICT).is_file() or all((folder / file).is_file() for file in (_STATE, _INFO))


def parquet_files(folder: Path) -> list[Path]:
    """List the Parquet files of a folder, also in ``data/`` and in folders called like splits."""
    places = [folder, folder / "data"]
    places += [
        path
        for place in places
        for path in _listed(place, lambda name: split_of(name) is not None)
        if path.is_dir()
    ]
    listed = [_listed(place, lambda name: name.lower().endswith(".parquet")) for place in places]
    return [path for paths in listed for path in paths if path.is_file()]


def _listed(folder: Path, is_wanted: Callable[[str], bool]) -> list[Path]:
    """List what is called as wanted; the rest, of which there may be millions, costs little."""
    try:
        with os.scandir(folder) as found:
            names = [entry.name for entry in found if is_wanted(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise SourceError(f"cannot list {str(folder)!r}: {error.strerror}") from error
    return [folder / name for name in sorted(names) if name[0] != "."]


def find_files(root: Path, reporter: Reporter) -> HubFiles:
    """Find the files of a data set."""
    if root.is_file():
        split = _split_of_file(root) or split_of_shard(_word(root)) or "all"
        return HubFiles(root.stem, root, {split: [str(root)]})
    if is_saved(root):
        return _saved(root, reporter)
    members: dict[str, list[Path]] = {}
    for path in parquet_files(root):
        members.setdefault(_split_of_file(path) or _word(path), []).append(path)
    if not any(map(split_of, members)):
        members = _by_words_inside(members)
    if not members:
        raise SourceError(
            f"{str(root)!r} is no data set of Hugging Face: featx reads what save_to_disk wrote, "
            "and Parquet files such as data/train-00000-of-00002.parquet"
        )
    _check_complete([path for paths in members.values() for path in paths])
    if not any(split_of(word) for word in members):
        everything = [str(path) for paths in members.values() for path in paths]
        return HubFiles(root.name, root, {"all": everything})
    splits = _known(root, {word: [*map(str, paths)] for word, paths in members.items()}, reporter)
    return HubFiles(root.name, root, splits)


def _by_words_inside(members: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """Join files by the split that their names name among other words: imagenet-train."""
    joined: dict[str, list[Path]] = {}
    for word, paths in members.items():
        joined.setdefault(split_of_shard(word) or word, []).extend(paths)
    return joined


def _known(root: Path, named: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Keep what is called like a split; the rest is told."""
    splits: dict[str, Any] = {}
    strange = [word for word in named if not split_of(word)]
    for word, value in named.items():
        split = split_of(word)
        if split in splits:
            raise SourceError(f"{root} has two parts for the split {split} ({word}): keep one")
        if split:
            splits[split] = value
    if not splits:
        raise SourceError(
            f"{root} has the splits {', '.join(strange)}: rename them to train, val, test or "
            "unlabeled, or give the folder of one of them"
        )
    if strange:
        reporter.warn(
            f"{root.name!r}: only {', '.join(splits)} read, {', '.join(strange)} left out"
        )
    return splits


def _word(path: Path) -> str:
    match = _SHARD.fullmatch(path.stem)
    return match["word"] if match else re.sub(r"[-_.]?\d+$", "", path.stem)


def _split_of_file(path: Path) -> str | None:
    """Tell the split by the name (train-00000-of-00002, test_1), or the folder's (train/0000)."""
    return split_of(_word(path)) or split_of(path.parent.name)


def _check_complete(paths: list[Path]) -> None:
    matches = [(path, _SHARD.fullmatch(path.stem)) for path in paths]
    for path, match in matches:
        if match is None:
            continue
        same = {
            int(other["index"])
            for sibling, other in matches
            if other and (sibling.parent, other["word"]) == (path.parent, match["word"])
        }
        missing = sorted(set(range(int(match["n"]))) - same)
        if missing:
            name = f"{match['word']}-{missing[0]:05d}-of-{match['n']}"
            raise SourceError(
                f"{path.parent} lacks {len(missing)} of {int(match['n'])} files, the first is "
                f"{name}: download them too"
            )


def _saved(root: Path, reporter: Reporter) -> HubFiles:
    features: dict[str, Any] = {}
    if not (root / _DICT).is_file():
        files, split = _saved_split(root, features)
        return HubFiles(root.name, root, {split_of(split) or "all": files}, features)
    words = _json(root / _DICT).get("splits")
    if not isinstance(words, list) or not words:
        raise SourceError(f"{root / _DICT} names no splits: save the data set again")
    known = _known(root, {str(word): str(word) for word in words}, reporter)
    splits = {split: _saved_split(root / word, features)[0] for split, word in known.items()}
    return HubFiles(root.name, root, splits, features)


def _saved_split(folder: Path, features: dict[str, Any]) -> tuple[list[str], str]:
    """List the files of one split in order; adds what dataset_info.json says of them."""
    state, info = _json(folder / _STATE), _json(folder / _INFO)
    if state.get("_indices_data_files"):
        raise SourceError(
            f"{folder} was saved with a selection of rows by an old version of datasets: "
            "load it and save it again with a newer one"
        )
    listed = state.get("_data_files")
    names = [str(item.get("filename")) for item in listed] if isinstance(listed, list) else []
    if not names or any(Path(name).name != name for name in names):
        raise SourceError(f"{folder / _STATE} names no files in its folder: save it again")
    files = [str(folder / name) for name in names]
    features.update({file: info.get("features") for file in files})
    return files, str(state.get("_split"))


def _json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise SourceError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise SourceError(f"{path} is damaged: it holds no object")
    return value


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
