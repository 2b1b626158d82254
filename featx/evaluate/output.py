"""`results.csv`, one line a fit, and one JSON file a fit."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
from pathlib import Path

import pandas as pd
from filelock import FileLock

from featx.evaluate.result import COLUMNS, FitResult

__all__ = ["ResultsFolder", "read_results"]

_HEADER = ",".join(COLUMNS)


class ResultsFolder:
    """Where results go; several processes may write to it at once.

    Parameters
    ----------
    folder : path-like
        Made when the first result is written.

    Attributes
    ----------
    table : pathlib.Path
        The CSV file in use: ``results.csv``, or ``results-2.csv`` and so on where an older
        featx wrote other columns.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.table = self.folder / "results.csv"

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
        fits = self.folder / "fits"
        fits.mkdir(parents=True, exist_ok=True)
        path = _write_new(fits / _file_stem(result), json_text(result))
        with FileLock(self.folder / "results.csv.lock"):
            self.table = _table_with(self.folder)
            _append(self.table, _csv_line(result))
        return path


def json_text(result: FitResult) -> str:
    """Everything about a fit as JSON."""
    return json.dumps({"fit": result.row(), **result.detail}, indent=1, allow_nan=False) + "\n"


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


def _write_new(stem: Path, text: str) -> Path:
    for number in itertools.count(1):
        path = stem.with_name(stem.name + (".json" if number == 1 else f"-{number}.json"))
        try:
            with path.open("x", encoding="utf-8") as stream:
                stream.write(text)
            return path
        except FileExistsError:
            continue
    raise AssertionError("itertools.count ended")
