"""The picture of a sweep: accuracy, and cost, against what was varied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from featx.errors import UsageError

__all__ = ["PICTURES", "save_plot"]

PICTURES = (".png", ".svg", ".pdf")
"""Endings of the pictures."""

_SIZE_INCHES = (10.0, 4.2)


def save_plot(table: pd.DataFrame, varied: Sequence[str], path: Path) -> None:
    """Draw a sweep's table.

    The accuracy has bars from ``draws low`` to ``draws high``, the interval over draws of the
    training subset; that over test images is not drawn: it is common to all systems.
    """
    if path.suffix.lower() not in PICTURES:
        raise UsageError(f"{path}: the picture's name must end in {', '.join(PICTURES)}")
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    left, right = figure.subplots(1, 2)
    axis = {"input_size": "input"}.get(varied[0], varied[0])
    others = [name for name in table.columns[: table.columns.get_loc("dim")] if name != axis]
    for name, line in _lines(table, others):
        positions = _positions(line[axis], table[axis])
        order = positions.argsort()
        at, drawn = positions.iloc[order], line.iloc[order]
        left.errorbar(at, drawn["accuracy"], _bars(drawn), label=name, marker="o", capsize=3)
        right.plot(at, drawn["images/s"], label=name, marker="o")
    n_test = " or ".join(f"{n:,}" for n in table["test images"].dropna().unique())
    _label(left, f"accuracy on {n_test} test images", axis, table)
    _label(right, "images per second", axis, table)
    right.set_yscale("log")
    right.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    right.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:,g}"))
    right.yaxis.set_minor_formatter(NullFormatter())
    left.legend(fontsize="small")
    try:
        figure.savefig(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


def _bars(line: pd.DataFrame) -> list[pd.Series[Any]]:
    """How far the interval over draws reaches below and above the accuracy."""
    below = line["accuracy"] - line["draws low"]
    return [below.fillna(0), (line["draws high"] - line["accuracy"]).fillna(0)]


def _lines(table: pd.DataFrame, others: list[str]) -> list[tuple[str, pd.DataFrame]]:
    groups = table.groupby([*others, "head", "per class"], sort=False)
    return [(" ".join(map(str, key)), line) for key, line in groups]


def _positions(values: pd.Series[Any], whole: pd.Series[Any]) -> pd.Series[Any]:
    """Place numbers by their value, words in the order of the table."""
    pixels = values.str.extract(r"(\d+)$")[0]
    if values.name == "input" and pixels.notna().all():
        return pixels.astype(float)
    places = {value: i for i, value in enumerate(dict.fromkeys(whole))}
    return values.map(places).astype(float)


def _label(axes: Any, title: str, axis: str, table: pd.DataFrame) -> None:
    values = table[axis].drop_duplicates()
    axes.set_xticks(_positions(values, table[axis]), values, rotation=30, ha="right")
    axes.set_xlabel({"input": "input size, pixels"}.get(axis, axis))
    axes.set_ylabel(title)
    axes.grid(alpha=0.3)
