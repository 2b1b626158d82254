"""Systems by the words that people type: ``resnet50,svm``, ``input_size=96``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from featx.errors import UsageError, nearest
from featx.evaluate.result import FitResult

__all__ = ["SYSTEM_COLUMNS", "by_size", "choose", "find_words", "to_systems"]

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
    "cache",
)
"""What a word can be a value of. ``C`` is what was asked: a number, or ``searched``."""

_MOST_NAMED = 12
_COMMA = re.compile(r",(?![^()]*\))")  # not in mlp(hidden=512,256)


def to_systems(fits: Sequence[FitResult]) -> pd.DataFrame:
    """Describe fits by words.

    Parameters
    ----------
    fits : sequence of FitResult
        Any fits.

    Returns
    -------
    pandas.DataFrame
        `SYSTEM_COLUMNS`, all text; ``cache`` is the beginning of the train cache's fingerprint.
        Then ``seed``, ``train_images`` and ``test_images``. The index counts the fits.
    """
    return pd.DataFrame([_words_of(fit) for fit in fits])


def _words_of(fit: FitResult) -> dict[str, object]:
    settings = fit.detail["settings"]
    asked = {
        "class_weight": fit.class_weight or "none",
        "C": "searched" if settings["C"] is None else f"{settings['C']:g}",
        "folds": settings["folds"],
        "cache": fit.train_fingerprint[:8],
    }
    words = {c: str(asked[c] if c in asked else getattr(fit, c)) for c in SYSTEM_COLUMNS}
    return {
        **words,
        "seed": fit.seed,
        "train_images": fit.detail["train_images_sha256"],
        "test_images": fit.detail["test_images_sha256"],
    }


def find_words(text: str, systems: pd.DataFrame) -> dict[str, str]:
    """Find the columns that words are values of.

    Parameters
    ----------
    text : str
        Words joined by commas: a value that is in one column only, or ``column=value``.
    systems : DataFrame
        As from `to_systems`.

    Returns
    -------
    dict
        Values by column.

    Raises
    ------
    UsageError
        If a word is in no column or in several, or a column comes twice.
    """
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
    values = {str(value) for column in SYSTEM_COLUMNS for value in systems[column]}
    close = nearest(word, values)
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
        values = by_size(str(value) for value in systems[column].unique())
        more = ", ..." if len(values) > _MOST_NAMED else ""
        parts.append(f"{column} {', '.join(values[:_MOST_NAMED])}{more}")
    return "; ".join(parts)


def choose(systems: pd.DataFrame, where: Mapping[str, Iterable[str]]) -> pd.DataFrame:
    """Keep the fits that have some values.

    Parameters
    ----------
    systems : DataFrame
        As from `to_systems`.
    where : mapping
        Values by column, any of which will do; none is no restriction.

    Returns
    -------
    pandas.DataFrame

    Raises
    ------
    UsageError
        If no fit has one of the values.
    """
    kept = systems
    for column, values in where.items():
        wanted = [str(value) for value in values]
        for value in wanted:
            _check_value(column, value, systems)
        if wanted:
            kept = kept[kept[column].isin(wanted)]
    return kept
