"""What is fitted on and what is tested on: two caches, their classes, groups and images."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featx.errors import SourceError, UsageError, nearest
from featx.fewshot import name_images, split_holdout
from featx.fingerprint import fingerprint
from featx.heads.base import Rows
from featx.sources.manifest import PATH_NAMES
from featx.sources.select import ClassChoice
from featx.sources.tables import TABLE_ENDINGS, find_column, read_table

__all__ = [
    "CacheLike",
    "ClassView",
    "Groups",
    "Pair",
    "add_groups",
    "choose_classes",
    "count_unusable",
    "images_sha256",
]

_DONE = 1


class CacheLike(Protocol):
    """What evaluation reads of a cache."""

    @property
    def X(self) -> Rows:  # noqa: N802
        """Features, (N, D), read when rows are asked for."""

    @property
    def y(self) -> NDArray[np.int64]:
        """Labels, (N,), -1 where unknown."""

    @property
    def status(self) -> NDArray[np.uint8]:
        """1 where the row can be used, (N,)."""

    @property
    def class_names(self) -> list[str]:
        """One name a class."""

    @property
    def paths(self) -> Sequence[str]:
        """One path an image, (N,)."""

    @property
    def image_digests(self) -> NDArray[np.uint8]:
        """SHA-256 of each image's bytes, (N, 32), zeros where unknown."""

    @property
    def meta(self) -> dict[str, Any]:
        """What was recorded at extraction."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the features were made from."""

    @property
    def path(self) -> Path:
        """The file."""


def usable_rows(cache: CacheLike) -> NDArray[np.bool_]:
    """Rows with features and a known label, shape (N,)."""
    return np.asarray((np.asarray(cache.status) == _DONE) & (np.asarray(cache.y) >= 0))


@dataclass(frozen=True)
class Pair:
    """Rows that may be fitted on, and rows that are tested on."""

    train: CacheLike
    test: CacheLike
    data: str | None = None
    notices: tuple[str, ...] = ()
    groups: Groups | None = None

    @property
    def is_holdout(self) -> bool:
        """Whether test rows are held out of the one cache."""
        return self.train.fingerprint == self.test.fingerprint

    @property
    def name(self) -> str:
        """Data, backbone and layer, for messages."""
        meta = self.train.meta
        return f"{self.data_name} {meta['backbone']} {meta['layer']}"

    @property
    def data_name(self) -> str:
        """What the table calls the data: with the split that is tested on, where it is not test."""
        name = str(self.train.meta["data"]) if self.data is None else self.data
        is_usual = self.data is not None or self.tested in ("test", "all")
        return name if is_usual else f"{name} ({self.tested})"

    @property
    def tested(self) -> str:
        """Split that is tested on; ``all`` where rows are held out."""
        return str(self.test.meta.get("split", "test"))

    def split(self, fraction: float, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Rows that may be drawn, and rows that are tested."""
        usable = usable_rows(self.train)
        if not self.is_holdout:
            return usable, np.flatnonzero(usable_rows(self.test)).astype(np.int64)
        groups = self.groups
        train_rows, test_rows = split_holdout(
            self.train.y,
            fraction,
            seed=seed,
            valid=usable,
            groups=None if groups is None else np.array(groups.names)[groups.train],
            class_names=self.train.class_names,
            images=name_images(self.train.image_digests, self.train.paths),
        )
        drawable = np.zeros(len(usable), dtype=bool)
        drawable[train_rows] = True
        return drawable, test_rows


def images_sha256(cache: CacheLike, rows: NDArray[np.int64]) -> str:
    """Digest the images of some rows and their classes, in order.

    Two caches of the same images give the same, whatever backbone made them; equal row numbers
    of other images do not.
    """
    digests, labels = np.asarray(cache.image_digests)[rows], np.asarray(cache.y)[rows]
    state = hashlib.sha256()
    for row, digest, label in zip(rows.tolist(), digests, labels.tolist(), strict=True):
        image = digest.tobytes().hex() if digest.any() else f"path {cache.paths[row]}"
        # ASCII, since names of files need not be text.
        state.update(json.dumps([image, cache.class_names[label]]).encode("ascii") + b"\n")
    return state.hexdigest()


_LONGEST = 40


class ClassView:
    """A cache whose classes were renamed or left out; the rows stay where they are."""

    def __init__(self, base: CacheLike, choice: ClassChoice) -> None:
        self.base, self.choice = base, choice
        self.y, self.class_names = choice.apply(np.asarray(base.y), base.class_names)
        self.X, self.status, self.paths = base.X, base.status, base.paths
        self.image_digests, self.meta = base.image_digests, base.meta
        self.fingerprint, self.path = base.fingerprint, base.path

    @property
    def left_out(self) -> list[str]:
        """Classes of the cache that have no place here, by their old names."""
        kept = set(self.class_names)
        renamed = self.choice.rename
        return [name for name in self.base.class_names if renamed.get(name, name) not in kept]

    def record(self) -> dict[str, Any]:
        """Give the classes as plain values, for a fit's JSON and its name."""
        return {
            "class_names": list(self.class_names),
            "left_out": self.left_out,
            "renamed": dict(self.choice.rename),
        }


def choose_classes(pair: Pair, choice: ClassChoice) -> Pair:
    """Fit and test on some classes only."""
    if choice.is_everything:
        return pair
    try:
        train = ClassView(pair.train, choice)
    except UsageError as error:
        raise UsageError(f"{pair.data_name}: {error}") from error
    test = train if pair.test is pair.train else ClassView(pair.test, choice)
    notice = f"{len(train.class_names)} classes of {len(pair.train.class_names)}"
    if train.left_out:
        notice += f", left out: {', '.join(train.left_out)}"
    if choice.rename:
        notice += f", {', '.join(f'{old} as {new}' for old, new in choice.rename.items())}"
    return replace(
        pair,
        train=train,
        test=test,
        data=f"{pair.data_name} {describe(choice)}",
        notices=(*pair.notices, notice),
    )


def describe(choice: ClassChoice) -> str:
    """Give a choice a name that no other choice has, readable where it is short."""
    words = [f"{old}={new}" for old, new in choice.rename.items()]
    words += [f"+{name}" for name in choice.keep] + [f"-{name}" for name in choice.drop]
    text = " ".join(words)
    return text if len(text) <= _LONGEST else f"[classes {fingerprint(choice.record())[:6]}]"


def count_unusable(cache: CacheLike) -> int:
    """Rows without features or without a known label; classes left out by choice do not count."""
    return int((~usable_rows(cache.base if isinstance(cache, ClassView) else cache)).sum())


@dataclass(frozen=True, eq=False)
class Groups:
    """The group of every row of a pair of caches."""

    column: str
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
    return replace(pair, groups=Groups(column, tuple(names), codes[0], codes[-1]))


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
    is_needed = usable_rows(cache)
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
