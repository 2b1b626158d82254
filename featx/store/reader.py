"""A finished cache, opened for reading."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from html import escape
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from featx.errors import CacheError
from featx.fewshot import draw_subset, name_images
from featx.progress import SILENT, Reporter
from featx.store import disk, layout
from featx.store.checksums import hash_span
from featx.store.disk import OpenFile
from featx.store.features import FeatureArray
from featx.store.header import HeaderBlock, read_block
from featx.store.names import Names
from featx.store.partial import describe_partial, find_partials
from featx.store.spec import CacheSpec
from featx.store.structure import Structure, read_structure
from featx.store.threads import in_threads

__all__ = ["Cache", "Damage", "reopen_features"]

_MEND: Final = "repeat the command that made it with --overwrite"
_SHOWN: Final = (
    "data",
    "split",
    "backbone",
    "weights",
    "layer",
    "pool",
    "input_size",
    "precision",
    "created",
)


@dataclass(frozen=True)
class Damage:
    """A part of a cache that is not as it was written."""

    dataset: str
    start: int
    stop: int
    reason: str

    def __str__(self) -> str:
        rows = f" rows {self.start}-{self.stop - 1}" if self.stop > self.start else ""
        return f"{self.dataset}{rows}: {self.reason}"


class Cache:
    """A finished cache; rows of features are read when they are asked for.

    Made by `Cache.open`. The file stays open until `close`, the end of a
    ``with`` block, or until nothing refers to it; a file that takes its place
    meanwhile is not seen.

    Attributes
    ----------
    path : pathlib.Path
        Where it was opened, absolute.
    X : FeatureArray
        Features, N x D, on the disk; read as float32 unless another type was asked for.
    """

    def __init__(
        self, path: Path, file: OpenFile, block: HeaderBlock, structure: Structure
    ) -> None:
        self.path = path
        self._file, self._block, self._structure = file, block, structure
        digests = self.stored_array("digests")
        reopen = partial(reopen_features, type(self), *self._known_by())
        self.X = FeatureArray(file, structure.features, structure.block_rows, digests, reopen)

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, dtype: Any = "float32", verify_seal: bool = True
    ) -> Self:
        """Open a finished cache.

        Parameters
        ----------
        path : path-like
            The file.
        dtype : dtype, default="float32"
            Type of the features that are read: see `FeatureArray.astype`.
        verify_seal : bool, default=True
            Check the digest of everything but the features first. Without it, a
            damaged file may crash HDF5.

        Returns
        -------
        Cache

        Raises
        ------
        CacheError
            If the file is missing, incomplete, damaged, no cache, or newer than
            this featx.
        UsageError
            If the features would lose digits as `dtype`, or there is no such type.
        """
        full = Path(path).absolute()
        with disk.translated(f"cannot open {path}"):
            if not full.is_file():
                raise CacheError(_why_missing(Path(path)))
            file = OpenFile(str(full))
        try:
            cache = cls._read(full, file, verify_seal)
            cache.X = cache.X.astype(dtype)
            return cache
        except CacheError as error:
            file.close()
            raise CacheError(f"{path}: {error}") from error
        except BaseException:
            file.close()
            raise

    @classmethod
    def _read(cls, path: Path, file: OpenFile, is_sealed: bool) -> Self:
        with disk.translated("cannot read it"):
            start = read_block(file.fd)
            if start.startswith(b"featx-partial "):
                raise CacheError(describe_partial(path))
            block = HeaderBlock.parse(start)
            block.check_size(file.fd, _MEND)
            if is_sealed:
                block.check_seal(file.fd, _MEND)
            structure = read_structure(file.fd, block)
        cache = cls(path, file, block, structure)
        cache._check_values()
        return cache

    def _check_values(self) -> None:
        n_classes = self._structure.extents["class_names"].shape[0]
        if self.labels.min() < -1 or self.labels.max() >= n_classes:
            raise CacheError(f"its labels do not lie in -1..{n_classes - 1}")
        if not np.isin(self.status, (layout.DONE, layout.FAILED)).all():
            raise CacheError("its status says that rows are missing")
        failed = np.flatnonzero(self.status == layout.FAILED).tolist()
        if sorted(self.errors) != failed:
            raise CacheError("its errors are not those of its failed rows")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the features were made from, 64 hexadecimal digits."""
        return self._structure.fingerprint

    @property
    def seal(self) -> str:
        """SHA-256 of everything but the features, which it knows by their digests."""
        return self._block.digest

    @property
    def meta(self) -> dict[str, Any]:
        """What was recorded at extraction; ``meta["identity"]`` is fingerprinted."""
        return self._structure.meta

    @property
    def spec(self) -> CacheSpec:
        """What a plain cache file of the same rows is about."""
        return CacheSpec(
            identity=self.meta["identity"],
            meta={name: value for name, value in self.meta.items() if name != "identity"},
            labels=self.labels,
            class_names=self.class_names,
            paths=self.names,
            n_features=self.n_features,
            dtype=self.X.stored_dtype.name,
            image_digests=self.image_digests,
        )

    @property
    def n_bytes(self) -> int:
        """Size on the disk."""
        return self._block.file_bytes

    @property
    def n_features(self) -> int:
        """Values in a row."""
        return self.X.shape[1]

    @cached_property
    def labels(self) -> np.ndarray:
        """Shape (N,), int64: index into `class_names`, -1 where unknown; read-only."""
        return self.stored_array("labels").astype(np.int64, copy=False)

    @property
    def y(self) -> np.ndarray:
        """The same as `labels`."""
        return self.labels

    @cached_property
    def status(self) -> np.ndarray:
        """Shape (N,), uint8: 1 done, 2 failed (its row holds NaN); read-only."""
        return self.stored_array("status")

    @cached_property
    def class_names(self) -> list[str]:
        """One name a class."""
        return list(Names(self.stored_array("class_names")))

    @cached_property
    def paths(self) -> list[str]:
        """One path an image, in row order."""
        return list(self.names)

    @property
    def names(self) -> Names:
        """The same as `paths`, as stored; read anew each time."""
        return Names(self.stored_array("paths"))

    @cached_property
    def image_digests(self) -> np.ndarray:
        """Shape (N, 32), uint8: SHA-256 of each image's bytes, zeros if unknown; read-only."""
        return self.stored_array("image_sha256")

    @cached_property
    def errors(self) -> dict[int, str]:
        """Reasons of failed rows, by row."""
        table = self.stored_array("errors")
        rows: list[int] = table["row"].tolist()
        return dict(zip(rows, Names(table["reason"]), strict=True))

    def stored_array(self, name: str) -> np.ndarray:
        """Read a small dataset of the file (`featx.store.layout.SMALL_DATASETS`); read-only."""
        array = self._file.read(self._structure.extents[name])
        array.flags.writeable = False
        return array

    def __len__(self) -> int:
        return self.X.shape[0]

    def __repr__(self) -> str:
        n_failed = len(self.errors)
        return (
            f"<Cache {self.path.name}: {len(self):,} x {self.n_features:,} "
            f"{self.X.stored_dtype.name}, {self._structure.extents['class_names'].shape[0]} classes"
            + (f", {n_failed} failed" if n_failed else "")
            + f", fingerprint {self.fingerprint[:12]}>"
        )

    def _repr_html_(self) -> str:
        """Show what is in the file, in a notebook."""
        shown = {"rows": f"{len(self):,}", "features": f"{self.n_features:,}"}
        shown |= {name: str(self.meta[name]) for name in _SHOWN if name in self.meta}
        shown |= {"classes": str(len(self.class_names)), "fingerprint": self.fingerprint[:12]}
        if self.errors:
            shown["images that could not be read"] = str(len(self.errors))
        rows = "".join(
            f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in shown.items()
        )
        return f"<table><caption>{escape(self.path.name)}</caption>{rows}</table>"

    def sample(
        self, per_class: int, *, seed: int = 0, dtype: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw the same number of rows of each class; failed rows are never drawn.

        Parameters
        ----------
        per_class : int
            Rows of each class.
        seed : int, default=0
            Equal seeds draw equal rows; a smaller draw lies inside a larger one.
        dtype : dtype, optional
            Type of the features, that of `X` by default: see `FeatureArray.astype`.

        Returns
        -------
        X : numpy.ndarray
            Shape (n, D), float32 by default, in row order.
        y : numpy.ndarray
            Shape (n,), int64.

        Raises
        ------
        ProtocolError
            If a class has too few rows.
        CacheError
            If a row lies in a block that changed since it was written.
        UsageError
            If the features would lose digits as `dtype`, or there is no such type.
        """
        features = self.X if dtype is None else self.X.astype(dtype)
        is_done = self.status == layout.DONE
        rows = draw_subset(
            self.labels,
            per_class,
            seed=seed,
            valid=is_done,
            class_names=self.class_names,
            images=name_images(self.image_digests, self.names),
        )
        return features[rows], self.labels[rows]

    def verify(self, reporter: Reporter = SILENT) -> list[Damage]:
        """Read the whole file and compare it with its digests.

        Parameters
        ----------
        reporter : Reporter, optional
            Shows progress.

        Returns
        -------
        list of Damage
            Empty if every byte is as it was written.
        """
        fd, found = self._file.fd, []
        try:
            with disk.translated("cannot read it"):
                if read_block(fd) != self._block.render():
                    raise CacheError(f"damaged: its first 4,096 bytes changed: {_MEND}")
                self._block.check_size(fd, _MEND)
                self._block.check_seal(fd, _MEND)
        except CacheError as error:
            return [Damage("header", 0, 0, str(error))]
        for reason, blocks in groupby(self._checked_blocks(reporter), lambda block: block[2]):
            if reason:
                (first, last, _), *others = blocks
                found.append(Damage("features", first, others[-1][1] if others else last, reason))
        return found

    def _checked_blocks(self, reporter: Reporter) -> Iterator[tuple[int, int, str]]:
        """Compare each block with its digest: its first row, its end, and what is wrong."""
        fd, features, size = self._file.fd, self._structure.features, self._structure.block_rows
        row_bytes = features.n_bytes // len(self)
        digests = self.stored_array("digests")

        def problem(first: int) -> str:
            n_bytes = row_bytes * (min(first + size, len(self)) - first)
            try:
                with disk.translated("cannot be read"):
                    digest = hash_span(fd, features.offset + first * row_bytes, n_bytes)
            except CacheError as error:
                return str(error)
            is_same = digest == digests[first // size].tobytes()
            return "" if is_same else "changed since they were written"

        starts = range(0, len(self), size)
        with reporter.bar(len(self), f"verify {self.path.name}", "row") as bar:
            for first, reason in zip(starts, in_threads(problem, starts), strict=True):
                last = min(first + size, len(self))
                bar.update(last - first)
                yield first, last, reason

    def close(self) -> None:
        """Close the file; what was read before stays valid."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), *self._known_by(), self.X.dtype.name)

    def _known_by(self) -> tuple[str, str, str]:
        """Give what another file in its place would not have."""
        return str(self.path), self._block.digest, self.fingerprint


def reopen_features(kind: type[Cache], path: str, digest: str, fingerprint: str) -> FeatureArray:
    """Open the features of a cache again, where a pickle of them is loaded."""
    return _reopen(kind, path, digest, fingerprint, "float32").X


def _reopen(kind: type[Cache], path: str, digest: str, fingerprint: str, dtype: str) -> Cache:
    cache = kind.open(path, dtype=dtype)
    if cache._known_by() != (path, digest, fingerprint):
        cache.close()
        raise CacheError(f"{path} was replaced by another cache since it was pickled")
    return cache


def _why_missing(path: Path) -> str:
    if path.exists():
        return f"{path} is not a file"
    partials = find_partials(path)
    if partials:
        return f"{path} is {describe_partial(partials[0])}"
    return f"no cache at {path}: make it with featx extract"
