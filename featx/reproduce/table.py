"""The table of a source: reported beside measured, kept in the folder of the reports."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from featx.reproduce.lessons import lessons
from featx.reproduce.outcome import OUTCOME_COLUMNS, Outcome
from featx.reproduce.recipe import SMALL, Recipe

__all__ = ["format_outcomes", "save_source"]

_TEXT = ("system", "scale", "scored on")


def save_source(
    folder: Path, ran: Sequence[tuple[Recipe, Sequence[Outcome]]]
) -> tuple[Path, Path, str]:
    """Add outcomes to the table of their source, and write it as CSV and as text.

    Parameters
    ----------
    folder : Path
        Of the reports.
    ran : sequence of (Recipe, sequence of Outcome)
        Recipes of one source, with what they gave. Lines of the same recipe at the same scale,
        from earlier runs, are replaced; other lines of the source stay.

    Returns
    -------
    csv, txt : Path
        The files.
    text : str
        What the latter says of these recipes.
    """
    stem = "reproduce-" + re.sub(r"[^a-z0-9]+", "-", ran[0][0].system.source.lower()).strip("-")
    table, text = folder / f"{stem}.csv", folder / f"{stem}.txt"
    new = [outcome for _, outcomes in ran for outcome in outcomes]
    said = describe(ran)
    folder.mkdir(parents=True, exist_ok=True)
    kept = _kept(table, new)
    frame = pd.DataFrame([*kept, *(outcome.row() for outcome in new)], columns=OUTCOME_COLUMNS)
    frame = frame.sort_values(["recipe", "scale"], kind="stable")
    _replace(table, frame.to_csv(index=False))
    whole = [Outcome(**_cells(row)) for row in frame.to_dict("records")]
    # Words of earlier runs are not kept: the lines that they were about are.
    _replace(text, f"{ran[0][0].system.source}\n\n{format_outcomes(whole)}\n\n{said}\n")
    return table, text, said


def describe(ran: Sequence[tuple[Recipe, Sequence[Outcome]]]) -> str:
    """Say what the recipes of one source show, in words.

    Parameters
    ----------
    ran : sequence of (Recipe, sequence of Outcome)
        As for `save_source`.
    """
    lines = [line for recipe, outcomes in ran for line in lessons(recipe, outcomes)]
    if any(recipe.scale == SMALL for recipe, _ in ran):
        lines.insert(0, "SMALL SCALE: fewer images and epochs than the source's; see each system.")
    return "\n".join(lines)


def format_outcomes(outcomes: Sequence[Outcome]) -> str:
    """Align outcomes as plain text, in the columns of the sources' own tables.

    Parameters
    ----------
    outcomes : sequence of Outcome
        Lines.

    Returns
    -------
    str
        ``± draws`` and ``± test`` are half-widths of 95 % intervals, as `featx fit` prints them;
        times are in seconds.
    """
    lines = [_line(outcome) for outcome in outcomes]
    header = list(lines[0]) if lines else ["system"]
    cells = [header, *([line[name] for name in header] for line in lines)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if name in _TEXT else cell.rjust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        ).rstrip()
        for row in cells
    )


def _line(outcome: Outcome) -> dict[str, str]:
    name = f"{outcome.system}: {outcome.variant}" if outcome.variant else outcome.system
    accuracy = "not run" if outcome.problem else _number(outcome.accuracy, ".3f")
    return {
        "system": name + (" (replaced)" if outcome.replaced else ""),
        "scale": outcome.scale,
        "per class": outcome.per_class,
        "reported": _number(outcome.reported_accuracy, ".4g"),
        "its time": _number(outcome.reported_seconds, ",.0f"),
        "measured": accuracy,
        "scored on": outcome.scored.upper() if outcome.scored == "train" else outcome.scored,
        "± draws": _number(outcome.half_draws, ".3f"),
        "± test": _number(outcome.half_test, ".3f"),
        "extraction": _number(outcome.extract_seconds, ",.1f"),
        "fit": _number(outcome.fit_seconds, ",.1f"),
        "layers": _number(outcome.n_layers, ""),
        "features": _number(outcome.n_features, ","),
    }


def _number(value: float | int | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _kept(path: Path, new: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Read the lines that the new ones do not replace."""
    if not path.is_file():
        return []
    frame = pd.read_csv(path, dtype={"per_class": str, "reported_per_class": str})
    if tuple(frame.columns) != OUTCOME_COLUMNS:  # of another version of featx
        path.rename(path.with_suffix(".old.csv"))
        return []
    replaced = {(outcome.recipe, outcome.scale) for outcome in new}
    rows = [_cells(row) for row in frame.to_dict("records")]
    return [row for row in rows if (row["recipe"], row["scale"]) not in replaced]


_COUNTS = (
    *("reported_layers", "reported_features", "repeats", "n_test"),
    *("n_layers", "n_parameters", "n_features"),
)
_WORDS = ("variant", "per_class", "reported_per_class", "replaced", "problem")


def _cells(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Give cells their types back: a column with gaps comes as numbers with fractions."""
    cells: dict[str, Any] = {}
    for key, value in row.items():
        is_gap = bool(pd.isna(value))
        if key in _WORDS:
            cells[key] = "" if is_gap else str(value)
        elif is_gap:
            cells[key] = None
        else:
            cells[key] = int(float(str(value))) if key in _COUNTS else value
    return cells


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
