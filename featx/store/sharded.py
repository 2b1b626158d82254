"""A place of shards, read as one cache: files are opened when one of their rows is wanted."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from featx.errors import CacheError, UsageError
from featx.fingerprint import fingerprint
from featx.progress import SILENT, Reporter
from featx.sources.base import content_of
from featx.store import disk, layout
from featx.store.features import FeatureArray
from featx.store.header import HeaderBlock, read_block
from featx.store.layout import Extent
from featx.store.names import Names
from featx.store.reader import Cache, Damage, reopen_features
from featx.store.shards import Index, Manifest, require_shard
from featx.store.threads import in_threads

__all__ = ["ShardedCache"]

_MOST_OPEN: Final = 256
_THREADED_BYTES: Final = 4 << 20


@dataclass(frozen=True)
class _Small:
    labels: np.ndarray
    status: np.ndarray
    errors: dict[int, str]
    seals: list[str]


class ShardedCache(Cache):
    """A place of shards; looks like one cache of all their rows."""

    def __init__(self, place: Path, manifest: Manifest) -> None:
        self.path, self.manifest = place, manifest
        self._shards = _Shards(place, manifest)
        reopen = partial(reopen_features, type(self), *self._known_by())
        self.X = _ShardedFeatures(self._shards, reopen)

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, dtype: Any = "float32", verify_seal: bool = True
    ) -> Self:
        """Open a place whose shards are all there; see `Cache.open`."""
        del verify_seal  # each shard is checked when it is first read
        place = Path(path).absolute()
        manifest = Manifest.read(place)
        if missing := manifest.missing(place):
            raise CacheError(
                f"{path} is incomplete: {manifest.describe_missing(missing)}: run the command "
                "that made it, with the same --shard I/N or, for all of it, --shard 1/1"
            )
        cache = cls(place, manifest)
        cache.X = cache.X.astype(dtype)
        return cache

    @cached_property
    def index(self) -> Index:
        """What is known of all shards together; kept beside them, and made again if it is old."""
        seals = [_seal_of(self.path / self.manifest.file_name(n)) for n in range(self.n_shards)]
        index = Index.read(self.path, self.manifest)
        if index is None or list(index.seals) != seals:
            index = self._make_index()
            index.write(self.path)
        self._shards.require_seals(index.seals)
        return index

    def _make_index(self) -> Index:
        return Index(
            manifest=self.manifest.digest,
            content=content_of(self.image_digests, self.labels, self.class_names),
            seals=self._small.seals,
            n_failed=len(self.errors),
        )

    @cached_property
    def fingerprint(self) -> str:
        """That of the file that `featx merge` makes."""
        return fingerprint(self.meta["identity"])

    @cached_property
    def meta(self) -> dict[str, Any]:
        """What that file would record."""
        manifest, content = self.manifest, self.index.content
        names = list(manifest.class_names)
        source = {"content": content, "n_images": len(self), "class_names": names}
        splits: dict[str, Mapping[str, Any]] = dict(manifest.meta.get("splits", {}))
        own = str(manifest.meta.get("split"))
        splits[own] = {**splits.get(own, {}), "content": content}
        return {
            **manifest.meta,
            "splits": splits,
            "identity": {**manifest.identity, "source": source},
        }

    @property
    def n_bytes(self) -> int:
        """Size of all shards on the disk."""
        names = map(self.manifest.file_name, range(self.n_shards))
        return sum((self.path / name).stat().st_size for name in names)

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return self.manifest.n_shards

    @cached_property
    def labels(self) -> np.ndarray:
        """Shape (N,), int64: see `Cache.labels`."""
        return self._small.labels

    @cached_property
    def status(self) -> np.ndarray:
        """Shape (N,), uint8: see `Cache.status`."""
        return self._small.status

    @cached_property
    def errors(self) -> dict[int, str]:
        """Reasons of failed rows, by row."""
        return self._small.errors

    @cached_property
    def _small(self) -> _Small:
        """What is small of all rows, in one pass over the shards."""
        n = len(self)
        found = _Small(np.empty(n, np.int64), np.empty(n, "u1"), {}, [])
        for start, shard in self._shards.each():
            found.labels[start : start + len(shard)] = shard.labels
            found.status[start : start + len(shard)] = shard.status
            found.errors.update((start + row, why) for row, why in shard.errors.items())
            found.seals.append(shard.seal)
        found.labels.flags.writeable = found.status.flags.writeable = False
        return found

    @property
    def names(self) -> Names:
        """The paths as stored: see `Cache.names`."""
        return Names(
            np.concatenate([shard.stored_array("paths") for _, shard in self._shards.each()])
        )

    @cached_property
    def class_names(self) -> list[str]:
        """One name a class."""
        return list(self.manifest.class_names)

    @cached_property
    def image_digests(self) -> np.ndarray:
        """Shape (N, 32), uint8: see `Cache.image_digests`."""
        whole = np.empty((len(self), layout.DIGEST_BYTES), "u1")
        for start, shard in self._shards.each():
            whole[start : start + len(shard)] = shard.stored_array("image_sha256")
        whole.flags.writeable = False
        return whole

    def stored_array(self, name: str) -> np.ndarray:
        """Refuse: the arrays of a place lie in its shards."""
        raise UsageError(
            f"{self.path} is a place of shards, and no file with {name}: run  featx merge "
            f"{self.path}  first"
        )

    def __repr__(self) -> str:
        return (
            f"<ShardedCache {self.path.name}: {len(self):,} x {self.n_features:,} "
            f"{self.X.stored_dtype.name} in {self.manifest.n_shards:,} shards>"
        )

    def verify(self, reporter: Reporter = SILENT) -> list[Damage]:
        """Check every byte of every shard that is there; see `Cache.verify`."""
        missing = set(self.manifest.missing(self.path))
        found: list[Damage] = []
        if missing:
            text = self.manifest.describe_missing(sorted(missing))
            found.append(Damage("file", 0, 0, text))
        with reporter.bar(len(self), f"verify {self.path.name}", "row") as bar:
            for number in range(self.n_shards):
                start, stop = self.manifest.rows(number)
                if number in missing:
                    continue
                try:
                    with self._shards.open(number) as shard:
                        damages = shard.verify()
                except CacheError as error:
                    damages = [Damage("file", 0, 0, str(error))]
                name = self.manifest.file_name(number)
                found += [
                    Damage(f"{name} {d.dataset}", d.start + start, d.stop + start, d.reason)
                    for d in damages
                ]
                bar.update(stop - start)
        return found

    def close(self) -> None:
        """Close the files; what was read before stays valid."""
        self._shards.close()

    def _known_by(self) -> tuple[str, str, str]:
        return str(self.path), self.manifest.digest, self.manifest.digest


class _Shards:
    """The files of a place, of which a bounded number is open.

    What was found out about a file is kept when it is closed: its seal, so that it must be the
    same file when it is opened again, and which of its blocks were compared with their digests.
    """

    def __init__(self, place: Path, manifest: Manifest) -> None:
        self.place, self.manifest = place, manifest
        self._lock = threading.Lock()
        self._open: OrderedDict[int, Cache] = OrderedDict()
        self._known: dict[int, tuple[str, np.ndarray | None]] = {}
        self._is_closed = False

    def get(self, number: int) -> Cache:
        """Give a shard, open; one that was not used for long is closed when its last user ends."""
        with self._lock:
            if self._is_closed:
                raise CacheError(f"{self.place} was closed: open it again")
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
        shard = self.open(number)
        with self._lock:
            seal, is_checked = self._known.get(number, (shard.seal, None))
            if seal != shard.seal:
                raise _changed(shard.path)
            if is_checked is not None:
                shard.X.is_checked = is_checked
            self._known[number] = seal, shard.X.is_checked
            self._open[number] = shard
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        return shard

    def open(self, number: int) -> Cache:
        """Open a shard and compare it with the manifest."""
        shard = Cache.open(self.place / self.manifest.file_name(number))
        try:
            require_shard(self.manifest, number, shard)
        except BaseException:
            shard.close()
            raise
        return shard

    def require_seals(self, seals: Sequence[str]) -> None:
        """Refuse from now on, and of what was read, any other file than these."""
        with self._lock:
            for number, seal in enumerate(seals):
                known, is_checked = self._known.get(number, (seal, None))
                if known != seal:
                    raise _changed(self.place / self.manifest.file_name(number))
                self._known[number] = seal, is_checked

    def each(self) -> Iterator[tuple[int, Cache]]:
        """Give the first row and the file of each shard, in order."""
        for number in range(self.manifest.n_shards):
            yield self.manifest.rows(number)[0], self.get(number)

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            self._is_closed = True
            for shard in self._open.values():
                shard.close()
            self._open.clear()


class _ShardedFeatures(FeatureArray):
    """The features of all shards, read from each."""

    def __init__(self, shards: _Shards, reopen: Any) -> None:
        manifest = shards.manifest
        dtype = layout.feature_dtype(manifest.dtype)
        self._shards, self._reopen = shards, reopen
        self._extent = Extent(0, (manifest.n_rows, manifest.n_features), dtype)
        self._row_bytes = manifest.n_features * dtype.itemsize
        self.block_rows = layout.default_block_rows(self._row_bytes)
        self._dtype = np.dtype(np.float32)

    def _of(self, number: int) -> FeatureArray:
        return self._shards.get(number).X._as(self._dtype)

    def _fill_span(self, out: np.ndarray, start: int) -> None:
        height, stop = self._shards.manifest.shard_rows, start + len(out)

        def fill(number: int) -> None:
            first = number * height
            low, high = max(start, first), min(stop, first + height)
            self._of(number)._fill_span(out[low - start : high - start], low - first)

        self._each(fill, range(start // height, (stop - 1) // height + 1), out.nbytes)

    def _fill_rows(self, out: np.ndarray, at: np.ndarray, rows: np.ndarray) -> None:
        height = self._shards.manifest.shard_rows
        numbers, starts = np.unique(rows // height, return_index=True)
        ends = [*starts[1:].tolist(), len(rows)]

        def fill(item: tuple[int, int, int]) -> None:
            number, low, high = item
            self._of(number)._fill_rows(out, at[low:high], rows[low:high] - number * height)

        items = list(zip(numbers.tolist(), starts.tolist(), ends, strict=True))
        # Of each block that was not read yet, all is read.
        self._each(fill, items, len(np.unique(rows // self.block_rows)) << 20)

    def _each(self, fill: Any, items: Any, n_bytes: int) -> None:
        if len(items) == 1 or n_bytes < _THREADED_BYTES:
            for item in items:
                fill(item)
            return
        for _ in in_threads(fill, items):
            pass

    def check(self) -> None:
        """Compare every block that was not read yet with its digest; see `FeatureArray.check`."""
        for _, shard in self._shards.each():
            shard.X.check()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("features in shards become an array by a copy")
        return super().__array__(dtype, copy=True)

    def memmap(self) -> np.memmap[Any, Any]:
        """Refuse: several files cannot be mapped as one."""
        place = self._shards.place
        raise UsageError(f"{place} has many files, and cannot be mapped: run  featx merge {place}")


def _changed(path: Path) -> CacheError:
    return CacheError(f"{path} was written anew since its place was opened: open the place again")


def _seal_of(path: Path) -> str:
    with disk.translated(f"cannot read {path}"), path.open("rb") as stream:
        block = read_block(stream.fileno())
    try:
        return HeaderBlock.parse(block).digest
    except CacheError as error:
        raise CacheError(f"{path}: {error}") from error
