"""Tables of text: CSV, TSV and Parquet files, column by column, as strings."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featx.errors import MissingExtraError, SourceError

__all__ = ["TABLE_ENDINGS", "read_table"]

TABLE_ENDINGS = (".csv", ".tsv", ".parquet")
"""Endings of the files that `read_table` takes, in lower case."""

_ENCODING = "utf-8-sig"  # a spreadsheet's byte-order mark is no part of the first name


def read_table(path: Path) -> dict[str, list[str]]:
    """Read a table whole.

    Parameters
    ----------
    path : Path
        ``.csv`` (commas, or semicolons where the first line has no comma), ``.tsv`` or
        ``.parquet``; the first line of a text file names the columns.

    Returns
    -------
    dict of str to list of str
        Each column by name, all of one length; empty cells and nulls are ``""``. White
        space around the names is dropped, that of the cells stays.

    Raises
    ------
    SourceError
        If the file is missing, no table, or its lines differ in length.
    MissingExtraError
        If it is a Parquet file and pyarrow is not installed.
    """
    try:
        if path.suffix.lower() == ".parquet":
            return _read_parquet(path)
        with path.open(encoding=_ENCODING, newline="") as stream:
            lines = list(csv.reader(stream, delimiter=_delimiter(path, stream)))
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{path} is not UTF-8 text (byte {error.start:,}): save it as UTF-8"
        ) from error
    except csv.Error as error:
        raise SourceError(f"{path} is no table that featx can read: {error}") from error
    return _columns(path, lines)


def _delimiter(path: Path, stream: Any) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    first = stream.readline()
    stream.seek(0)
    return ";" if ";" in first and "," not in first else ","


def _columns(path: Path, lines: list[list[str]]) -> dict[str, list[str]]:
    if not lines:
        raise SourceError(f"{path} is empty: its first line must name the columns")
    names = [name.strip() for name in lines[0]]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise SourceError(f"{path} has two columns {repeated[0]!r}: rename one")
    body = list(_body(path, lines, len(names)))
    cells = zip(*body, strict=True) if body else ([] for _ in names)
    return {name: list(column) for name, column in zip(names, cells, strict=True)}


def _body(path: Path, lines: list[list[str]], n_columns: int) -> Iterator[list[str]]:
    for number, line in enumerate(lines[1:], 2):
        if not line:
            continue  # a blank line
        if len(line) != n_columns:
            raise SourceError(
                f"{path}, record {number}: {len(line)} cells in place of {n_columns}; a cell with "
                "the separator in it must stand in double quotes"
            )
        yield line


def _read_parquet(path: Path) -> dict[str, list[str]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet", "reading a Parquet file") from error
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise SourceError(f"{path} is no Parquet file, or damaged: {error}") from error
    return {name: [_text(v) for v in table[name].to_pylist()] for name in table.column_names}


def _text(value: Any) -> str:
    if value is None:
        return ""
    # A column of whole numbers that has nulls may come as floats.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
