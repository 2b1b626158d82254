"""The table of a source: reported beside measured, kept in the folder of the reports."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from featx.atomic import replace_text
from featx.evaluate.intervals import format_ends
from featx.evaluate.records import RecordError, read_older_too, record_text
from featx.progress import Reporter
from featx.reproduce.lessons import lessons, order
from featx.reproduce.outcome import OUTCOME_COLUMNS, Outcome
from featx.reproduce.recipe import SMALL, Recipe
from featx.text import text_table

__all__ = ["SourceTable", "format_outcomes", "save_recipe", "save_source"]

_FOLDER, _KIND = "reproductions", "reproduction"
_TEXT = ("system", "scale", "scored on")
_WIDE = 1_000  # in files


@dataclass(frozen=True)
class SourceTable:
    """Everything that was run of one source, by this command and earlier ones."""

    csv: Path
    txt: Path
    text: str


def save_recipe(folder: Path, recipe: Recipe, outcomes: Sequence[Outcome]) -> Path:
    """Keep what a recipe gave, and what that shows in words."""
    values = {
        "source": recipe.system.source,
        "recipe": recipe.name,
        "scale": recipe.scale,
        "outcomes": [asdict(outcome) for outcome in outcomes],
        "words": lessons(recipe, outcomes),
    }
    stem = "-".join((_slug(recipe.system.source), _slug(recipe.name), recipe.scale))
    path = folder / _FOLDER / f"{stem}.json"
    if path.exists() and all(outcome.problem for outcome in outcomes):
        return path
    replace_text(path, record_text(_KIND, values))
    return path


def save_source(folder: Path, source: str, reporter: Reporter) -> SourceTable:
    """Set the recipes of a source that were run side by side, as CSV and as text."""
    outcomes: list[Outcome] = []
    words: list[str] = []
    for of_recipe, said in _kept(folder, source, reporter):
        outcomes += of_recipe
        words += said
    if any(outcome.scale == SMALL for outcome in outcomes):
        words.insert(0, "SMALL SCALE: fewer images and epochs than the source's; see each system.")
    stem = f"reproduce-{_slug(source)}"
    csv, txt = folder / f"{stem}.csv", folder / f"{stem}.txt"
    frame = pd.DataFrame([asdict(outcome) for outcome in outcomes], columns=OUTCOME_COLUMNS)
    replace_text(csv, frame.to_csv(index=False))
    lessons_text = "\n".join([*order(outcomes), *words])
    wide, text = (
        "\n\n".join(part for part in (source, table, lessons_text) if part) + "\n"
        for table in (format_outcomes(outcomes, _WIDE), format_outcomes(outcomes))
    )
    replace_text(txt, wide)
    return SourceTable(csv, txt, text)


def _kept(
    folder: Path, source: str, reporter: Reporter
) -> Iterator[tuple[list[Outcome], list[str]]]:
    """Read what each recipe of a source gave, and the words about it."""
    for path in sorted((folder / _FOLDER).glob(f"{_slug(source)}-*.json")):
        try:
            values = read_older_too(_KIND, path)
            if values["source"] == source:
                yield (
                    [Outcome.from_record(one) for one in values["outcomes"]],
                    list(values["words"]),
                )
        except (OSError, ValueError, TypeError, KeyError, RecordError) as error:
            reporter.warn(f"{path} is not read ({error}): run its recipe again to replace it")


def format_outcomes(outcomes: Sequence[Outcome], width: int | None = None) -> str:
    """Align outcomes as plain text, in the columns of the sources' own tables."""
    lines = [_line(outcome) for outcome in outcomes]
    header = list(lines[0]) if lines else ["system"]
    return text_table(
        header, [[line[name] for name in header] for line in lines], _TEXT, width=width
    )


def _line(outcome: Outcome) -> dict[str, str]:
    accuracy = "not run" if outcome.problem else _number(outcome.accuracy, ".3f")
    return {
        "system": outcome.name,
        "scale": outcome.scale,
        "per class": outcome.per_class,
        "reported": _number(outcome.reported_accuracy, ".4g"),
        "at": outcome.reported_per_class or "-",
        "its time": _number(outcome.reported_seconds, ",.0f"),
        "measured": accuracy,
        "scored on": outcome.scored.upper() if outcome.scored == "train" else outcome.scored,
        "95 % draws": format_ends(outcome.draws),
        "95 % test": format_ends(outcome.test),
        "images": _number(outcome.n_test or None, ","),
        "extraction": _number(outcome.extract_seconds, ",.1f"),
        "fit": _number(outcome.fit_seconds, ",.1f"),
        "layers": _number(outcome.n_layers, ""),
        "features": _number(outcome.n_features, ","),
    }


def _number(value: float | int | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
