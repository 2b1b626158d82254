"""Systems by the words that people type, as ``resnet50,svm``; records that nothing reads."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from featx.errors import UsageError, nearest
from featx.evaluate.results_folder import ResultsFolder, Row

__all__ = [
    "OWN_COLUMNS",
    "SYSTEM_COLUMNS",
    "by_size",
    "choose",
    "find_idle",
    "find_named",
    "find_words",
    "of_today",
    "to_systems",
    "with_words",
]

SYSTEM_COLUMNS = (
    "data",
    "backbone",
    "weights",
    "layer",
    "pool",
    "input_size",
    "precision",
    "clf",
    "scale",
    "class_weight",
    "C",
    "folds",
    "per_class",
    "holdout",
    "groups",
    "on_leak",
    "near",
    "cache",
)
"""What a word can be a value of. ``C`` is what was asked: a number, or ``searched``."""

OWN_COLUMNS = ("on_leak", "near", "cache")
"""Those that two systems need not share: their images are compared themselves."""

_MOST_NAMED = 12
_COMMA = re.compile(r",(?![^()]*\))")  # not in mlp(hidden=512,256)


def to_systems(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Describe fits by words."""
    return pd.DataFrame([_words_of(row) for row in rows])


def _words_of(row: Mapping[str, Any]) -> dict[str, object]:
    own = {"C": row["C_asked"], "cache": row["train_fingerprint"][:8]}
    own["class_weight"] = row["class_weight"] or "none"
    known = {**row, **own}
    words = {c: "no" if known[c] is None else str(known[c]) for c in SYSTEM_COLUMNS}
    return words | {name: row[name] for name in ("seed", "train_images", "test_images")}


def find_words(text: str, systems: pd.DataFrame) -> dict[str, str]:
    """Find the columns that words are values of."""
    found: dict[str, str] = {}
    for word in (part.strip() for part in _COMMA.split(text)):
        column, value = _column_of(word, systems)
        if column in found:
            raise UsageError(
                f"{text!r} names {column} twice, {found[column]!r} and {value!r}: "
                "give systems to compare as words of their own, with a space between them"
            )
        found[column] = value
    return found


def with_words(systems: pd.DataFrame, words: Mapping[str, str]) -> pd.DataFrame:
    """Keep the systems that have all of the values that `find_words` gave."""
    for column, value in words.items():
        systems = systems[systems[column] == value]
    return systems


def _column_of(word: str, systems: pd.DataFrame) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if equals and name in SYSTEM_COLUMNS:
        _check_value(name, value, systems)
        return name, value
    columns = [column for column in SYSTEM_COLUMNS if (systems[column] == word).any()]
    if len(columns) == 1:
        return columns[0], word
    if columns:
        choices = ", ".join(f"{column}={word}" for column in columns)
        raise UsageError(f"{word!r} is a value of {' and of '.join(columns)}: write {choices}")
    if equals:
        close = nearest(name, SYSTEM_COLUMNS)
        hint = f"did you mean {', '.join(close)}?" if close else "choose from"
        raise UsageError(f"there is no column {name!r}: {hint} ({', '.join(SYSTEM_COLUMNS)})")
    close = nearest(word, {value for column in SYSTEM_COLUMNS for value in systems[column]})
    hint = f": did you mean {', '.join(close)}?" if close else ":"
    raise UsageError(f"no fit has {word!r}{hint} There are {_what_there_is(systems)}")


def _check_value(column: str, value: str, systems: pd.DataFrame) -> None:
    values = by_size(systems[column].unique())
    if value not in values:
        close = nearest(value, values)
        hint = f"did you mean {', '.join(close)}? " if close else ""
        raise UsageError(f"no fit has {column}={value}: {hint}There are {', '.join(values)}")


def by_size(values: Iterable[str]) -> list[str]:
    """Sort numbers by their size, then words: 5, 10, 100, all."""
    is_number = re.compile(r"\d+(\.\d+)?")
    return sorted(values, key=lambda v: (float(v) if is_number.fullmatch(v) else math.inf, v))


def _what_there_is(systems: pd.DataFrame) -> str:
    parts = []
    for column in ("data", "backbone", "layer", "input_size", "clf", "scale", "per_class"):
        values = by_size(systems[column].unique())
        more = ", ..." if len(values) > _MOST_NAMED else ""
        parts.append(f"{column} {', '.join(values[:_MOST_NAMED])}{more}")
    return "; ".join(parts)


def of_today(systems: pd.DataFrame, today: Iterable[str]) -> pd.DataFrame:
    """Keep the fits on caches that are there today, of a system fitted on several."""
    is_there = systems["cache"].isin([fingerprint[:8] for fingerprint in today])
    same = [systems[column] for column in SYSTEM_COLUMNS if column not in OWN_COLUMNS]
    return systems[is_there | ~is_there.groupby(same).transform("any")]


def choose(systems: pd.DataFrame, where: Mapping[str, Iterable[str]]) -> pd.DataFrame:
    """Keep the fits that have one of the values of each column; no values are all."""
    kept = systems
    for column, values in where.items():
        if wanted := [str(value) for value in values]:
            for value in wanted:
                _check_value(column, value, systems)
            kept = kept[kept[column].isin(wanted)]
    return kept


def find_idle(results: ResultsFolder, today: Iterable[str] | None = None) -> dict[str, str]:
    """Find records that give no line of the table, or one of a cache that is gone."""
    every, used = results.all_rows(), results.rows()
    found = dict.fromkeys(results.unreadable(), "cannot be read")
    again = {False: "the same was fitted again later", True: "it failed, the same was tried again"}
    found |= {n: again[bool(row["error"])] for n, row in every.items() if n not in used}
    if today is not None:
        present = set(today)
        found |= {name: "its cache is gone" for name, row in used.items() if _is_gone(row, present)}
    return found


def _is_gone(row: Row, present: set[str]) -> bool:
    is_training = str(row["clf"]).partition("(")[0] == "train"
    return not is_training and not {row["train_fingerprint"], row["test_fingerprint"]} <= present


def find_named(results: ResultsFolder, systems: Iterable[str]) -> dict[str, str]:
    """Find the records of systems, by the words of ``featx compare``."""
    rows: Mapping[str, Row] = results.all_rows()
    frame = to_systems(row.as_dict() for row in rows.values())
    names = list(rows)
    found: dict[str, str] = {}
    for text in systems:
        kept = with_words(frame, find_words(text, frame))
        found |= {names[i]: text for i in kept.index}
    return found
