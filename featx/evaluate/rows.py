"""Rows of the table, from the records of a folder; what stays as it is, is read once."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from featx.atomic import replace_text
from featx.evaluate.records import RecordError, read_record
from featx.evaluate.result import COLUMNS, KEY_COLUMNS, NEW_COLUMNS, FitResult
from featx.progress import Reporter
from featx.records import parse_json

__all__ = ["RecordRows", "Row", "latest", "older_table_text", "table_text"]

_MEMORY = ".rows"
_KEY = [COLUMNS.index(name) for name in KEY_COLUMNS]
_CREATED = COLUMNS.index("created")
_RECENT_SECONDS = 2.0
"""A file that changed since may change again within one tick of the clock of its file system."""

_MOST_UNTOLD = 200  # records that are read without a bar

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Row:
    """What the table says of a record."""

    stamp: Stamp
    values: tuple[Any, ...]

    @cached_property
    def key(self) -> tuple[object, ...]:
        """As that of a `FitResult`."""
        return tuple(self.values[i] for i in _KEY)

    @cached_property
    def line(self) -> str:
        """As CSV."""
        return _csv(self.values)

    def as_dict(self) -> dict[str, Any]:
        """By column, as `FitResult.row`."""
        return dict(zip(COLUMNS, self.values, strict=True))

    def __getitem__(self, column: str) -> Any:
        return self.values[COLUMNS.index(column)]


class RecordRows:
    """The rows of all records of fits in a folder of results."""

    def __init__(self, reports: Path, reporter: Reporter) -> None:
        self.folder, self.reporter = reports / "fits", reporter
        self._file = reports / _MEMORY
        self._rows: dict[str, Row] | None = None
        self._kept: dict[str, Row] = {}
        self.bad: dict[str, Stamp] = {}

    def refresh(self) -> dict[str, Row]:
        """Look at the folder, and read what is new or has changed."""
        if self._rows is None:
            self._rows = self._kept = _recall(self._file)
        stamps = _stamps(self.folder)
        found = {name: row for name, row in self._rows.items() if stamps.get(name) == row.stamp}
        self.bad = {name: stamp for name, stamp in self.bad.items() if stamps.get(name) == stamp}
        fresh = [name for name in stamps if name not in found and name not in self.bad]
        if fresh:
            found |= self._read(fresh, stamps)
            order = sorted(found, key=lambda n: (found[n].values[_CREATED], len(n), n))
            found = {name: found[name] for name in order}
        self._rows = found
        return found

    def note(self, path: Path, result: FitResult) -> dict[str, Row]:
        """Take up a record that was written since the last look, without another look."""
        row = Row(_stamp(path.stat()), tuple(result.row().values()))
        self._rows = {**(self._rows or {}), path.name: row}
        return self._rows

    def _read(self, names: list[str], stamps: Mapping[str, Stamp]) -> dict[str, Row]:
        found = {}
        shown = self.reporter if len(names) > _MOST_UNTOLD else Reporter(quiet=True)
        with shown.bar(len(names), f"reading {self.folder}", "fit") as bar:
            for name in names:
                try:
                    result = FitResult.from_record(read_record("fit", self.folder / name))
                    found[name] = Row(stamps[name], tuple(result.row().values()))
                except RecordError as error:
                    self.bad[name] = stamps[name]
                    path = self.folder / name
                    self.reporter.warn(f"{path} is not used and left as it is: {error}")
                bar.update(1)
        return found

    def keep(self) -> None:
        """Remember the rows for the next time, but for those of files that are too new."""
        before = time.time_ns() - int(1e9 * _RECENT_SECONDS)
        rows = {n: row for n, row in (self._rows or {}).items() if max(row.stamp[1:]) < before}
        if rows != self._kept or not self._file.exists():
            values = {name: [*row.stamp, *row.values] for name, row in rows.items()}
            text = json.dumps({"columns": COLUMNS, "rows": values})
            replace_text(self._file, f"{_digest(text)}\n{text}\n")
            self._kept = rows


def _recall(path: Path) -> dict[str, Row]:
    """Read what `keep` wrote; nothing, where it is damaged or of another featx: that costs time."""
    try:
        digest, _, text = path.read_text(encoding="utf-8").removesuffix("\n").partition("\n")
        whole = parse_json(text) if digest == _digest(text) else {}
        if whole.get("columns") != list(COLUMNS):
            return {}
        return {
            name: Row((size, mtime, ctime), tuple(values))
            for name, (size, mtime, ctime, *values) in whole["rows"].items()
            if len(values) == len(COLUMNS)
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _stamps(folder: Path) -> dict[str, Stamp]:
    found = {}
    for path in folder.glob("*.json"):
        with suppress(FileNotFoundError):  # removed at this moment
            found[path.name] = _stamp(path.stat())
    return found


def _stamp(state: os.stat_result) -> Stamp:
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns


def latest(rows: Mapping[str, Row]) -> dict[str, Row]:
    """Keep the last row of every `FitResult.key`; one that failed only where none did not."""
    failed = {row.key: name for name, row in rows.items() if row["error"]}
    good = {row.key: name for name, row in rows.items() if not row["error"]}
    kept = set((failed | good).values())
    return {name: row for name, row in rows.items() if name in kept}


def table_text(rows: Iterable[Row]) -> str:
    """Write rows as CSV, under `COLUMNS`."""
    return "".join([_csv(COLUMNS), *(row.line for row in rows)])


def older_table_text(rows: Iterable[Row]) -> str:
    """Write rows as a featx did that had not all of the columns."""
    kept = [i for i, name in enumerate(COLUMNS) if name not in NEW_COLUMNS]
    lines = [COLUMNS, *(row.values for row in rows)]
    return "".join(_csv([line[i] for i in kept]) for line in lines)


def _csv(values: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
