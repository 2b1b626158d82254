"""The files of a data set of Hugging Face, and the split that each belongs to."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featx.errors import SourceError
from featx.progress import Reporter
from featx.records import parse_json
from featx.sources.splits import split_of, split_of_shard

__all__ = ["HubFiles", "find_files", "is_saved", "parquet_files"]

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
