"""Results at a glance: one line for each system and number of labelled images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy.stats import norm, t

from featx.evaluate.result import FitResult

__all__ = ["format_table", "summarise"]

_SYSTEM = [
    "data",
    "backbone",
    "weights",
    "layer",
    "pool",
    "input_size",
    "precision",
    "n_features",
    "clf",
    "scale",
    "class_weight",
    "per_class",
    "train_fingerprint",
    "test_fingerprint",
    "n_test",  # differs where other classes of one cache were tested
]
_CONFIDENCE = 0.95


def summarise(results: Iterable[FitResult] | pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy and its two uncertainties, system by system.

    Parameters
    ----------
    results : iterable of FitResult, or DataFrame
        Fits, or what `read_results` gives.

    Returns
    -------
    pandas.DataFrame
        In the order of first appearance. ``accuracy`` is the mean over draws, between 0 and 1.
        ``± draws`` is the half-width of its 95 % interval over draws of the training subset
        (Student's t; missing for a single draw). ``± test`` is the half-width of the 95 %
        interval of one accuracy over test images (Wilson, "Probable inference, the law of
        succession, and statistical inference", JASA 22, 1927), the same test images for every
        draw. ``C`` is the median. ``seconds`` is the mean time of a fit with its
        cross-validation. ``weights``, ``pool``, ``input``, ``precision``, ``scale``,
        ``class weight`` and ``test images`` are columns where the lines differ in them;
        ``cache`` and ``test cache``, the beginnings of the fingerprints, where nothing else
        tells two lines apart. ``attrs["notes"]`` counts the notes of the fits.
    """
    if isinstance(results, pd.DataFrame):
        frame = results
    else:
        frame = pd.DataFrame([result.row() for result in results])
    if frame.empty:
        return pd.DataFrame(columns=[name for name in _TABLE if name not in _WHERE_DIFFERENT])
    groups = frame.groupby(_SYSTEM, sort=False, dropna=False)
    table = _distinct(pd.DataFrame([_line(group) for _, group in groups], columns=_TABLE))
    table.attrs["notes"] = _count_notes(frame)
    return table


_TABLE = [
    "data",
    "backbone",
    "weights",
    "layer",
    "pool",
    "input",
    "precision",
    "cache",
    "test cache",
    "dim",
    "head",
    "scale",
    "class weight",
    "per class",
    "test images",
    "repeats",
    "accuracy",
    "± draws",
    "± test",
    "C",
    "seconds",
]
_WHERE_DIFFERENT = (
    "weights",
    "pool",
    "input",
    "precision",
    "scale",
    "class weight",
    "test images",
    "cache",
    "test cache",
)
_LAST_RESORT = ("cache", "test cache")


def _distinct(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out columns that say the same in every line, or nothing that others do not."""
    for name in _WHERE_DIFFERENT[::-1]:
        rest = table.loc[:, :"repeats"].columns.drop(["repeats", name])
        is_idle = name in _LAST_RESORT and not table.duplicated(list(rest)).any()
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


def _line(group: pd.DataFrame) -> list[object]:
    first = group.iloc[0]
    group = group[group["acc1"].notna()]  # one that failed is in the notes
    accuracy = group["acc1"].to_numpy(dtype=float)
    return [
        first["data"],
        first["backbone"],
        first["weights"],
        first["layer"],
        first["pool"],
        str(first["input_size"]),
        first["precision"],
        first["train_fingerprint"][:8],
        first["test_fingerprint"][:8],
        int(first["n_features"]),
        first["clf"],
        first["scale"],
        "none" if pd.isna(first["class_weight"]) else first["class_weight"],
        str(first["per_class"]),
        int(first["n_test"]),
        len(group),
        float(group["acc1"].astype(float).mean()),
        _half_width_of_mean(accuracy),
        _half_width_of_share(float(group["acc1"].astype(float).mean()), int(first["n_test"])),
        float(group["C"].astype(float).median()),
        float(group["fit_seconds"].mean()),
    ]


def _half_width_of_mean(values: np.ndarray) -> float:
    n = len(values)
    if n < 2:
        return float("nan")
    return float(t.ppf((1 + _CONFIDENCE) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))


def _half_width_of_share(share: float, n: int) -> float:
    z = norm.ppf((1 + _CONFIDENCE) / 2)
    return float(z * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / (1 + z**2 / n))


def format_table(table: pd.DataFrame) -> str:
    """Align a summary as plain text.

    Parameters
    ----------
    table : pandas.DataFrame
        As from `summarise`.

    Returns
    -------
    str
        A heading, a rule and one line a row, then the notes of the fits, each with the number
        of fits that have it.
    """
    cells = [[_cell(name, row[name]) for name in table.columns] for _, row in table.iterrows()]
    lines = [list(table.columns), *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    lines.insert(1, ["-" * width for width in widths])
    is_text = [name in _TEXT for name in table.columns]
    text = "\n".join(
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, is_text, strict=True)
        ).rstrip()
        for line in lines
    )
    return "\n".join([text, *table.attrs.get("notes", [])])


_TEXT = (
    *("data", "backbone", "weights", "layer", "pool", "input", "precision", "cache", "test cache"),
    *("A", "B", "clf", "class_weight", "head", "scale", "class weight", "preprocess"),
)
_FORMATS = {
    "images/s": ".1f",
    "accuracy": ".3f",
    "± draws": ".3f",
    "± test": ".3f",
    "C": ".3g",
    "seconds": ".1f",
}


def _cell(name: str, value: object) -> str:
    if isinstance(value, float) and np.isnan(value):
        return "-"
    return format(value, _FORMATS.get(name, "," if name in ("dim", "test images") else ""))
