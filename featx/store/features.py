"""The feature matrix of an open cache: looks like an array, stays on the disk."""

from __future__ import annotations

import operator
import os
import weakref
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from featx.errors import CacheError
from featx.store import disk
from featx.store.check import Extent
from featx.store.threads import N_THREADS, in_threads

__all__ = ["FeatureArray", "Handle"]

# Reads of this size and more are shared among threads, which costs a fifth of a millisecond.
_THREADED_BYTES: Final = 4 << 20


class Handle:
    """An open file for reading, closed with the last object that uses it.

    Parameters
    ----------
    path : str
        The file.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self.close = weakref.finalize(self, os.close, self._fd)
        self._path = path

    @property
    def fd(self) -> int:
        """The descriptor.

        Raises
        ------
        CacheError
            If the file was closed.
        """
        if not self.close.alive:
            raise CacheError(f"{self._path} was closed: open it again")
        return self._fd

    def read(self, extent: Extent) -> np.ndarray:
        """Read an array whole."""
        out = np.empty(extent.shape, extent.dtype)
        self.read_into(out, extent.offset)
        return out

    def read_into(self, out: np.ndarray, offset: int) -> None:
        """Fill a contiguous array with the bytes at `offset`."""
        if out.nbytes:
            with disk.translated(f"cannot read {self._path}"):
                disk.pread_into(self.fd, disk.bytes_of(out), offset)


class FeatureArray:
    """Features on the disk, indexed by rows; every read gives a NumPy array.

    ``np.asarray(features)`` maps the file into memory without reading it, so
    that a matrix larger than memory can be passed to NumPy and scikit-learn.

    Parameters
    ----------
    handle : Handle
        The open file.
    extent : Extent
        Where the features lie: shape (N, D), float16 or float32.
    """

    ndim = 2

    def __init__(self, handle: Handle, extent: Extent) -> None:
        self._handle, self._extent = handle, extent

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and values in a row."""
        n_rows, n_features = self._extent.shape
        return n_rows, n_features

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored values, little-endian float16 or float32."""
        return self._extent.dtype

    @property
    def nbytes(self) -> int:
        """Size of all features in bytes."""
        return self._extent.n_bytes

    @property
    def size(self) -> int:
        """Number of all values."""
        return self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<features {self.shape[0]:,} x {self.shape[1]:,} {self.dtype.name}, on disk>"

    def __getitem__(self, key: Any) -> np.ndarray:
        """Read rows.

        Parameters
        ----------
        key : int, slice, array of int in any order with repeats, or bool mask of length N
            Which rows.

        Returns
        -------
        numpy.ndarray
            Shape (D,) for an int, else (n, D).

        Raises
        ------
        IndexError
            For rows that do not exist and for other kinds of index.
        """
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return self._span(start, max(start, stop))
            return self._gather(np.arange(start, stop, step))
        is_number = hasattr(key, "__index__") and getattr(key, "ndim", 0) == 0
        if is_number and not isinstance(key, bool | np.bool_):
            row = self._wrapped(np.array([operator.index(key)]))
            return np.asarray(self._gather(row)[0])
        return self._gather(self._wrapped(self._row_numbers(key)))

    def _row_numbers(self, key: Any) -> np.ndarray:
        is_listlike = isinstance(key, list | range | np.ndarray) or hasattr(key, "__array__")
        rows = np.asarray(key) if is_listlike else np.empty((), object)
        if rows.ndim != 1 or (len(rows) and rows.dtype.kind not in "iub"):
            raise IndexError(
                "features are indexed by rows: an int, a slice, an array of ints or a bool mask, "
                f"not {key!r:.60}; np.asarray(features) takes any index"
            )
        if rows.dtype.kind != "b":
            return rows.astype(np.int64)
        if len(rows) != len(self):
            raise IndexError(f"a mask of {len(rows)} values does not fit {len(self)} rows")
        return np.flatnonzero(rows)

    def _wrapped(self, rows: np.ndarray) -> np.ndarray:
        n_rows = len(self)
        is_outside = (rows < -n_rows) | (rows >= n_rows)
        if is_outside.any():
            raise IndexError(f"row {rows[is_outside][0]} does not exist: there are {n_rows}")
        return np.where(rows < 0, rows + n_rows, rows)

    def _span(self, start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, self.shape[1]), self.dtype)
        step = max(1, -(-len(out) // N_THREADS))
        self._read_runs(
            out, [(i, min(step, len(out) - i), start + i) for i in range(0, len(out), step)]
        )
        return out

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), self.shape[1]), self.dtype)
        # In the order of the file; neighbours that stay neighbours are read by one call.
        order = np.argsort(rows, kind="stable")
        is_end = (np.diff(rows[order]) != 1) | (np.diff(order) != 1)
        starts = np.flatnonzero(np.concatenate(([True], is_end))) if len(rows) else order
        n_rows = np.diff(np.concatenate((starts, [len(rows)])))
        first = order[starts]
        self._read_runs(
            out, list(zip(first.tolist(), n_rows.tolist(), rows[first].tolist(), strict=True))
        )
        return out

    def _read_runs(self, out: np.ndarray, runs: list[tuple[int, int, int]]) -> None:
        """Fill `out` by runs of (first row in `out`, number of rows, first row in the file)."""

        def read(some: list[tuple[int, int, int]]) -> None:
            for at, n_rows, row in some:
                self._handle.read_into(out[at : at + n_rows], self._extent.offset + row * row_bytes)

        row_bytes = self.shape[1] * self.dtype.itemsize
        if out.nbytes < _THREADED_BYTES:
            read(runs)
            return
        step = -(-len(runs) // N_THREADS)
        for _ in in_threads(read, [runs[i : i + step] for i in range(0, len(runs), step)]):
            pass

    def __iter__(self) -> Iterator[np.ndarray]:
        for _, block in self.iter_blocks(max(1, (1 << 20) // max(1, self.nbytes // len(self)))):
            yield from block

    def iter_blocks(self, n_rows: int) -> Iterator[tuple[int, np.ndarray]]:
        """Read everything once, in order, a block at a time.

        Parameters
        ----------
        n_rows : int
            Rows in a block; the last may have fewer.

        Yields
        ------
        start : int
            Number of the block's first row.
        block : numpy.ndarray
            Shape (at most `n_rows`, D).
        """
        if n_rows < 1:
            raise ValueError(f"n_rows must be at least 1, not {n_rows}")
        for start in range(0, len(self), n_rows):
            yield start, self._span(start, min(start + n_rows, len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        mapped = self.memmap()
        wanted = self.dtype if dtype is None else np.dtype(dtype)
        if copy is False and wanted != self.dtype:
            raise ValueError(f"features of {self.dtype} become {wanted} only by a copy")
        if copy or wanted != self.dtype:
            return np.array(mapped, dtype=wanted)
        return mapped.view(np.ndarray)

    def memmap(self) -> np.memmap[Any, Any]:
        """Map the features into memory, read-only.

        Returns
        -------
        numpy.memmap
            Shape (N, D). A disk that fails to read ends the process (SIGBUS);
            indexing raises an error instead.
        """
        with os.fdopen(os.dup(self._handle.fd), "rb") as stream:
            return np.memmap(stream, self.dtype, "r", offset=self._extent.offset, shape=self.shape)
