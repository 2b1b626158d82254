"""`results.csv`, one line a fit; one JSON file a fit; and what both are good for later."""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from filelock import FileLock

from featx.evaluate.records import RecordError, made, read_record, record_text, write_record
from featx.evaluate.result import COLUMNS, FitResult
from featx.progress import SILENT, Reporter

__all__ = ["ResultsFolder", "read_results"]

_HEADER = ",".join(COLUMNS)
_FIT, _LEAKS = "fit", "leaks"
_NAME = re.compile(r"([0-9a-f]{16,64})(?:-(\d+))?\.json")

T = TypeVar("T")


class ResultsFolder:
    """Where results go and are found again; several processes may write to it at once.

    Parameters
    ----------
    folder : path-like
        Made when the first result is written.
    reporter : Reporter, optional
        Is told which files are damaged or are something else: they are left alone and not used.

    Attributes
    ----------
    table : pathlib.Path
        The CSV file in use: ``results.csv``, or ``results-2.csv`` and so on where an older
        featx wrote other columns.
    """

    def __init__(self, folder: str | os.PathLike[str], reporter: Reporter = SILENT) -> None:
        self.folder, self.reporter = Path(folder), reporter
        self.table = self.folder / "results.csv"

    @property
    def _lock(self) -> FileLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / "results.csv.lock")

    def add(self, result: FitResult) -> Path:
        """Write the fit's JSON file, then its line of the table.

        Parameters
        ----------
        result : FitResult
            A finished fit.

        Returns
        -------
        pathlib.Path
            The JSON file; one that exists is never overwritten.
        """
        with self._lock:
            path = write_record(self.folder / "fits" / _file_stem(result), _FIT, result.record())
            self.table = _table_with(self.folder)
            _append(self.table, _csv_line(result))
        return path

    def complete(self, results: Iterable[FitResult]) -> int:
        """Give the table the lines that it lacks, such as one that a crash kept from it.

        Parameters
        ----------
        results : iterable of FitResult
            Fits, each of which has a JSON file.

        Returns
        -------
        int
            Lines added.
        """
        with self._lock:
            self.table = _table_with(self.folder)
            present = _ids_in(self.table)
            missing = [result for result in results if result.fit_id not in present]
            for result in missing:
                _append(self.table, _csv_line(result))
        return len(missing)

    def find(self, fit_id: str) -> Iterator[FitResult]:
        """Yield the fits of a name that did not fail, the latest first.

        Parameters
        ----------
        fit_id : str
            As in `FitResult`.

        Yields
        ------
        FitResult
            Exactly as it was added.
        """
        for path in self._files[_FIT].get(fit_id, []):
            result = self._read(_FIT, path, partial(_named, fit_id))
            if result is not None and not result.error:
                yield result

    def fits(self) -> Iterator[FitResult]:
        """Yield the latest fit of every name, in the order of the files' names."""
        for fit_id in self._files[_FIT]:
            found = next(self.find(fit_id), None)
            if found is not None:
                yield found

    def find_leaks(self, key: str) -> dict[str, Any] | None:
        """Find what a search for leaks found.

        Parameters
        ----------
        key : str
            As from `leaks_key`.

        Returns
        -------
        dict or None
            As from `record_leaks`; None where no such search was made.
        """
        for path in self._files[_LEAKS].get(key, []):
            record = self._read(_LEAKS, path, dict)
            if record is not None and record.get("key") == key:
                return record
        return None

    def add_leaks(self, key: str, record: dict[str, Any]) -> None:
        """Keep what a search for leaks found.

        Parameters
        ----------
        key : str
            As from `leaks_key`.
        record : dict
            As from `record_leaks`.
        """
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


def json_text(result: FitResult) -> str:
    """Everything about a fit as JSON."""
    return record_text(_FIT, result.record())


def read_results(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a table of results.

    Parameters
    ----------
    path : path-like
        A CSV file that `ResultsFolder` wrote.

    Returns
    -------
    pandas.DataFrame
        One row a fit: the last, where a fit was repeated. A line torn by a crash is left out.
    """
    frame = pd.read_csv(path, dtype={"per_class": str, "fit_id": str, "notes": str, "weights": str})
    frame[["notes", "weights"]] = frame[["notes", "weights"]].fillna("")
    whole = frame["fit_id"].str.fullmatch("[0-9a-f]{16}").fillna(value=False).astype(bool)
    return frame[whole].drop_duplicates("fit_id", keep="last").reset_index(drop=True)


def _csv_line(result: FitResult) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(result.row().values())
    return text.getvalue()


def _table_with(folder: Path) -> Path:
    """Find the first table that has today's columns, or does not exist yet."""
    for number in itertools.count(1):
        path = folder / ("results.csv" if number == 1 else f"results-{number}.csv")
        try:
            with path.open(encoding="utf-8") as stream:
                header = stream.readline()
        except FileNotFoundError:
            return path
        if header.rstrip("\n") == _HEADER or not header:
            return path
    raise AssertionError("itertools.count ended")


def _ids_in(path: Path) -> set[str]:
    """Names of the fits that have a whole line."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {line.rpartition(",")[2] for line in lines}


def _append(path: Path, line: str) -> None:
    """Append in a single write, after ending what a crash left unended."""
    with path.open("ab+") as stream:
        size = stream.seek(0, os.SEEK_END)
        start = _HEADER + "\n" if size == 0 else ""
        if size:
            stream.seek(-1, os.SEEK_END)
            start = "" if stream.read(1) == b"\n" else "\n"
        stream.write((start + line).encode("utf-8"))
        stream.flush()
        os.fsync(stream.fileno())


def _file_stem(result: FitResult) -> str:
    words = (result.data, result.backbone, result.layer, result.clf, f"k{result.per_class}")
    stem = "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", word)[:40] for word in words)
    return f"{stem}-r{result.repeat}-{result.fit_id}"
