"""Tables of text: CSV, TSV, JSON lines and Parquet files, column by column, as strings."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from featx.errors import MissingExtraError, SourceError
from featx.progress import SILENT, Reporter
from featx.sources.labels import label_text

__all__ = ["TABLE_ENDINGS", "find_column", "read_numbered_table", "read_table", "unpack_parquet"]

TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")
"""Endings of the files that `read_table` takes, in lower case."""

_MOST_UNPACKED, _MOST_RATIO = 512 << 20, 50  # bytes of columns, and of each packed byte
_ENCODING = "utf-8-sig"  # a spreadsheet's byte-order mark is no part of the first name


def read_table(path: Path) -> dict[str, list[str]]:
    """Read a table whole."""
    return read_numbered_table(path)[0]


def find_column(where: str, columns: Iterable[str], wanted: Sequence[str]) -> str | None:
    """Find the first of the wanted names (in lower case) among columns in any case."""
    columns = list(columns)
    for name in wanted:
        found = [column for column in columns if column.strip().lower() == name]
        if len(found) > 1:
            both = " and ".join(map(repr, found))
            raise SourceError(
                f"{where} has the columns {both}, and it is not clear which one counts: "
                "rename or remove one"
            )
        if found:
            return found[0]
    return None


def read_numbered_table(
    path: Path, reporter: Reporter = SILENT
) -> tuple[dict[str, list[str]], Sequence[int]]:
    """Read a table whole, with the number of each row's line."""
    try:
        if path.suffix.lower() == ".parquet":
            return _read_parquet(path)
        stream = io.StringIO(_decoded(path, path.read_bytes(), reporter), newline="")
        if path.suffix.lower() == ".jsonl":
            return _read_json(path, stream)
        delimiter = _delimiter(path, stream)
        lines = csv.reader(stream, delimiter=delimiter, skipinitialspace=True, strict=True)
        return _columns(path, lines)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from error
    except csv.Error as error:
        raise SourceError(f"{path} is no table that featx can read: {error}") from error


def _decoded(path: Path, data: bytes, reporter: Reporter) -> str:
    """Decode UTF-8, UTF-16 by its byte-order mark, else what Windows wrote in western Europe."""
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ["utf-16"] if is_utf16 else [_ENCODING, "cp1252", "latin-1"]:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if 4 * text.count("\0") > len(text) or (encoding != _ENCODING and "\0" in text):
            raise SourceError(f"{path} is no text: save it as UTF-8")
        if encoding != _ENCODING:
            reporter.warn(
                f"{path.name} is not UTF-8 text: read as {encoding}. If names look wrong, save it "
                "as UTF-8"
            )
        return text
    raise SourceError(f"{path} is no text: save it as UTF-8")


def _delimiter(path: Path, stream: TextIO) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    first = stream.readline()
    stream.seek(0)
    return max(",;\t|", key=first.count)  # the first of equals


def _columns(path: Path, lines: Any) -> tuple[dict[str, list[str]], list[int]]:
    names = [name.strip() for name in next(lines, [])]
    if not any(names):
        raise SourceError(f"{path} is empty: its first line must name the columns")
    _check_names(path, names)
    columns: dict[str, list[str]] = {name: [] for name in names}
    adders = [cells.append for cells in columns.values()]
    numbers: list[int] = []
    for line in lines:
        if not line:
            continue  # a blank line
        if len(line) != len(names):
            raise SourceError(
                f"{path}, line {lines.line_num}: {len(line)} cells in place of {len(names)}; a "
                "cell with the separator in it must stand in double quotes"
            )
        for add, cell in zip(adders, line, strict=True):
            add(cell)
        numbers.append(lines.line_num)
    return columns, numbers


def _check_names(path: Path, names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise SourceError(f"{path} has two columns {repeated[0]!r}: rename one")


def _read_json(path: Path, stream: TextIO) -> tuple[dict[str, list[str]], list[int]]:
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(stream, 1):
        if line.strip():
            try:
                rows[number] = dict(json.loads(line).items())
            except (ValueError, AttributeError, RecursionError) as error:
                raise SourceError(f"{path}, line {number}: no JSON object") from error
    names = dict.fromkeys(name for row in rows.values() for name in row)
    columns = {name: [label_text(row.get(name)) for row in rows.values()] for name in names}
    plain = {name: [text for text in cells if text is not None] for name, cells in columns.items()}
    return {name: cells for name, cells in plain.items() if len(cells) == len(rows)}, [*rows]


def _read_parquet(path: Path) -> tuple[dict[str, list[str]], Sequence[int]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet", "reading a Parquet file") from error
    try:
        # Not pyarrow's read_table, for which a folder split=train/ above would be a column.
        with path.open("rb") as stream, pyarrow.parquet.ParquetFile(stream) as file:
            _check_names(path, file.schema_arrow.names)
            plain = [field.name for field in file.schema_arrow if _is_plain(field.type)]
            table = unpack_parquet(file, plain, str(path))
    except pyarrow.ArrowException as error:
        raise SourceError(f"{path} is no Parquet file, or damaged: {error}") from error
    columns = {name: [_text(v) for v in table[name].to_pylist()] for name in table.column_names}
    return columns, range(1, table.num_rows + 1)


def unpack_parquet(file: Any, columns: list[str], where: str, group: int | None = None) -> Any:
    """Read columns of a Parquet file, or of one row group, as a table; stop at a bomb.

    A value that is stored once may stand in millions of rows: only what comes out can be counted.
    """
    groups = [*range(file.metadata.num_row_groups)] if group is None else [group]
    parts = [file.metadata.row_group(i) for i in groups]
    chunks = [part.column(i) for part in parts for i in range(part.num_columns)]
    n_packed = sum(chunk.total_compressed_size for chunk in chunks)
    most = max(_MOST_UNPACKED, _MOST_RATIO * n_packed)
    longest = max((chunk.total_uncompressed_size for chunk in chunks), default=0)  # of one value
    rows_at_once = min(4096, max(1, most // 4 // max(1, longest)))
    n_bytes, batches = 0, []
    for batch in file.iter_batches(rows_at_once, groups, columns):
        n_bytes += batch.nbytes
        if n_bytes > most:
            raise SourceError(
                f"{where}: the columns {', '.join(columns)} unpack to more than {most:,} bytes "
                f"from {n_packed:,}: a decompression bomb? If the file is yours, write it with "
                "smaller row groups"
            )
        batches.append(batch)
    empty = file.read_row_groups([], columns)
    return type(empty).from_batches(batches, empty.schema)


def _is_plain(kind: Any) -> bool:
    """Tell whether a column has texts, numbers or dates, not images or lists."""
    from pyarrow import types

    return not (types.is_nested(kind) or "binary" in str(kind))


def _text(value: Any) -> str:
    text = label_text(value)
    return str(value) if text is None else text
