"""Which images belong together: one patient, one video, one place."""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from featx.errors import SourceError, UsageError, nearest
from featx.evaluate.pairs import CacheLike, Pair
from featx.fingerprint import fingerprint
from featx.sources.manifest import PATH_NAMES
from featx.sources.tables import TABLE_ENDINGS, find_column, read_table

__all__ = ["Groups", "add_groups"]


@dataclass(frozen=True, eq=False)
class Groups:
    """The group of every row of a pair of caches."""

    column: str
    tables: tuple[str, str]
    names: tuple[str, ...]
    train: NDArray[np.int64]
    test: NDArray[np.int64]

    def of(
        self, train: NDArray[np.int64], test: NDArray[np.int64]
    ) -> tuple[list[Hashable], list[Hashable]]:
        """Names of the groups of some rows of either cache."""
        return [self.names[g] for g in self.train[train]], [self.names[g] for g in self.test[test]]

    def record(self) -> dict[str, object]:
        """Give what a fit's JSON and its name keep of the groups."""
        named = [
            [self.names[g] if g >= 0 else "" for g in part] for part in (self.train, self.test)
        ]
        return {"column": self.column, "sha256": fingerprint({"groups": named})}


def add_groups(pair: Pair, words: str) -> Pair:
    """Read the groups of a pair's images."""
    table, _, column = words.rpartition(":")
    if not column:
        raise UsageError(f"--groups takes COLUMN or TABLE:COLUMN, not {words!r}")
    caches = [pair.train] if pair.train is pair.test else [pair.train, pair.test]
    files = [Path(table) if table else _own_table(cache, column) for cache in caches]
    found = [_names_of(*item, column) for item in zip(caches, files, strict=True)]
    names = sorted({name for part in found for name in part if name})
    index = {name: i for i, name in enumerate(names)}
    codes = [np.array([index.get(name, -1) for name in part], np.int64) for part in found]
    groups = Groups(column, (str(files[0]), str(files[-1])), tuple(names), codes[0], codes[-1])
    return replace(pair, groups=groups)


def _own_table(cache: CacheLike, column: str) -> Path:
    data = cache.meta.get("request", {}).get("data")
    if data is not None and Path(data).suffix.lower() in TABLE_ENDINGS:
        return Path(data)
    made = f"was made from {data}, which is no table" if data else "does not say its table"
    raise UsageError(f"--groups {column}: {cache.path} {made}: give --groups TABLE:{column}")


def _names_of(cache: CacheLike, file: Path, column: str) -> list[str]:
    """Name of each row's group, in row order; "" for unusable rows that have none."""
    group_of = _read(file, column, _root(cache))
    names = [_group(group_of, _plain(path)) for path in cache.paths]
    is_needed = (np.asarray(cache.status) == 1) & (np.asarray(cache.y) >= 0)
    lost = [
        path for path, name, n in zip(cache.paths, names, is_needed, strict=True) if n and not name
    ]
    if lost:
        shown = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
        there = ", ".join(sorted(group_of)[:2]) or "nothing"
        raise SourceError(
            f"{file} gives no {column!r} for {len(lost):,} of {int(is_needed.sum()):,} images of "
            f"{Path(cache.path).name} ({shown}): its paths are like {there}; they must be those of "
            "the cache, or relative to the table's folder"
        )
    return names


def _group(group_of: dict[str, str], path: str) -> str:
    """Find the group of an image, by its name with or without the ending."""
    return group_of.get(path) or group_of.get(os.path.splitext(path)[0], "")  # noqa: PTH122


def _root(cache: CacheLike) -> Path | None:
    data = cache.meta.get("request", {}).get("data")
    return None if data is None or Path(data).is_file() else _absolute(Path(data))


def _read(file: Path, column: str, root: Path | None) -> dict[str, str]:
    table = read_table(file)
    paths = [name for name in PATH_NAMES if name != column.strip().lower()]
    path_column = find_column(str(file), table, paths) or PATH_NAMES[0]
    for name in (path_column, column):
        if name not in table:
            close = nearest(name, table) if name == column else []
            hint = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(table)}"
            raise UsageError(f"--groups: {file} has no column {name!r}: {hint}")
    found: dict[str, str] = {}
    for path, cell in zip(table[path_column], table[column], strict=True):
        group = cell.strip()
        for key in _keys(path, file, root):
            if found.setdefault(key, group) != group:
                raise SourceError(
                    f"{file} puts {path!r} in two groups, {found[key]!r} and {group!r}"
                )
    return found


def _keys(path: str, file: Path, root: Path | None) -> set[str]:
    """Write a path of the table in the ways that a cache may write it."""
    folder = _absolute(file).parent
    full = Path(os.path.normpath(folder / path.strip().replace("\\", "/")))
    keys = {_plain(path.strip())}
    for base in (folder, root):
        if base is not None and full.is_relative_to(base):
            keys.add(full.relative_to(base).as_posix())
    return keys


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the links


def _plain(path: str) -> str:
    return str(PurePosixPath(path.replace("\\", "/")))
