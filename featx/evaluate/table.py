"""Results as tables: one line a question with its intervals, and one row a fit."""

from __future__ import annotations

import math
import os
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featx.errors import FeatxError, ProtocolError, unknown_name
from featx.evaluate.intervals import both_intervals, format_ends, mean_interval, share_interval
from featx.evaluate.result import QUESTION_COLUMNS, FitResult
from featx.evaluate.results_folder import ResultsFolder, Row
from featx.evaluate.scores import MEASURES
from featx.progress import SILENT, Reporter
from featx.text import shared_columns, table_width, text_table

__all__ = [
    "Lines",
    "class_rows",
    "extraction_seconds",
    "format_table",
    "frame_of",
    "lines_of",
    "read_lines",
    "results",
    "summarise",
]

_DRAW = ["seed", "subset_sha256"]


def summarise(
    results: Iterable[FitResult] | pd.DataFrame, measures: Sequence[str] = ()
) -> pd.DataFrame:
    """Mean accuracy and its two uncertainties, system by system.

    Parameters
    ----------
    results : iterable of FitResult, or DataFrame
        Fits, or what `read_results` gives.
    measures : sequence of str, optional
        Columns of the fits to average too: ``acc5``, ``recall``, ``macro_f1``, ``auroc``,
        ``average_precision``, ``log_loss``, ``ece``.

    Returns
    -------
    pandas.DataFrame
        One line for each question: everything but the draws is equal, also their first seed
        (``--seed``), since the draws of another are another table. In the order of first
        appearance. ``repeats`` counts the draws, each once; ``accuracy`` is their mean, between 0
        and 1. ``draws low`` and ``draws high`` are the ends of its 95 % interval over draws of the
        training subset (`mean_interval`; missing for a single draw), ``test low`` and ``test
        high`` those of one accuracy over ``test images`` (`share_interval`), the same for every
        draw. A measure is missing where a draw has none. ``C`` is the median. ``seconds`` is the
        mean time of a fit with its
        cross-validation. What was asked is in columns where the lines differ in it; ``cache``,
        ``test cache``, ``test set`` and ``question``, the beginnings of digests, where nothing
        else tells two lines apart. ``attrs["notes"]`` counts the notes of the fits.
    """
    for name in measures:
        if name not in MEASURES:
            raise unknown_name("measure", name, MEASURES)
    if isinstance(results, pd.DataFrame):
        frame = results
    else:
        frame = pd.DataFrame([result.row() for result in results])
    if frame.empty:
        return pd.DataFrame(columns=[name for name in _TABLE if name not in _WHERE_DIFFERENT])
    question = [name for name in QUESTION_COLUMNS if name in frame]
    frame = frame.drop_duplicates([*question, *_DRAW], keep="last")
    groups = frame.groupby(question, sort=False, dropna=False)
    lines = [_line(group) | _means(group, measures) for _, group in groups]
    columns = [*_TABLE[: -len(_LAST)], *measures, *_LAST]
    table = _distinct(pd.DataFrame(lines)[columns])
    table.attrs["notes"] = _count_notes(frame)
    return table


_ASKED = {
    "C_asked": "C asked",
    **{name: name.replace("_", " ") for name in ("folds", "holdout", "holdout_seed", "on_leak")},
    **{"near": "near", "groups": "groups", "first_seed": "first seed"},
}
_WORDS = {
    **{"data": "data", "backbone": "backbone", "weights": "weights", "layer": "layer"},
    **{"pool": "pool", "input_size": "input", "precision": "precision", "clf": "head"},
    **{"scale": "scale", "class_weight": "class weight", "per_class": "per class"},
}
_DIGESTS = {
    **{"train_fingerprint": "cache", "test_fingerprint": "test cache"},
    **{"test_images": "test set", "question": "question"},
}
_LAST = ("C", "seconds")
_TABLE = [
    *("data", "backbone", "weights", "layer", "pool", "input", "precision"),
    *(*_DIGESTS.values(), "dim", "head", "scale", "class weight"),
    *(*_ASKED.values(), "per class", "repeats", "accuracy", "draws low", "draws high"),
    *("test low", "test high", "test images", *_LAST),
]
_WHERE_DIFFERENT = (
    *("weights", "pool", "input", "precision", "scale", "class weight"),
    *(*_ASKED.values(), *_DIGESTS.values()),
)


def _distinct(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out columns that say the same in every line, or nothing that others do not."""
    for name in _WHERE_DIFFERENT[::-1]:
        rest = table.loc[:, :"repeats"].columns.drop(["repeats", name])
        alike = table.duplicated([*rest, "test images"], keep=False)
        is_idle = name in _DIGESTS.values() and not alike.any()
        if is_idle or table[name].nunique(dropna=False) == 1:
            table = table.drop(columns=name)
    return table


def _count_notes(frame: pd.DataFrame) -> list[str]:
    """Each note once, with the heads that have it unless all have, and how many of their fits."""
    n_fits, heads_with = Counter(frame["clf"]), dict[str, list[str]]()
    for head, text in zip(frame["clf"], frame["notes"].fillna(""), strict=True):
        # Numbers of iterations and the like differ from fit to fit; what they say does not.
        for note in dict.fromkeys(note.partition(" after ")[0] for note in text.split("; ")):
            heads_with.setdefault(note, []).append(head)
    heads_with.pop("", None)
    counted = []
    for note, fits in heads_with.items():
        heads = dict.fromkeys(fits)
        whose = "" if 1 < len(heads) == len(n_fits) else f"{', '.join(heads)}: "
        counted.append(f"{whose}{note} ({len(fits)} of {sum(n_fits[h] for h in heads)} fits)")
    return counted


def _line(group: pd.DataFrame) -> dict[str, object]:
    first = group.iloc[0]
    # One that could not be fitted has its reason in place of an accuracy.
    accuracy = group["acc1"].dropna().to_numpy(dtype=float)
    mean, n_test = float(accuracy.mean()) if accuracy.size else np.nan, int(first["n_test"])
    draws = mean_interval(accuracy.tolist()) or (np.nan, np.nan)
    test = share_interval(mean, n_test) if accuracy.size else (np.nan, np.nan)
    return {
        **{title: _word(first[name]) for name, title in _WORDS.items()},
        **{title: _word(first.get(name)) for name, title in _ASKED.items()},
        **{title: str(first.get(name, ""))[:8] for name, title in _DIGESTS.items()},
        "dim": int(first["n_features"]),
        "repeats": len(accuracy),
        "accuracy": mean,
        **dict(zip(("draws low", "draws high"), draws, strict=True)),
        **dict(zip(("test low", "test high"), test, strict=True)),
        "test images": n_test,
        "C": float(group["C"].astype(float).median()),
        "seconds": float(group["fit_seconds"].mean()),
    }


def _means(group: pd.DataFrame, measures: Sequence[str]) -> dict[str, float]:
    """Means over the draws; missing where a draw has none, as those of an older featx."""
    scored = group[group["acc1"].notna()]
    return {
        name: float(scored[name].astype(float).mean(skipna=False)) if name in group else np.nan
        for name in measures
    }


def _word(value: object) -> str:
    """Write a cell of what was asked, the same from results and from a file."""
    if value is None or value != value:  # noqa: PLR0124 - missing in a file
        return "none"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def format_table(table: pd.DataFrame, kept: Iterable[str] = ()) -> str:
    """Align a summary as plain text; what is equal in all lines stands above them, unless kept."""
    joined = _join_ends(table)
    header = list(joined.columns)
    rows = [[_cell(name, row[name]) for name in header] for _, row in joined.iterrows()]
    shared, header, rows = shared_columns(header, rows, (*_KEPT, *kept))
    wrapped = textwrap.wrap(shared, table_width(), break_long_words=False, break_on_hyphens=False)
    return "\n".join([*wrapped, text_table(header, rows, _TEXT), *table.attrs.get("notes", [])])


def _join_ends(table: pd.DataFrame) -> pd.DataFrame:
    """Put the two ends of each interval into one column of text."""
    joined = table.copy()
    for low in [name for name in table.columns if name.endswith(" low")]:
        what = low.removesuffix(" low")
        high = f"{what} high"
        ends = zip(table[low], table[high], strict=True)
        joined[low] = ["-" if np.isnan(two[0]) else format_ends(two) for two in ends]
        joined = joined.drop(columns=high).rename(columns={low: f"95 % {what}"})
    return joined


_TEXT = (
    *("data", "backbone", "weights", "layer", "pool", "input", "precision"),
    *(*_DIGESTS.values(), *_ASKED.values()),
    *("A", "B", "clf", "class_weight", "head", "scale", "class weight", "preprocess"),
)
_KEPT = (
    *("A", "B", "head", "clf", "preprocess", "per class", "accuracy", "95 % draws", "95 % test"),
    *(*MEASURES, "C", "seconds", "images/s", "difference", "low", "high", "p", "p (Holm)"),
)
_FORMATS = {
    "images/s": ".1f",
    **dict.fromkeys(("accuracy", *MEASURES), ".3f"),
    "C": ".3g",
    "seconds": ".1f",
}


def _cell(name: str, value: object) -> str:
    if isinstance(value, float) and np.isnan(value):
        return "-"
    return format(value, _FORMATS.get(name, "," if name in ("dim", "test images") else ""))


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
        Warns of records that are damaged; they are left out.

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
    shared, telling = ["data", "per class"], [*_FIRST]
    for name in rest:
        # The weights, say, often follow from the backbone: then they tell nothing more.
        if (frame.groupby([*shared, *telling], dropna=False)[name].nunique(dropna=False) > 1).any():
            telling.append(name)
    if frame["data"].nunique() > 1:
        telling.insert(0, "data")
    return [
        ", ".join(_named(name, line[name]) for name in telling if line[name] not in ("", "none"))
        for _, line in frame.iterrows()
    ]


def _named(column: str, value: object) -> str:
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
    every = ((line[f"{what} low"], line[f"{what} high"]) for what in ("draws", "test"))
    return both_intervals(float(line["accuracy"]), *(e for e in every if not pd.isna(e[0])))
