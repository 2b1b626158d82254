"""Rows of features: computed, or kept on the disk and found again by the digest of their image.

The folder of each identity (network, weights, preprocessing, feature point, precision, type)
holds ordinary cache files with the rows that one call had to compute. A process holds the folder's
lock while it looks rows up or computes them, so that no image is computed twice. It releases the
lock after every file, so that other processes can use the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx.atomic import locked
from featx.backbones import Backbone
from featx.engines import FeatureBatch, LocalEngine
from featx.engines.loader import worker_deaths_named
from featx.errors import CacheError, FeatxError, ImageError
from featx.extract import Settings, make_spec
from featx.fingerprint import fingerprint
from featx.progress import Reporter
from featx.sources import Source
from featx.store import Cache, CacheSpec, CacheWriter, disk

__all__ = ["RowMemory", "Setup", "UnreadableError"]


class UnreadableError(ImageError):
    """An image that cannot be read, and its row."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row


@dataclass(frozen=True)
class Setup:
    """Computes features with a backbone and an engine."""

    backbone: Backbone
    engine: LocalEngine
    dtype: str
    reporter: Reporter

    def features(
        self, source: Source, *, is_strict: bool, digests: np.ndarray | None = None
    ) -> tuple[np.ndarray[Any, Any], dict[int, str]]:
        """Compute features of every image; return them, and the reason of each failure by row."""
        nothing = np.empty((0, self.backbone.n_features), self.dtype), dict[int, str]()
        n_rows = max(1, len(source))
        [found] = [*self.groups(source, n_rows, is_strict=is_strict, digests=digests)] or [nothing]
        return found

    def groups(
        self,
        source: Source,
        n_rows: int,
        *,
        is_strict: bool = False,
        digests: np.ndarray | None = None,
    ) -> Generator[tuple[np.ndarray[Any, Any], dict[int, str]], None, None]:
        """Compute the same in groups of `n_rows` rows, with workers that are started once."""
        n, size = len(source), self.engine.batch_size
        with ExitStack() as stack:
            stack.enter_context(worker_deaths_named())
            bar = stack.enter_context(self.reporter.bar(n, self.backbone.name))
            run = self.engine.run(self.backbone, source, range(-(-n // size)), dtype=self.dtype)
            for batch in stack.enter_context(closing(run)):
                self._check(batch, source, is_strict, digests)
                start = batch.start % n_rows
                if start == 0:
                    shape = min(n_rows, n - batch.start), self.backbone.n_features
                    features, failed = np.empty(shape, self.dtype), dict[int, str]()
                stop = start + len(batch.features)
                features[start:stop] = batch.features
                new = {row - batch.start + start: why for row, why in batch.failed.items()}
                features[list(new)] = np.nan
                failed |= new
                self._check_finite(features[start:stop], len(batch.failed))
                bar.update(len(batch.features))
                if stop == len(features):
                    yield features, failed

    def _check(
        self, batch: FeatureBatch, source: Source, is_strict: bool, digests: np.ndarray | None
    ) -> None:
        if digests is not None:
            source.require_unchanged(batch.start, batch.digests, digests)
        if is_strict and batch.failed:
            row = min(batch.failed)
            raise UnreadableError(row, batch.failed[row])

    def _check_finite(self, features: np.ndarray, n_failed: int) -> None:
        n_bad = int((~np.isfinite(features).all(1)).sum()) - n_failed
        if n_bad:
            raise FeatxError(
                f"the features of {n_bad} images are not finite in {self.dtype} at precision "
                f"{self.engine.precision}: use dtype='float32' and precision='fp32'"
            )


_MOST_FILES = 64
_FILES_PER_MERGE = 32
_ROWS_PER_FILE = 1024
_BYTES_PER_FILE = 1 << 28
_DONE = 1

_Place = tuple[Cache, int]
_Rows = tuple[np.ndarray[Any, Any], dict[int, str]]


class RowMemory:
    """Features of images seen before."""

    def __init__(self, folder: Path, setup: Setup) -> None:
        self._root, self._setup = folder, setup

    def features(
        self, source: Source, *, is_strict: bool
    ) -> tuple[np.ndarray[Any, Any], dict[int, str]]:
        """Look features up; compute and keep those that are missing."""
        digests = source.image_digests(reporter=self._setup.reporter)
        keys = [bytes(digest) for digest in digests]
        folder = self._folder(source, digests)
        reasons: dict[bytes, str] = {}
        planned: list[int] = []
        with ExitStack() as stack, ExitStack() as workers, worker_deaths_named():
            while True:
                with self._locked(folder):
                    caches = _open_all(folder, stack)
                    places = _places(caches)
                    rows = _missing(keys, places.keys() | reasons.keys())
                    if not rows:
                        break
                    if rows != planned:  # the first time, or another process computed some
                        workers.close()
                        groups = workers.enter_context(self._started(source, digests, rows))
                    n = self._rows_per_file
                    planned = rows[n:]
                    reasons |= self._keep(source, digests, rows[:n], next(groups), folder)
                    if not planned:
                        next(groups, None)  # ends the bar and the workers
                    _merge(folder)
                if is_strict and reasons:
                    row = next(i for i, key in enumerate(keys) if key in reasons)
                    raise UnreadableError(row, reasons[keys[row]])
            features = self._gather(keys, places)
        return features, {i: reasons[key] for i, key in enumerate(keys) if key in reasons}

    @property
    def _rows_per_file(self) -> int:
        """Whole batches: about 1,024 rows, at most 256 MB."""
        size, setup = self._setup.engine.batch_size, self._setup
        row_bytes = setup.backbone.n_features * np.dtype(setup.dtype).itemsize
        return max(1, min(_ROWS_PER_FILE, _BYTES_PER_FILE // row_bytes) // size) * size

    def _spec(self, source: Source, digests: np.ndarray) -> CacheSpec:
        setup = self._setup
        settings = Settings(store_dtype=setup.dtype)
        content = source.content_id(digests)
        spec = make_spec(source, setup.backbone, setup.engine, settings, digests, content)
        # The same image may have other paths elsewhere, so its name here is its digest.
        return dataclasses.replace(spec, paths=[bytes(digest).hex() for digest in digests])

    def _folder(self, source: Source, digests: np.ndarray) -> Path:
        identity = _without_source(self._spec(source.take(np.arange(1)), digests[:1]).identity)
        name = re.sub(r"[^\w.+-]+", "_", self._setup.backbone.name)
        return self._root / f"{name}-{fingerprint(identity)[:32]}"

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        with ExitStack() as stack:
            with disk.translated(f"the memory {folder} cannot be used"):
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(folder / ".lock", self._setup.reporter.warn))
            yield

    def _started(
        self, source: Source, digests: np.ndarray, rows: list[int]
    ) -> AbstractContextManager[Generator[_Rows, None, None]]:
        part = source.take(np.array(rows))
        return closing(self._setup.groups(part, self._rows_per_file, digests=digests[rows]))

    def _keep(
        self, source: Source, digests: np.ndarray, rows: list[int], found: _Rows, folder: Path
    ) -> dict[bytes, str]:
        """Write the rows that could be computed; return digest and reason of the others."""
        features, failed = found
        good = np.array([i for i in range(len(rows)) if i not in failed], np.int64)
        if len(good):
            kept = np.array(rows)[good]
            _write(folder, self._spec(source.take(kept), digests[kept]), [features[good]])
        return {bytes(digests[rows[i]]): reason for i, reason in failed.items()}

    def _gather(self, keys: Sequence[bytes], places: Mapping[bytes, _Place]) -> np.ndarray:
        shape = len(keys), self._setup.backbone.n_features
        features = np.full(shape, np.nan, self._setup.dtype)
        wanted: dict[int, tuple[Cache, list[int], list[int]]] = {}
        for i, key in enumerate(keys):
            if key in places:
                cache, row = places[key]
                _, targets, rows = wanted.setdefault(id(cache), (cache, [], []))
                targets.append(i)
                rows.append(row)
        for cache, targets, rows in wanted.values():
            features[targets] = _rows(cache, np.array(rows))
        return features


def _without_source(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in identity.items() if name != "source"}


def _missing(keys: Sequence[bytes], known: set[bytes]) -> list[int]:
    """Return the first row of each image that is not known."""
    first: dict[bytes, int] = {}
    for i, key in enumerate(keys):
        first.setdefault(key, i)
    return [i for key, i in first.items() if key not in known]


def _open_all(folder: Path, stack: ExitStack) -> list[Cache]:
    stack.close()  # closes the files of the round before
    caches = []
    for path in sorted(folder.glob("*.h5")):
        with _explained(path):
            caches.append(stack.enter_context(Cache.open(path)))
    return caches


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Add to errors what to do about a damaged file."""
    try:
        yield
    except CacheError as error:
        error.add_note(
            f"it is a memory of FeatureExtractor: delete {path}, its rows are computed again"
        )
        raise


def _rows(cache: Cache, key: Any) -> np.ndarray[Any, Any]:
    with _explained(cache.path):
        return cache.X.stored[key]


def _places(caches: Sequence[Cache]) -> dict[bytes, _Place]:
    return {
        bytes(digest): (cache, row)
        for cache in caches
        for row, digest in enumerate(cache.image_digests)
        if cache.status[row] == _DONE
    }


def _write(folder: Path, spec: CacheSpec, parts: Sequence[np.ndarray]) -> None:
    name = hashlib.sha256(np.ascontiguousarray(spec.image_digests).tobytes()).hexdigest()[:16]
    with CacheWriter.open(folder / f"{name}.h5", spec, resume=False) as writer:
        start = 0
        for part in parts:
            if not writer.is_complete:
                writer.write(start, part)
            start += len(part)
        writer.finish()


def _merge(folder: Path) -> None:
    """When there are 64 files, merge the 32 smallest: keeps files few, and copies little."""
    paths = sorted(folder.glob("*.h5"), key=lambda path: path.stat().st_size)
    if len(paths) < _MOST_FILES:
        return
    with ExitStack() as stack:
        caches = [stack.enter_context(Cache.open(path)) for path in paths[:_FILES_PER_MERGE]]
        digests = np.concatenate([cache.image_digests for cache in caches])
        content = hashlib.sha256(digests.tobytes()).hexdigest()
        source = {"content": content, "n_images": len(digests), "class_names": []}
        spec = CacheSpec(
            identity={**caches[0].meta["identity"], "source": source},
            meta={name: v for name, v in caches[0].meta.items() if name != "identity"},
            labels=np.full(len(digests), -1),
            class_names=[],
            paths=[bytes(digest).hex() for digest in digests],
            n_features=caches[0].n_features,
            dtype=caches[0].X.stored_dtype.name,
            image_digests=digests,
        )
        _write(folder, spec, [_rows(cache, slice(None)) for cache in caches])
    for path in paths[:_FILES_PER_MERGE]:
        path.unlink()
