"""A finished cache, opened for reading."""

from __future__ import annotations

import os
from functools import cached_property, partial
from html import escape
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from featx.errors import CacheError
from featx.fewshot import draw_subset, name_images
from featx.progress import SILENT, Reporter
from featx.store import disk, layout
from featx.store.check import Header, read_header
from featx.store.features import FeatureArray, Handle
from featx.store.partial import find_partials
from featx.store.seal import Seal, hash_file, read_block
from featx.store.summary import describe_partial
from featx.store.verify import Damage, verify_blocks, verify_seal

__all__ = ["Cache"]

_SHOWN = (
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

    def __init__(self, path: Path, handle: Handle, seal: Seal, header: Header) -> None:
        self.path = path
        self._handle, self._seal, self._header = handle, seal, header
        digests = self._array("digests")
        reopen = partial(_reopen_features, type(self), str(path), seal.digest, header.fingerprint)
        self.X = FeatureArray(handle, header.features, header.block_rows, digests, reopen)

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
            handle = Handle(str(full))
        try:
            cache = cls._read(full, handle, verify_seal)
            cache.X = cache.X.astype(dtype)
            return cache
        except CacheError as error:
            handle.close()
            raise CacheError(f"{path}: {error}") from error
        except BaseException:
            handle.close()
            raise

    @classmethod
    def _read(cls, path: Path, handle: Handle, is_sealed: bool) -> Self:
        with disk.translated("cannot read it"):
            block = read_block(handle.fd)
            if block.startswith(b"featx-partial "):
                raise CacheError(describe_partial(path))
            seal = Seal.parse(block)
            n_bytes = os.fstat(handle.fd).st_size
            if n_bytes != seal.file_bytes:
                raise CacheError(
                    f"damaged: it has {n_bytes:,} bytes in place of {seal.file_bytes:,}"
                )
            if is_sealed and hash_file(handle.fd, seal) != seal.digest:
                raise CacheError(
                    "damaged: labels, names, paths, status or structure changed since it was "
                    "written (its seal does not match): repair it (featx repair) or "
                    "extract it again"
                )
            header = read_header(handle.fd, seal)
        if not header.is_complete:
            raise CacheError("incomplete: its attribute 'complete' is 0")
        cache = cls(path, handle, seal, header)
        cache._check_values()
        return cache

    def _check_values(self) -> None:
        n_classes = self._header.extents["class_names"].shape[0]
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
        return self._header.fingerprint

    @property
    def meta(self) -> dict[str, Any]:
        """What was recorded at extraction; ``meta["identity"]`` is fingerprinted."""
        return self._header.meta

    @property
    def n_features(self) -> int:
        """Values in a row."""
        return self.X.shape[1]

    @cached_property
    def labels(self) -> np.ndarray:
        """Shape (N,), int64: index into `class_names`, -1 where unknown; read-only."""
        return self._array("labels").astype(np.int64, copy=False)

    @property
    def y(self) -> np.ndarray:
        """The same as `labels`."""
        return self.labels

    @cached_property
    def status(self) -> np.ndarray:
        """Shape (N,), uint8: 1 done, 2 failed (its row holds NaN); read-only."""
        return self._array("status")

    @cached_property
    def class_names(self) -> list[str]:
        """One name a class."""
        return layout.decode_names(self._array("class_names"))

    @cached_property
    def paths(self) -> list[str]:
        """One path an image, in row order."""
        return layout.decode_names(self._array("paths"))

    @cached_property
    def image_digests(self) -> np.ndarray:
        """Shape (N, 32), uint8: SHA-256 of each image's bytes, zeros if unknown; read-only."""
        return self._array("image_sha256")

    @cached_property
    def errors(self) -> dict[int, str]:
        """Reasons of failed rows, by row."""
        table = self._array("errors")
        rows: list[int] = table["row"].tolist()
        return dict(zip(rows, layout.decode_names(table["reason"]), strict=True))

    def _array(self, name: str) -> np.ndarray:
        array = self._handle.read(self._header.extents[name])
        array.flags.writeable = False
        return array

    def __len__(self) -> int:
        return self.X.shape[0]

    def __repr__(self) -> str:
        n_failed = len(self.errors)
        return (
            f"<Cache {self.path.name}: {len(self):,} x {self.n_features:,} "
            f"{self.X.stored_dtype.name}, {self._header.extents['class_names'].shape[0]} classes"
            + (f", {n_failed} failed" if n_failed else "")
            + f", fingerprint {self.fingerprint[:12]}>"
        )

    def _repr_html_(self) -> str:
        """Show what is in the file, in a notebook."""
        told = {"rows": f"{len(self):,}", "features": f"{self.n_features:,}"}
        told |= {name: str(self.meta[name]) for name in _SHOWN if name in self.meta}
        told |= {"classes": str(len(self.class_names)), "fingerprint": self.fingerprint[:12]}
        if self.errors:
            told["images that could not be read"] = str(len(self.errors))
        rows = "".join(
            f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in told.items()
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
            images=name_images(self.image_digests, self.paths),
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
        damage = verify_seal(self._handle.fd, self._seal)
        if damage:
            return damage
        digests = self._array("digests")
        label = f"verify {self.path.name}"
        return verify_blocks(self._handle.fd, self._header, digests, reporter, label)

    def close(self) -> None:
        """Close the file; what was read before stays valid."""
        self._handle.close()

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
        told = (str(self.path), self._seal.digest, self.fingerprint, self.X.dtype.name)
        return _reopen, (type(self), *told)


def _reopen_features(kind: type[Cache], path: str, digest: str, fingerprint: str) -> FeatureArray:
    return _reopen(kind, path, digest, fingerprint, "float32").X


def _reopen(kind: type[Cache], path: str, digest: str, fingerprint: str, dtype: str) -> Cache:
    cache = kind.open(path, dtype=dtype)
    if (cache._seal.digest, cache.fingerprint) != (digest, fingerprint):
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
