"""The feature matrix of an open cache: looks like an array, stays on the disk."""

from __future__ import annotations

import hashlib
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

# Reading so much, or hashing so much, is shared among threads, which costs a fifth of a
# millisecond.
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
        self.path = path

    @property
    def fd(self) -> int:
        """The descriptor.

        Raises
        ------
        CacheError
            If the file was closed.
        """
        if not self.close.alive:
            raise CacheError(f"{self.path} was closed: open it again")
        return self._fd

    def read(self, extent: Extent) -> np.ndarray:
        """Read an array whole."""
        out = np.empty(extent.shape, extent.dtype)
        self.read_into(out, extent.offset)
        return out

    def read_into(self, out: np.ndarray, offset: int) -> None:
        """Fill a contiguous array with the bytes at `offset`."""
        if out.nbytes:
            with disk.translated(f"cannot read {self.path}"):
                disk.pread_into(self.fd, disk.bytes_of(out), offset)


class FeatureArray:
    """Features on the disk, indexed by rows; every read gives a NumPy array.

    The first read of a row reads its whole block, and compares the block with its digest:
    damaged rows are an error. ``np.asarray(features)`` compares all blocks and maps the file
    into memory, so that a matrix larger than memory can be passed to NumPy and scikit-learn.

    Parameters
    ----------
    handle : Handle
        The open file.
    extent : Extent
        Where the features lie: shape (N, D), float16 or float32.
    block_rows : int
        Rows in a block.
    digests : ndarray of uint8, shape (n_blocks, 32)
        SHA-256 of the bytes of each block.
    """

    ndim = 2

    def __init__(
        self, handle: Handle, extent: Extent, block_rows: int, digests: np.ndarray
    ) -> None:
        self._handle, self._extent = handle, extent
        self._block_rows, self._digests = block_rows, digests
        self._row_bytes = extent.n_bytes // extent.shape[0]
        self._is_checked = np.zeros(len(digests), bool)

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
        CacheError
            If they lie in a block that changed since it was written.
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
        if len(out):
            size = self._block_rows
            blocks = np.arange(start // size, (stop - 1) // size + 1)
            shares = np.arange(start, stop, -(-len(out) // N_THREADS))
            edges = np.concatenate((shares, blocks[1:][self._is_edge(blocks)] * size, [stop]))
            edges = np.unique(edges)
            self._read_runs(out, edges[:-1] - start, np.diff(edges), edges[:-1])
        return out

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), self.shape[1]), self.dtype)
        if len(out):
            # In the order of the file; neighbours that stay neighbours are read by one call.
            order = np.argsort(rows, kind="stable")
            sorted_rows = rows[order]
            is_end = (np.diff(sorted_rows) != 1) | (np.diff(order) != 1)
            is_end |= self._is_edge(sorted_rows // self._block_rows)
            starts = np.flatnonzero(np.concatenate(([True], is_end)))
            n_rows = np.diff(np.concatenate((starts, [len(rows)])))
            self._read_runs(out, order[starts], n_rows, sorted_rows[starts])
        return out

    def _is_edge(self, blocks: np.ndarray) -> np.ndarray:
        """Whether a read must end between neighbours: blocks are checked one at a time."""
        is_checked = self._is_checked[blocks]
        return np.asarray((np.diff(blocks) != 0) & ~(is_checked[1:] & is_checked[:-1]))

    def _read_runs(
        self, out: np.ndarray, at: np.ndarray, n_rows: np.ndarray, first: np.ndarray
    ) -> None:
        """Fill `out` by runs, in checked blocks or in one: place, rows, first row in the file."""

        def read(some: list[tuple[int, int, int]]) -> None:
            for low, n, row in some:
                self._read(out[low : low + n], row)

        runs = list(zip(at.tolist(), n_rows.tolist(), first.tolist(), strict=True))
        n_unchecked = np.count_nonzero(~self._is_checked[np.unique(first // self._block_rows)])
        n_bytes = out.nbytes + n_unchecked * self._block_rows * self._row_bytes
        if n_bytes < _THREADED_BYTES:
            read(runs)
            return
        step = -(-len(runs) // N_THREADS)
        for _ in in_threads(read, [runs[i : i + step] for i in range(0, len(runs), step)]):
            pass

    def _read(self, out: np.ndarray, row: int) -> None:
        """Fill `out` by neighbouring rows; a block is read whole and checked the first time."""
        block, place = divmod(row, self._block_rows)
        n_rows = self._rows_of(block)
        if self._is_checked[block]:
            self._handle.read_into(out, self._extent.offset + row * self._row_bytes)
        elif len(out) == n_rows:
            self._read_block(block, out)
        else:
            whole = np.empty((n_rows, self.shape[1]), self.dtype)
            self._read_block(block, whole)
            out[:] = whole[place : place + len(out)]

    def _rows_of(self, block: int) -> int:
        return min(self._block_rows, len(self) - block * self._block_rows)

    def _read_block(self, block: int, rows: np.ndarray) -> None:
        """Fill `rows` by a block and compare it with its digest."""
        first = block * self._block_rows
        self._handle.read_into(rows, self._extent.offset + first * self._row_bytes)
        if hashlib.sha256(disk.bytes_of(rows)).digest() != self._digests[block].tobytes():
            path = self._handle.path
            raise CacheError(
                f"{path}: damaged: features rows {first}-{first + len(rows) - 1} changed since "
                f"they were written:  featx repair {path}  computes them again"
            )
        self._is_checked[block] = True

    def check(self) -> None:
        """Compare every block that was not read yet with its digest.

        Raises
        ------
        CacheError
            If one changed since it was written.
        """

        def check(block: int) -> None:
            self._read_block(block, np.empty((self._rows_of(block), self.shape[1]), self.dtype))

        for _ in in_threads(check, np.flatnonzero(~self._is_checked).tolist()):
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
        wanted = self.dtype if dtype is None else np.dtype(dtype)
        if copy is False and wanted != self.dtype:
            raise ValueError(f"features of {self.dtype} become {wanted} only by a copy")
        self.check()
        mapped = self.memmap()
        if copy or wanted != self.dtype:
            return np.array(mapped, dtype=wanted)
        return mapped.view(np.ndarray)

    def memmap(self) -> np.memmap[Any, Any]:
        """Map the features into memory, read-only, without comparing them with their digests.

        Returns
        -------
        numpy.memmap
            Shape (N, D). A disk that fails to read ends the process (SIGBUS);
            indexing raises an error instead.
        """
        with os.fdopen(os.dup(self._handle.fd), "rb") as stream:
            return np.memmap(stream, self.dtype, "r", offset=self._extent.offset, shape=self.shape)
