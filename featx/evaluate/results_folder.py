"""A folder of results: one JSON file a fit, rows read from them once, and `results.csv`."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from featx.atomic import locked, part_of, replace_text, set_aside
from featx.evaluate.pair import Pair
from featx.evaluate.result import COLUMNS, KEY_COLUMNS, NEW_COLUMNS, FitResult
from featx.heads import Fit
from featx.progress import SILENT, Reporter
from featx.records import RecordError, made, parse_json, read_record, write_record

__all__ = ["ResultsFolder", "Row", "read_results"]

_MEMORY = ".rows"
_KEY = [COLUMNS.index(name) for name in KEY_COLUMNS]
_CREATED = COLUMNS.index("created")
_RECENT_SECONDS = 2.0
"""A file that changed since may change again within one tick of the clock of its file system."""

_MOST_SILENT = 200  # records that are read without a bar

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
        shown = self.reporter if len(names) > _MOST_SILENT else Reporter(quiet=True)
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


_TABLE = "results.csv"
_FIT, _LEAKS = "fit", "leaks"
_NAME = re.compile(r"([0-9a-f]{16,64})(?:-(\d+))?\.json")
_TEXT = {
    *("data", "backbone", "weights", "layer", "pool", "precision", "clf", "scale", "per_class"),
    *("notes", "train_fingerprint", "test_fingerprint", "subset_sha256", "featx_version"),
    *("created", "fit_id", "C_asked", "test_images", "train_images", "question"),
    "error",
}
"""Columns that are words, whatever they look like, and never missing."""

T = TypeVar("T")


class ResultsFolder:
    """Where results go and are found again; several processes may write to it at once.

    The JSON files are what is kept; ``results.csv`` is written anew from all of them, one line for
    the latest fit of each question and draw.
    """

    def __init__(self, folder: str | os.PathLike[str], reporter: Reporter = SILENT) -> None:
        self.folder, self.reporter = Path(folder), reporter
        self.table = self.folder / _TABLE
        self._records = RecordRows(self.folder, reporter)
        # A file that is not among these when a fit is added is of another process.
        self._seen = {path.name for path in (self.folder / "fits").glob("*.json")}

    @property
    def _lock(self) -> AbstractContextManager[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        return locked(self.folder / f"{_TABLE}.lock", self.reporter.warn)

    def add(self, result: FitResult) -> Path:
        """Write the fit's JSON file, unless another process did meanwhile, then the table.

        One that failed again for the same reason is not written again.
        """
        with self._lock:
            rows = self._records.refresh()
            same = (name for name, row in rows.items() if self._is_same(name, row, result))
            name = next(same, None)
            path = self._write(result) if name is None else self.folder / "fits" / name
            self._write_table(self._records.note(path, result) if name is None else rows)
        return path

    def keep(self, pair: Pair, result: FitResult, fit: Fit | None) -> Path:
        """Keep a fit as soon as it is made: its result; some folders keep more of it."""
        del pair, fit
        return self.add(result)

    def _is_same(self, name: str, row: Row, result: FitResult) -> bool:
        """Whether it is the same failure, or another process has added the same meanwhile."""
        is_same = row.key == result.key and row["error"] == result.error
        return is_same and (name not in self._seen or bool(result.error))

    def _write(self, result: FitResult) -> Path:
        path = write_record(self.folder / "fits" / _file_stem(result), _FIT, result.record())
        self._seen.add(path.name)
        self._files[_FIT].setdefault(result.fit_id, []).insert(0, path)
        return path

    def complete(self, results: Iterable[FitResult] = ()) -> int:
        """Add the fits that have no JSON file under their names, and write the table."""
        with self._lock:
            present = {(row.key, row["error"]) for row in self._records.refresh().values()}
            missing = {r.key: r for r in results if (r.key, r.error) not in present}
            for result in missing.values():
                self._write(result)
            self._write_table(self._records.refresh())
            self._records.keep()
        return len(missing)

    def remove(self, names: Iterable[str]) -> int:
        """Remove records, and their lines of the table."""
        freed = 0
        with self._lock:
            before = self._records.refresh()
            for path in (self.folder / "fits" / name for name in names):
                freed += path.stat().st_size
                path.unlink()
            self._write_table(self._records.refresh(), before)
            self._records.keep()
        return freed

    def _write_table(
        self, rows: Mapping[str, Row], before: Mapping[str, Row] | None = None
    ) -> None:
        """Write the table, with the lock held.

        A line that is there and comes from no record is somebody's: it is not overwritten.
        """
        text = table_text(latest(rows).values())
        there = _lines(self.table)
        every = [*rows.values(), *(before or {}).values()]
        ours = _physical(table_text(every)) | _physical(older_table_text(every))
        if not there <= ours:
            kept = set_aside(self.table)
            self.reporter.warn(
                f"{self.table} has {len(there - ours)} lines that no file in "
                f"{self._records.folder} gives (of an older featx, or changed since): it is kept "
                f"as {kept}"
            )
        with part_of(self.table) as part:
            # Names of folders need not be text.
            part.write_bytes(text.encode("utf-8", "backslashreplace"))

    def rows(self) -> dict[str, Row]:
        """Give the table's rows: the latest of every question and draw, by the file's name."""
        return latest(self._records.refresh())

    def all_rows(self) -> dict[str, Row]:
        """Give a row for every record, also of fits that were made again later."""
        return self._records.refresh()

    def unreadable(self) -> list[str]:
        """Names of the files in ``fits/`` that are damaged or something else."""
        self._records.refresh()
        return list(self._records.bad)

    def n_bytes(self) -> int:
        """Size of all records."""
        return sum(row.stamp[0] for row in self.all_rows().values())

    def find(self, fit_id: str) -> Iterator[FitResult]:
        """Yield the fits of a name that did not fail, the latest first."""
        for path in list(self._files[_FIT].get(fit_id, [])):
            result = self._read(_FIT, path, partial(_named, fit_id))
            if result is not None and not result.error:
                yield result

    def fits(self) -> Iterator[FitResult]:
        """Yield the latest fit of every question and draw, in the order in which they were made."""
        for name in self.rows():
            yield self.read(name)

    def read(self, name: str) -> FitResult:
        """Read the fit of a file of `rows`."""
        return FitResult.from_record(read_record(_FIT, self.folder / "fits" / name))

    def find_leaks(self, key: str) -> dict[str, Any] | None:
        """Find what a search for leaks found."""
        for path in self._files[_LEAKS].get(key, []):
            record = self._read(_LEAKS, path, dict)
            if record is not None and record.get("key") == key:
                return record
        return None

    def add_leaks(self, key: str, record: dict[str, Any]) -> None:
        """Keep what a search for leaks found."""
        with self._lock:
            write_record(self.folder / "leaks" / key, _LEAKS, {"key": key, **record})

    @cached_property
    def _files(self) -> dict[str, dict[str, list[Path]]]:
        """Files by what they are and whose, the latest first, as of the first look."""
        return {
            _FIT: _by_name(self.folder / "fits"),
            _LEAKS: _by_name(self.folder / "leaks"),
        }

    def _read(self, kind: str, path: Path, make: Callable[[dict[str, Any]], T]) -> T | None:
        try:
            return made(kind, make, read_record(kind, path))
        except RecordError as error:
            self.reporter.warn(f"{path} is not used and left as it is: {error}")
        return None


def _by_name(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted(folder.glob("*.json")):
        if match := _NAME.search(path.name):
            found.setdefault(match[1], []).append((int(match[2] or 1), path))
    return {name: [path for _, path in sorted(paths)[::-1]] for name, paths in found.items()}


def _named(fit_id: str, record: dict[str, Any]) -> FitResult:
    result = FitResult.from_record(record)
    if result.fit_id != fit_id:
        raise RecordError(f"its name is that of another fit, it is {result.fit_id}")
    return result


def read_results(path: str | os.PathLike[str], *, reporter: Reporter | None = None) -> pd.DataFrame:
    """Read a table of results.

    Parameters
    ----------
    path : path-like
        A folder of results, or its ``results.csv``: then the JSON files are read, whose digests
        tell damage. Or a CSV file that lies somewhere else.
    reporter : Reporter, optional
        Warns of files or lines that are damaged and left out; on standard error by default.

    Returns
    -------
    pandas.DataFrame
        One row a fit: the last, where a fit was repeated.
    """
    path, reporter = Path(path), reporter or Reporter(quiet=True)
    folder = path if path.is_dir() else path.parent
    if (folder / "fits").is_dir() and (path.is_dir() or path.name == _TABLE):
        rows = ResultsFolder(folder, reporter).rows().values()
        text = table_text(rows)
    else:
        text = _whole_lines(path, reporter)
    frame = pd.read_csv(
        io.StringIO(text),
        dtype=dict.fromkeys(_TEXT, str),
        keep_default_na=False,
        na_values={name: [""] for name in COLUMNS if name not in _TEXT},
    )
    key = [name for name in KEY_COLUMNS if name in frame]
    return frame.drop_duplicates(key, keep="last").reset_index(drop=True)


def _whole_lines(path: Path, reporter: Reporter) -> str:
    """Read a CSV file line by line, so that a torn or damaged one costs itself only."""
    header, *lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    n_cells = len(_cells(header))
    odd = [line for line in lines if line and len(_cells(line)) != n_cells]
    if odd:
        reporter.warn(f"{path}: {len(odd)} damaged lines are left out")
    return "\n".join([header, *(line for line in lines if line not in odd)])


def _cells(line: str) -> list[str]:
    return next(csv.reader([line]), [])


def _lines(path: Path) -> set[str]:
    try:
        return _physical(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except FileNotFoundError:
        return set()


def _physical(text: str) -> set[str]:
    whole = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return {*whole.split("\n"), ""}


def _file_stem(result: FitResult) -> str:
    words = (result.data, result.backbone, result.layer, result.clf, f"k{result.per_class}")
    stem = "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", word)[:40] for word in words)
    return f"{stem}-r{result.repeat}-{result.fit_id}"
