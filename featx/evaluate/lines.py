"""Results as tables: one row a fit, and one line a question with its intervals."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from featx.errors import FeatxError, ProtocolError
from featx.evaluate.intervals import both_intervals
from featx.evaluate.output import ResultsFolder
from featx.evaluate.result import QUESTION_COLUMNS
from featx.evaluate.rows import Row
from featx.evaluate.table import summarise
from featx.progress import SILENT, Reporter

__all__ = [
    "Lines",
    "class_rows",
    "extraction_seconds",
    "frame_of",
    "lines_of",
    "read_lines",
    "results",
]

_FIRST = ("backbone", "head")
_BARE = ("data", "backbone", "layer", "head", "weights")  # named by their values alone
_NOT_SYSTEM = ("data", "dim", "per class", "first seed")


@dataclass(frozen=True)
class Lines:
    """A folder of results, line by line."""

    folder: Path
    frame: pd.DataFrame
    """One row a line: ``id``, ``system``, what `featx.evaluate.summarise` gives, ``low`` and
    ``high`` of draws and test images together."""
    files: dict[str, list[str]]
    """Names of the records in ``fits/`` of each line, by its id."""
    fits: pd.DataFrame
    """One row a fit, as `results` gives them."""

    @property
    def scored(self) -> pd.DataFrame:
        """The lines that have an accuracy."""
        return self.frame[self.frame["accuracy"].notna()]


def results(
    folder: str | os.PathLike[str] = "reports", *, reporter: Reporter = SILENT
) -> pd.DataFrame:
    """Read all fits of a folder of results.

    Parameters
    ----------
    folder : path-like, default="reports"
        What ``featx fit``, ``train``, ``sweep`` and ``reproduce`` wrote into.
    reporter : Reporter, optional
        Is told which records are damaged; they are left out.

    Returns
    -------
    pandas.DataFrame
        One row for the latest fit of each question and draw, in the order in which they were made:
        the columns of ``results.csv``, and ``file``, the name of the record in ``fits/``.
        Accuracies (``acc1``) are between 0 and 1, times are in seconds. Fits that failed have no
        accuracy and an ``error``.

    Raises
    ------
    ProtocolError
        If there are no fits.

    Examples
    --------
    >>> featx.results("reports").groupby(["backbone", "clf"])["acc1"].mean()  # doctest: +SKIP
    """
    place = Path(folder)
    rows = ResultsFolder(place, reporter).rows() if place.is_dir() else {}
    if not rows:
        raise ProtocolError(f"{place} holds no fits: run  featx extract  and  featx fit  first")
    return frame_of(rows)


def frame_of(rows: Mapping[str, Row]) -> pd.DataFrame:
    """Make the table of `results` of rows by the names of their records."""
    return pd.DataFrame([{**row.as_dict(), "file": name} for name, row in rows.items()])


def read_lines(
    folder: str | os.PathLike[str] = "reports",
    *,
    data: Sequence[str] = (),
    reporter: Reporter = SILENT,
) -> Lines:
    """Read a folder of results, and join the draws of each question to a line."""
    fits = results(folder, reporter=reporter)
    if data:
        fits = fits[fits["data"].isin(data)].reset_index(drop=True)
        if fits.empty:
            raise ProtocolError(f"no fit in {folder} is on {' or '.join(data)}")
    return lines_of(fits, Path(folder))


def lines_of(fits: pd.DataFrame, folder: Path = Path("reports")) -> Lines:
    """Join the draws of each question to a line."""
    question = [name for name in QUESTION_COLUMNS if name in fits]
    groups = [group for _, group in fits.groupby(question, sort=False, dropna=False)]
    frame = summarise(fits).reset_index(drop=True)
    ids = [f"line-{i + 1}" for i in range(len(frame))]
    frame.insert(0, "id", ids)
    frame.insert(1, "system", _systems(frame))
    frame["images"] = _images_per_class(frame, groups)
    ends = [_both(line) for _, line in frame.iterrows()]
    frame["low"], frame["high"] = zip(*ends, strict=True)
    files = {i: list(group["file"]) for i, group in zip(ids, groups, strict=True)}
    return Lines(folder, frame, files, fits)


def extraction_seconds(lines: Lines) -> list[float]:
    """Read how long the extraction took that each line stands on; NaN where nobody knows."""
    folder, found = ResultsFolder(lines.folder), []
    for names in lines.files.values():
        try:
            found.append(float(folder.read(names[0]).detail.get("extract_seconds", math.nan)))
        except (FeatxError, OSError):
            found.append(math.nan)
    return found


def class_rows(detail: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List precision, recall, F1 and the number of test images of each class."""
    scores = detail["per_class"]
    columns = [scores[name] for name in ("precision", "recall", "f1", "support")]
    rows = zip(detail["class_names"], *columns, strict=True)
    return [
        dict(zip(("class", "precision", "recall", "f1", "images"), row, strict=True))
        for row in rows
    ]


def _systems(frame: pd.DataFrame) -> list[str]:
    """Name each line by what tells the lines of one data set and number of images apart."""
    columns = frame.loc[:, "data":"repeats"].columns.drop("repeats")
    rest = [name for name in columns if name not in (*_FIRST, *_NOT_SYSTEM)]
    shared, told = ["data", "per class"], [*_FIRST]
    for name in rest:
        # The weights, say, often follow from the backbone: then they tell nothing more.
        if (frame.groupby([*shared, *told], dropna=False)[name].nunique(dropna=False) > 1).any():
            told.append(name)
    if frame["data"].nunique() > 1:
        told.insert(0, "data")
    return [
        ", ".join(_word(name, line[name]) for name in told if line[name] not in ("", "none"))
        for _, line in frame.iterrows()
    ]


def _word(column: str, value: object) -> str:
    return str(value) if column in _BARE else f"{column} {value}"


def _images_per_class(frame: pd.DataFrame, groups: Sequence[pd.DataFrame]) -> list[float]:
    """Training images of a class; for ``all`` the mean, if another line tells the classes."""
    n_train = [int(group["n_train"].iloc[0]) for group in groups]
    asked = [int(k) if str(k).isdigit() else None for k in frame["per class"]]
    n_classes = {data: n / k for data, n, k in zip(frame["data"], n_train, asked, strict=True) if k}
    return [
        float(k) if k else n / n_classes.get(data, math.nan)
        for data, n, k in zip(frame["data"], n_train, asked, strict=True)
    ]


def _both(line: pd.Series[Any]) -> tuple[float, float]:
    if pd.isna(line["accuracy"]):
        return float("nan"), float("nan")
    pairs: Iterable[tuple[float, float] | None] = (
        None if pd.isna(line[f"{what} low"]) else (line[f"{what} low"], line[f"{what} high"])
        for what in ("draws", "test")
    )
    return both_intervals(float(line["accuracy"]), *pairs)
