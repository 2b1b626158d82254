"""Files of Arrow and Parquet with encoded images in a column, read row by row."""

from __future__ import annotations

import bisect
import errno
import io
import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, TypeVar

from featx.errors import ImageError, MissingExtraError, SourceError, read_error
from featx.sources.archives.members import clean_name, read_range
from featx.sources.folder import read_file
from featx.sources.tables import unpack_parquet

__all__ = ["ArrowShard", "ParquetShard", "Recent", "Shard", "import_pyarrow", "open_shard"]

_Value = TypeVar("_Value")

_POINTER = b"version https://git-lfs"


def import_pyarrow() -> Any:
    """Give the module pyarrow, with its parts for IPC and Parquet."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "hf", "reading a data set of Hugging Face") from error
    return pyarrow


class Recent(Generic[_Value]):
    """The values used last, up to a total size; the last two stay whatever their size."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._held: OrderedDict[Hashable, tuple[_Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], tuple[_Value, int]]) -> _Value:
        """Give the value of `key`, by `make` (the value and its size) if it is not held."""
        with self._lock:
            if key not in self._held:
                self._held[key] = make()
            self._held.move_to_end(key)
            while len(self._held) > 2 and sum(size for _, size in self._held.values()) > self.most:
                self._held.popitem(last=False)
            return self._held[key][0]


class Shard(ABC):
    """One file of rows."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.schema: Any = None
        self.ends: list[int] = []

    @property
    def n_rows(self) -> int:
        """How many rows it has."""
        return self.ends[-1] if self.ends else 0

    @abstractmethod
    def column(self, name: str) -> Any:
        """Read a column whole (one of labels, not of images), as a pyarrow.ChunkedArray."""

    @abstractmethod
    def part(self, name: str, field: str, index: int) -> tuple[Any, int]:
        """Read a part of a column of images: bytes, and their size in memory."""

    def image(self, name: str, row: int, parts: Recent[Any]) -> bytes | None:
        """Read the bytes of one image, or those of the file beside the data that it names."""
        data: bytes | None = self._value(name, "bytes", row, parts)
        if data is not None or not self._has_paths(name):
            return data
        path = clean_name(self._value(name, "path", row, parts) or "")
        return read_file(Path(self.file).parent / path) if path else None

    def _has_paths(self, name: str) -> bool:
        kind = self.schema.field(name).type
        is_struct = import_pyarrow().types.is_struct(kind)
        return is_struct and any(field.name == "path" for field in kind)

    def _value(self, name: str, field: str, row: int, parts: Recent[Any]) -> Any:
        index = bisect.bisect_right(self.ends, row)
        key = (self.file, name, field, index)
        column = parts.get(key, lambda: self.part(name, field, index))
        return column[row - self.ends[index] + len(column)].as_py()


class ArrowShard(Shard):
    """A stream of record batches, as `datasets` saves them: mapped, nothing is loaded."""

    def __init__(self, file: str) -> None:
        super().__init__(file)
        pyarrow = import_pyarrow()
        with _translated(file, SourceError):
            reader = pyarrow.ipc.open_stream(pyarrow.memory_map(file))
            self.schema = reader.schema
            self._batches = list(reader)
        self.ends = list(accumulate(batch.num_rows for batch in self._batches))

    def column(self, name: str) -> Any:
        """Read a column whole; see `Shard.column`."""
        table = import_pyarrow().Table.from_batches(self._batches, self.schema)
        with _translated(self.file, SourceError):
            table.column(name).validate(full=True)  # a wrong offset would read outside of the file
        return table.column(name)

    def part(self, name: str, field: str, index: int) -> tuple[Any, int]:
        """Map one batch; see `Shard.part`."""
        column = _field_of(self._batches[index].column(name), field)
        with _translated(self.file, ImageError):
            column.validate(full=True)
        return column, 0


class ParquetShard(Shard):
    """A Parquet file: a row group is decoded when one of its rows is wanted."""

    def __init__(self, file: str) -> None:
        super().__init__(file)
        with _translated(file, SourceError):
            self._file = import_pyarrow().parquet.ParquetFile(file)
            self.schema = self._file.schema_arrow
        metadata = self._file.metadata
        sizes = (metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        self.ends = list(accumulate(sizes))

    def column(self, name: str) -> Any:
        """Read a column whole; see `Shard.column`."""
        with _translated(self.file, SourceError):
            return unpack_parquet(self._file, [name], self.file).column(name)

    def part(self, name: str, field: str, index: int) -> tuple[Any, int]:
        """Decode one row group; see `Shard.part`."""
        pyarrow = import_pyarrow()
        is_struct = pyarrow.types.is_struct(self.schema.field(name).type)
        stored = f"{name}.{field}" if is_struct else name
        with _translated(self.file, ImageError):
            try:
                table = unpack_parquet(self._file, [stored], self.file, index)
            except OSError:
                self._require_bytes(index, stored)
                raise
        chunks = [_field_of(chunk, field) for chunk in table.column(name).chunks]
        return pyarrow.chunked_array(chunks), table.nbytes

    def _require_bytes(self, index: int, stored: str) -> None:
        """Tell bytes that do not come from damaged ones: pyarrow has one error for both."""
        group = self._file.metadata.row_group(index)
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema != stored:
                continue
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            with io.FileIO(self.file) as stream:
                n_bytes = len(read_range(stream, start, chunk.total_compressed_size))
            if n_bytes < chunk.total_compressed_size:
                raise OSError(errno.EIO, os.strerror(errno.EIO))


def _field_of(column: Any, field: str) -> Any:
    return column.field(field) if import_pyarrow().types.is_struct(column.type) else column


@contextmanager
def _translated(file: str, wanted: type[SourceError | ImageError]) -> Iterator[None]:
    pyarrow = import_pyarrow()
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        # pyarrow raises OSError for damaged bytes as well, but without a number.
        if isinstance(error, OSError) and error.errno is not None:
            plain = OSError(error.errno, os.strerror(error.errno))
            raise read_error(file, plain) from error
        if wanted is ImageError:
            raise ImageError(f"cannot be read: {_short(error)}") from error
        raise SourceError(f"{file} cannot be read: {_why(file, error)}") from error


def _why(file: str, error: Exception) -> str:
    try:
        with Path(file).open("rb") as stream:
            start = stream.read(len(_POINTER))
    except OSError as reason:
        return reason.strerror or type(reason).__name__
    return "it is a Git LFS pointer: run  git lfs pull" if start == _POINTER else _short(error)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def open_shard(file: str) -> Shard:
    """Open a file by its ending."""
    return ParquetShard(file) if file.lower().endswith(".parquet") else ArrowShard(file)
