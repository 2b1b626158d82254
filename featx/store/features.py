"""The feature matrix of an open cache: looks like an array, stays on the disk."""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Callable, Iterator
from typing import Any, Final, Self

import numpy as np

from featx.errors import CacheError, UsageError
from featx.halves import convert
from featx.memory import available_bytes
from featx.store import disk
from featx.store.disk import OpenFile
from featx.store.layout import Extent
from featx.store.threads import N_THREADS, in_threads

__all__ = ["FeatureArray"]

# Reading so much, or hashing so much, is shared among threads, which costs a fifth of a
# millisecond.
_THREADED_BYTES: Final = 4 << 20
# What is read at a time where values are converted, or only some of a row are wanted.
_PIECE_BYTES: Final = 1 << 20
_FLOATS: Final = ("float16", "float32", "float64")
_Index = slice | np.ndarray


class FeatureArray:
    """Features on the disk, indexed as NumPy indexes an array; every read gives a NumPy array.

    Values are float32, whatever the file holds: sums and products of float16 overflow at 65,504.
    `astype` gives the same features in another type. The first read of a row reads its whole
    block, and compares the block with its digest: damaged rows are an error.
    ``np.asarray(features)`` compares all blocks. Where values are converted it is a copy in
    memory; in the stored type it maps the file, so that a matrix larger than memory can be
    passed to NumPy.

    Parameters
    ----------
    file : OpenFile
        The open file.
    extent : Extent
        Where the features lie: shape (N, D), float16 or float32.
    block_rows : int
        Rows in a block.
    digests : ndarray of uint8, shape (n_blocks, 32)
        SHA-256 of the bytes of each block.
    reopen : callable
        Opens the same features again, where a pickle of them is loaded.
    """

    ndim = 2

    def __init__(
        self,
        file: OpenFile,
        extent: Extent,
        block_rows: int,
        digests: np.ndarray,
        reopen: Callable[[], FeatureArray],
    ) -> None:
        self._file, self._extent = file, extent
        self.block_rows, self._digests = block_rows, digests
        self._reopen = reopen
        self._row_bytes = extent.n_bytes // extent.shape[0]
        self.is_checked = np.zeros(len(digests), bool)
        self._dtype: np.dtype[Any] = np.dtype(np.float32)

    def astype(self, dtype: Any) -> Self:
        """Give the same features in another type; nothing is read.

        Parameters
        ----------
        dtype : dtype
            float16, float32 or float64, wide enough for what is stored.

        Returns
        -------
        FeatureArray
            ``cache.X.astype("float16")[rows]`` reads float16.

        Raises
        ------
        UsageError
            If values would lose digits, or it is no such type.
        """
        wanted = _float_type(dtype)
        if wanted.itemsize < self.stored_dtype.itemsize:
            raise UsageError(
                f"features stored as {self.stored_dtype} lose digits, or overflow, as {wanted}: "
                f"read them, then convert:  X[rows].astype({wanted.name!r})"
            )
        return self._as(wanted)

    def _as(self, dtype: np.dtype[Any]) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _dtype=dtype)
        return other

    @property
    def stored(self) -> Self:
        """The same features in the type of the file."""
        return self._as(self.stored_dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and values in a row."""
        n_rows, n_features = self._extent.shape
        return n_rows, n_features

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values that are read: float32, unless another was asked for."""
        return self._dtype

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Type of the values in the file, little-endian float16 or float32."""
        return self._extent.dtype

    @property
    def nbytes(self) -> int:
        """Size of all features in bytes, once they are read."""
        return self.size * self.dtype.itemsize

    @property
    def size(self) -> int:
        """Number of all values."""
        return self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        stored = "" if self.dtype == self.stored_dtype else f" (stored as {self.stored_dtype.name})"
        return f"<features {len(self):,} x {self.shape[1]:,} {self.dtype.name}{stored}, on disk>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self._reopen, self.dtype.name)

    def __getitem__(self, key: Any) -> np.ndarray:
        """Read rows, or some columns of them, as NumPy indexes an array.

        Parameters
        ----------
        key : int, slice, array of int in any order with repeats, or bool mask; or two of them
            ``X[rows]``, ``X[rows, ...]``, ``X[rows, columns]``, ``X[np.ix_(rows, columns)]``.

        Returns
        -------
        numpy.ndarray
            A new array, of the shape that NumPy gives.

        Raises
        ------
        IndexError
            For rows that do not exist and for other kinds of index.
        CacheError
            If they lie in a block that changed since it was written.
        """
        rows, columns = _split_index(key, self.shape)
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if columns is None and step == 1:
                return self._span(start, max(start, stop))
            rows = np.arange(start, stop, step)
        elif isinstance(columns, np.ndarray) and rows.ndim and columns.ndim:
            return self._values(self._wrapped(rows), columns)
        flat = self._wrapped(rows).ravel()
        found = self._gather(flat) if columns is None else self._columns(flat, columns)
        return np.asarray(found.reshape((*rows.shape, *found.shape[1:])))

    def _columns(self, rows: np.ndarray, columns: slice | np.ndarray) -> np.ndarray:
        """Read rows a piece at a time, and keep some columns."""
        starts = range(0, max(len(rows), 1), self._piece_rows)
        pieces = (self._gather(rows[i : i + self._piece_rows])[:, columns] for i in starts)
        return np.concatenate([piece.copy() for piece in pieces])

    def _values(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Read single values; a row that is needed more than once is read once."""
        try:
            rows, columns = np.broadcast_arrays(rows, columns)
        except ValueError as error:
            raise IndexError(f"rows and columns do not fit together: {error}") from error
        needed, place = np.unique(rows, return_inverse=True)
        place, out = place.reshape(rows.shape), np.empty(rows.shape, self.dtype)
        for start in range(0, len(needed), self._piece_rows):
            piece = self._gather(needed[start : start + self._piece_rows])
            is_here = (place >= start) & (place < start + len(piece))
            out[is_here] = piece[place[is_here] - start, columns[is_here]]
        return out

    def _wrapped(self, rows: np.ndarray) -> np.ndarray:
        n_rows = len(self)
        is_outside = (rows < -n_rows) | (rows >= n_rows)
        if is_outside.any():
            raise IndexError(f"row {rows[is_outside][0]} does not exist: there are {n_rows}")
        return np.where(rows < 0, rows + n_rows, rows)

    def _span(self, start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, self.shape[1]), self._dtype)
        if len(out):
            self._fill_span(out, start)
        return out

    def _fill_span(self, out: np.ndarray, start: int) -> None:
        """Fill `out` by neighbouring rows, at least one."""
        size, stop = self.block_rows, start + len(out)
        blocks = np.arange(start // size, (stop - 1) // size + 1)
        shares = np.arange(start, stop, -(-len(out) // N_THREADS))
        edges = np.concatenate((shares, blocks[1:][self._is_edge(blocks)] * size, [stop]))
        edges = np.unique(edges)
        self._read_runs(out, edges[:-1] - start, np.diff(edges), edges[:-1])

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), self.shape[1]), self._dtype)
        if len(out):
            order = np.argsort(rows, kind="stable")
            self._fill_rows(out, order, rows[order])
        return out

    def _fill_rows(self, out: np.ndarray, at: np.ndarray, rows: np.ndarray) -> None:
        """Put sorted rows, at least one, into their places in `out`."""
        # In the order of the file; neighbours that stay neighbours are read by one call.
        is_end = (np.diff(rows) != 1) | (np.diff(at) != 1)
        is_end |= self._is_edge(rows // self.block_rows)
        starts = np.flatnonzero(np.concatenate(([True], is_end)))
        n_rows = np.diff(np.concatenate((starts, [len(rows)])))
        self._read_runs(out, at[starts], n_rows, rows[starts])

    def _is_edge(self, blocks: np.ndarray) -> np.ndarray:
        """Whether a read must end between neighbours: blocks are checked one at a time."""
        is_checked = self.is_checked[blocks]
        return np.asarray((np.diff(blocks) != 0) & ~(is_checked[1:] & is_checked[:-1]))

    def _read_runs(
        self, out: np.ndarray, at: np.ndarray, n_rows: np.ndarray, first: np.ndarray
    ) -> None:
        """Fill `out` by runs, in checked blocks or in one: place, rows, first row in the file."""

        def read(some: list[tuple[int, int, int]]) -> None:
            for low, n, row in some:
                self._read(out[low : low + n], row)

        runs = list(zip(at.tolist(), n_rows.tolist(), first.tolist(), strict=True))
        n_unchecked = np.count_nonzero(~self.is_checked[np.unique(first // self.block_rows)])
        n_bytes = out.nbytes + n_unchecked * self.block_rows * self._row_bytes
        if n_bytes < _THREADED_BYTES:
            read(runs)
            return
        step = -(-len(runs) // N_THREADS)
        for _ in in_threads(read, [runs[i : i + step] for i in range(0, len(runs), step)]):
            pass

    def _read(self, out: np.ndarray, row: int) -> None:
        """Fill `out` by neighbouring rows; a block is read whole and checked the first time."""
        block, place = divmod(row, self.block_rows)
        n_rows = self._rows_of(block)
        if self.is_checked[block]:
            self._read_checked(out, row)
        elif len(out) == n_rows and out.dtype == self.stored_dtype:
            self._read_block(block, out)
        else:
            whole = np.empty((n_rows, self.shape[1]), self.stored_dtype)
            self._read_block(block, whole)
            convert(whole[place : place + len(out)], out)

    def _read_checked(self, out: np.ndarray, row: int) -> None:
        """Fill `out` by neighbouring rows of checked blocks, converted a piece at a time."""
        at, step = self._extent.offset + row * self._row_bytes, self._piece_rows
        if out.dtype == self.stored_dtype:
            self._file.read_into(out, at)
            return
        for start in range(0, len(out), step):
            piece = np.empty(out[start : start + step].shape, self.stored_dtype)
            self._file.read_into(piece, at + start * self._row_bytes)
            convert(piece, out[start : start + step])

    @property
    def _piece_rows(self) -> int:
        return max(1, _PIECE_BYTES // self._row_bytes)

    def _rows_of(self, block: int) -> int:
        return min(self.block_rows, len(self) - block * self.block_rows)

    def _read_block(self, block: int, rows: np.ndarray) -> None:
        """Fill `rows` by a block and compare it with its digest."""
        first = block * self.block_rows
        self._file.read_into(rows, self._extent.offset + first * self._row_bytes)
        if hashlib.sha256(disk.bytes_of(rows)).digest() != self._digests[block].tobytes():
            path = self._file.path
            raise CacheError(
                f"{path}: damaged: features rows {first}-{first + len(rows) - 1} changed since "
                f"they were written:  featx repair {path}  computes them again"
            )
        self.is_checked[block] = True

    def check(self) -> None:
        """Compare every block that was not read yet with its digest.

        Raises
        ------
        CacheError
            If one changed since it was written.
        """

        def check(block: int) -> None:
            rows = np.empty((self._rows_of(block), self.shape[1]), self.stored_dtype)
            self._read_block(block, rows)

        for _ in in_threads(check, np.flatnonzero(~self.is_checked).tolist()):
            pass

    def __iter__(self) -> Iterator[np.ndarray]:
        for _, block in self.iter_blocks(self._piece_rows):
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
        if wanted == self.stored_dtype and not copy:
            self.check()
            return self.memmap().view(np.ndarray)
        if copy is False:
            raise ValueError(f"features stored as {self.stored_dtype} become {wanted} by a copy")
        n_bytes, free = self.size * wanted.itemsize, available_bytes()
        if n_bytes > free:
            raise UsageError(
                f"{self.shape[0]:,} x {self.shape[1]:,} features as {wanted} need "
                f"{n_bytes / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are available: read some "
                f"rows, or map the file:  np.asarray(X.astype({self.stored_dtype.name!r}))"
            )
        return self._as(wanted)[:]

    def memmap(self) -> np.memmap[Any, Any]:
        """Map the file, read-only and as stored, without comparing it with its digests.

        Returns
        -------
        numpy.memmap
            Shape (N, D), of the stored type. A disk that fails to read ends the process (SIGBUS);
            indexing raises an error instead.
        """
        with os.fdopen(os.dup(self._file.fd), "rb") as stream:
            shape, offset = self.shape, self._extent.offset
            return np.memmap(stream, self.stored_dtype, "r", offset=offset, shape=shape)


def _reopened(reopen: Callable[[], FeatureArray], dtype: str) -> FeatureArray:
    return reopen().astype(dtype)


def _float_type(dtype: Any) -> np.dtype[Any]:
    try:
        found: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        found = np.dtype(object)
    if found.name not in _FLOATS:
        raise UsageError(f"features have no type {dtype!r}: choose from {', '.join(_FLOATS)}")
    return found


def _split_index(key: Any, shape: tuple[int, int]) -> tuple[_Index, _Index | None]:
    """Read an index of a matrix as NumPy does."""
    if isinstance(key, np.ndarray) and key.dtype == bool and key.shape == shape:
        rows, columns = np.nonzero(key)
        return rows, columns
    parts = list(key) if isinstance(key, tuple) else [key]
    dots = [i for i, part in enumerate(parts) if part is Ellipsis]
    if len(dots) > 1 or len(parts) - len(dots) > 2:
        raise _refused(key)
    for i in dots:
        parts[i : i + 1] = [slice(None)] * (3 - len(parts))
    indices = [_index(part, n) for part, n in zip(parts, shape, strict=False)]
    is_whole = len(parts) < 2 or (isinstance(parts[1], slice) and parts[1] == slice(None))
    chosen = indices[0] if indices else slice(None)
    return chosen, None if is_whole else indices[1]


def _index(part: Any, n: int) -> _Index:
    if isinstance(part, slice):
        return part
    if hasattr(part, "__index__") and getattr(part, "ndim", 0) == 0:
        if isinstance(part, bool | np.bool_):
            raise _refused(part)
        return np.asarray(operator.index(part))
    is_listlike = isinstance(part, list | range | np.ndarray) or hasattr(part, "__array__")
    numbers = np.asarray(part) if is_listlike else np.empty((), object)
    if numbers.dtype == bool and numbers.ndim == 1:
        if len(numbers) != n:
            raise IndexError(f"a mask of {len(numbers)} values does not fit {n}")
        return np.flatnonzero(numbers)
    if numbers.ndim == 0 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise _refused(part)
    return numbers.astype(np.int64)


def _refused(key: Any) -> IndexError:
    return IndexError(
        "features are indexed by an int, a slice, an array of ints or a bool mask, for rows and "
        f"for columns, not by {key!r:.60}; np.asarray(features) takes any index"
    )
