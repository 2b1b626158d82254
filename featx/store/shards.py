"""A place of shards: a folder of ordinary cache files, each for a range of rows, and a manifest.

The manifest says what one file would say before its first row, and which images belong to which
shard, so that processes that never hear of each other fill the same place. `sharded` reads one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from featx.atomic import locked, replace_text
from featx.errors import CacheError, CacheMismatchError
from featx.fingerprint import differences
from featx.records import RecordError, read_record, record_text
from featx.store import disk, layout
from featx.store.names import encode_names
from featx.store.reader import Cache
from featx.store.recognise import PLACE_MANIFEST
from featx.store.reuse import without_source

__all__ = [
    "INDEX",
    "PLACE_LOCK",
    "SHARD_ROWS",
    "SUFFIX",
    "Index",
    "Manifest",
    "begin_place",
    "height_of",
    "heights_of",
    "is_place",
    "list_digest",
    "list_digests",
    "place_around",
    "place_of",
    "require_shard",
]

SUFFIX: Final = ".shards"
INDEX: Final = "featx-index.json"
SHARD_ROWS: Final = 8192
"""Rows of a shard where nothing else is asked for."""

_KIND: Final = "cache shards"
_INDEX_KIND: Final = "index of cache shards"
PLACE_LOCK: Final = "featx-shards.lock"
_MOST_NAMED: Final = 5
_PER_FOLDER: Final = 256


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a place holds, all known before the first image is read; see docs/cache-format.md.

    `identity` is that of one file but for its `source`; `listed` has the digest of the names and
    labels of each shard.
    """

    identity: Mapping[str, Any]
    meta: Mapping[str, Any]
    class_names: Sequence[str]
    n_rows: int
    n_features: int
    dtype: str
    shard_rows: int
    listed: Sequence[str]
    digest: str = field(default="", compare=False)

    @classmethod
    def read(cls, place: Path) -> Self:
        """Read the manifest of a place; a `CacheError` where it is missing or damaged."""
        path = place / PLACE_MANIFEST
        if not path.is_file():
            raise CacheError(f"{place} has no {PLACE_MANIFEST}: it is no place of shards")
        try:
            found = cls(**read_record(_KIND, path))
            found._check()
        except (CacheError, RecordError, TypeError, ValueError) as error:
            raise CacheError(
                f"{path}: {error}: run the command that made it with --overwrite, which writes it "
                "anew and keeps good shards"
            ) from error
        return replace(found, digest=hashlib.sha256(path.read_bytes()).hexdigest())

    def write(self, place: Path) -> None:
        """Write it whole, or not at all."""
        values = asdict(self)
        del values["digest"]
        with disk.translated(f"cannot write {place / PLACE_MANIFEST}"):
            replace_text(place / PLACE_MANIFEST, record_text(_KIND, values))

    def _check(self) -> None:
        """Refuse what anybody could have sealed."""
        numbers = (self.n_rows, self.n_features, self.shard_rows)
        if not all(type(n) is int and n > 0 for n in numbers):
            raise ValueError("its numbers of rows and features are no positive integers")
        layout.feature_dtype(self.dtype)
        if not isinstance(self.identity, dict) or not isinstance(self.meta, dict):
            raise TypeError("its identity and meta are no JSON objects")
        splits = self.meta.get("splits", {})
        if not isinstance(splits, dict) or not all(isinstance(s, dict) for s in splits.values()):
            raise TypeError("its splits are no JSON objects")
        texts = [*self.class_names, *self.listed]
        if not all(isinstance(text, str) for text in texts) or len(self.listed) != self.n_shards:
            raise ValueError("its names of classes or lists of images are none")

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return -(-self.n_rows // self.shard_rows)

    def file_name(self, number: int) -> str:
        """Name of a shard in its place, by its first row."""
        # A run looks through the folder of its file: it must stay small however many shards come.
        return f"{number // _PER_FOLDER:04d}/rows-{number * self.shard_rows:012d}.h5"

    def rows(self, number: int) -> tuple[int, int]:
        """First row of a shard, and the end."""
        start = number * self.shard_rows
        return start, min(start + self.shard_rows, self.n_rows)

    def missing(self, place: Path) -> list[int]:
        """Numbers of the shards that are not there."""
        with disk.translated(f"cannot read {place}"):
            names = {
                f"{folder}/{name}"
                for folder in os.listdir(place)  # noqa: PTH208 - 10,000 Path objects are slow
                if folder.isdecimal()
                for name in os.listdir(place / folder)  # noqa: PTH208
            }
        return [n for n in range(self.n_shards) if self.file_name(n) not in names]

    def describe_missing(self, missing: Sequence[int]) -> str:
        """Say which shards and rows are missing; neighbours together."""
        runs = list(_runs(missing))
        named = [
            f"{self.rows(first)[0]:,}-{self.rows(last)[1] - 1:,}"
            for first, last in runs[:_MOST_NAMED]
        ]
        more = f" and {len(runs) - _MOST_NAMED:,} more ranges" if len(runs) > _MOST_NAMED else ""
        return (
            f"{len(missing):,} of {self.n_shards:,} shards are missing: rows "
            f"{', '.join(named)}{more}"
        )


@dataclass(frozen=True, kw_only=True)
class Index:
    """What is known of a place once all its shards are there; made again where it does not fit."""

    manifest: str
    content: str
    seals: Sequence[str]
    n_failed: int

    @classmethod
    def read(cls, place: Path, manifest: Manifest) -> Self | None:
        """Read the index; None where there is none, or it is about another manifest."""
        try:
            found = cls(**read_record(_INDEX_KIND, place / INDEX))
        except (RecordError, TypeError):
            return None
        is_ours = found.manifest == manifest.digest and len(found.seals) == manifest.n_shards
        return found if is_ours else None

    def write(self, place: Path) -> None:
        """Write it; a place that cannot be written to is read as well."""
        with suppress(OSError):
            replace_text(place / INDEX, record_text(_INDEX_KIND, asdict(self)))


def is_place(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a place of shards."""
    return (Path(path) / PLACE_MANIFEST).is_file()


def place_around(path: Path) -> Path | None:
    """Give the place that a path is, or that it is a shard of."""
    return next((folder for folder in (path, path.parent.parent) if is_place(folder)), None)


def list_digest(paths: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 of the names and labels of a shard's images, as its file has them."""
    state = hashlib.sha256(f"{paths.dtype.str}{paths.shape};".encode())
    state.update(paths.tobytes() + labels.astype("<i8").tobytes())
    return state.hexdigest()


def list_digests(paths: Sequence[str], labels: np.ndarray, shard_rows: int) -> list[str]:
    """Digest the list of images shard by shard."""
    starts = range(0, len(paths), shard_rows)
    return [
        list_digest(encode_names(paths[i : i + shard_rows], "path"), labels[i:][:shard_rows])
        for i in starts
    ]


def begin_place(
    place: Path,
    wanted: Manifest,
    *,
    grows: bool,
    overwrite: bool,
    tell: Callable[[str], object],
) -> Manifest:
    """Write the manifest of a place, or take up the one that another process wrote.

    One that lists other images is replaced where the place `grows`; one of other settings only to
    `overwrite`. Shards stay as they are: each is compared with what is wanted when its turn comes.
    """
    with disk.translated(f"cannot write {place}"):
        place.mkdir(parents=True, exist_ok=True)
        with locked(place / PLACE_LOCK, tell):
            if is_place(place) and not _is_replaced(place, wanted, grows, overwrite):
                return Manifest.read(place)
            wanted.write(place)
            return Manifest.read(place)


def _is_replaced(place: Path, wanted: Manifest, grows: bool, overwrite: bool) -> bool:
    """Whether the manifest that is there gives way; an error where it is in the way."""
    try:
        found = Manifest.read(place)
    except CacheError:
        if overwrite:
            return True
        raise
    if found.shard_rows != wanted.shard_rows:
        raise _other_height(place, found.shard_rows, wanted.shard_rows)
    lines = _differences(wanted, found)
    if lines and not overwrite:
        raise CacheMismatchError(
            f"{place} holds shards of other features than those asked for: ask for the same, "
            "choose another folder (--cache DIR), or replace them (--overwrite)",
            lines,
        )
    is_other = list(found.listed) != list(wanted.listed)
    if is_other and not (grows or overwrite):
        raise CacheMismatchError(
            f"{place} was begun with another list of images: give --append to add new ones, or "
            "choose another folder (--cache DIR)",
            [f"n_images: asked for {wanted.n_rows:,}, the manifest has {found.n_rows:,}"],
        )
    return bool(lines) or is_other


def _other_height(place: Path, found: int, asked: int) -> CacheError:
    return CacheError(
        f"{place} has shards of {found:,} rows, not {asked:,}: leave out --shard-rows, or choose "
        "another folder with --cache DIR"
    )


def _differences(wanted: Manifest, found: Manifest) -> list[str]:
    def settings(manifest: Manifest) -> dict[str, Any]:
        names = ("class_names", "n_features", "dtype")
        return {**manifest.identity, **{name: getattr(manifest, name) for name in names}}

    return differences(json.loads(json.dumps(settings(wanted))), settings(found))


def require_shard(manifest: Manifest, number: int, cache: Cache) -> None:
    """Refuse a file that is not the shard that the manifest says."""
    start, stop = manifest.rows(number)
    identity = cache.meta["identity"]
    lines = differences(manifest.identity, without_source(identity))
    for name, has in (
        ("n_features", cache.n_features),
        ("dtype", cache.X.stored_dtype.name),
        ("class_names", cache.class_names),
    ):
        wanted = getattr(manifest, name)
        if wanted != has:
            lines.append(f"{name}: asked for {wanted!r}, the file has {has!r}")
    if lines:
        raise CacheMismatchError(
            f"{cache.path} was made with other settings than {PLACE_MANIFEST} beside it "
            "says: move it away, then run the command that made the place again",
            lines,
        )
    listed = list_digest(cache.stored_array("paths"), cache.labels)
    if len(cache) != stop - start or listed != manifest.listed[number]:
        raise CacheMismatchError(
            f"{cache.path} does not hold the images of rows {start:,}-{stop - 1:,} that "
            f"{PLACE_MANIFEST} beside it lists: run the command that made the place again with "
            "--append"
        )


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Give the first and the last of neighbouring numbers."""
    first = last = None
    for number in numbers:
        if last is not None and number == last + 1:
            last = number
            continue
        if first is not None and last is not None:
            yield first, last
        first = last = number
    if first is not None and last is not None:
        yield first, last


def place_of(target: Path) -> Path:
    """Name the place of the shards of a cache."""
    return target.with_suffix(SUFFIX)


def heights_of(place: Path, n_rows: int, shard_rows: int | None) -> tuple[list[int], set[int]]:
    """Rows of each shard that a place has or would get, and the numbers of those that are there."""
    height = height_of(place, shard_rows)
    heights = [min(height, n_rows - start) for start in range(0, n_rows, height)]
    with suppress(CacheError):
        manifest = Manifest.read(place)
        return heights, set(range(manifest.n_shards)) - set(manifest.missing(place))
    return heights, set()


def height_of(place: Path, asked: int | None) -> int:
    """Rows of a shard; where none are asked for, those of the shards that are there.

    Without a manifest that can be read, the files say it: each but the last has as many.
    """
    try:
        found = Manifest.read(place).shard_rows
    except CacheError:
        if asked is not None:
            return asked
    else:
        if asked not in (None, found):
            raise _other_height(place, found, asked)
        return found
    heights = []
    for path in place.glob("*/rows-*.h5"):
        with suppress(CacheError), Cache.open(path) as shard:
            heights.append(len(shard))
    return max(heights, default=SHARD_ROWS)
