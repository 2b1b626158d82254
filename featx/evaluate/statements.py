"""Comparisons in words, and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from featx.evaluate.systems import SYSTEM_COLUMNS
from featx.evaluate.table import format_table
from featx.text import count_of

__all__ = ["format_comparison", "statement"]

_ALPHA = 0.05
_ENOUGH_DRAWS = 5
_TITLES = {
    "difference_points": "difference",
    "low_points": "low",
    "high_points": "high",
    "p": "p",
    "p_holm": "p (Holm)",
    "n_draws": "draws",
    "n_images": "images",
}


def statement(line: pd.Series[Any], telling: Sequence[str], n_compared: int) -> str:
    """Say what a comparison shows."""
    first, second, sign = line["A"], line["B"], 1
    if line["difference_points"] < 0:
        first, second, sign = second, first, -1
    ends = sorted((sign * line["low_points"], sign * line["high_points"]))
    interval = f"{sign * line['difference_points']:.1f} points, {ends[0]:.1f} to {ends[1]:.1f}"
    p = _p_text(line["p"])
    if n_compared > 1:
        p += f", corrected {_p_text(line['p_holm'])}"
    where = ", ".join(_named(column, line[column]) for column in telling if line[column])
    start = f"{where}: " if where else ""
    over = f"{count_of(line['n_draws'], 'draw')}, {count_of(line['n_images'], 'test image')}"
    is_told = line["p_holm"] < _ALPHA
    if line["n_draws"] == 1:
        start, over = f"{start}{_one_draw(line)}, ", f"{over}; nothing is said of other subsets"
        over += "" if line.get("per_class") == "all" else f": fit {_ENOUGH_DRAWS} or more draws"
        verb = "does better than"
    else:
        verb = "beats"
        if not is_told and line["n_draws"] < _ENOUGH_DRAWS:
            over += f"; few draws make wide intervals: fit {_ENOUGH_DRAWS} or more"
    if is_told:
        return f"{start}{first} {verb} {second} by {interval}, {p} ({over})"
    return (
        f"{start}no difference between {first} and {second} can be told: {interval}, {p} ({over})"
    )


def _one_draw(line: pd.Series[Any]) -> str:
    what = "training set" if line.get("per_class") == "all" else "training subset"
    return f"on this one {what}"


def _p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _named(column: str, value: str) -> str:
    if column == "per_class":
        return f"{value} per class"
    return value if column in ("data", "backbone", "layer", "clf") else f"{column} {value}"


def format_comparison(frame: pd.DataFrame) -> str:
    """Align comparisons as plain text."""
    telling = [c for c in SYSTEM_COLUMNS if c in frame and frame[c].nunique() > 1]
    table = frame[["A", "B", *telling, *_TITLES]].rename(
        columns={**_TITLES, **{name: name.replace("_", " ") for name in telling}}
    )
    for name, form in (("difference", "+.1f"), ("low", "+.1f"), ("high", "+.1f"), ("images", ",")):
        table[name] = [format(value, form) for value in table[name]]
    for name in ("p", "p (Holm)"):
        table[name] = [_p_text(p).removeprefix("p ").removeprefix("= ") for p in table[name]]
    notes = ["difference, low, high: percentage points, 95 % interval"]
    if (frame["n_draws"] == 1).any():
        notes.append(
            "1 draw: interval and p are about that training subset alone, not about others"
        )
    table.attrs["notes"] = notes
    return "\n".join([format_table(table), "", *frame["statement"]])
