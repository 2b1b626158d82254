"""Labels as people write them, in every form of data, become names and numbers of classes.

docs/data.md has the policy as a table.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from featx.errors import SourceError
from featx.progress import SILENT, Reporter

__all__ = ["clean", "label_text", "name_classes", "number_labels", "sorted_names"]

_UNKNOWN = re.compile(r"|-1(\.0*)?|nan|NaN|NaT|<NA>")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
_LEADING_ZEROS = re.compile(r"(?<![0-9.])0+(?=[0-9])")
_MISSING = ("NAType", "NaTType")  # of pandas, which need not be imported for them
_LONGEST_NUMBER = 40  # digits that are compared as one number


def label_text(value: Any) -> str | None:
    """Write a label of any type as text.

    Examples
    --------
    >>> label_text(3.0), label_text(True), label_text(float("nan")), label_text([3])
    ('3', 'True', '', None)
    """
    if value is None or type(value).__name__ in _MISSING:
        return ""
    if isinstance(value, (str, bool, int, np.bool_, np.integer)):
        return str(value)
    if isinstance(value, (float, np.floating)):
        # A column of whole numbers with a gap comes as floats.
        return "" if np.isnan(value) else str(int(value)) if value.is_integer() else str(value)
    return None


def clean(name: str) -> str:
    """Write the name of a class in one way: without white space around it, in Unicode's NFC."""
    return unicodedata.normalize("NFC", name.strip())


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Sort the names of classes in natural order: numbers in names by value, the rest by text.

    Examples
    --------
    >>> sorted_names(["class10", "class9", "class10"])
    ('class9', 'class10')
    """
    different = {name for name in names if name}
    are_numbers = all(map(_NUMBER.fullmatch, different))

    def key(name: str) -> tuple[float, str, str]:
        padded = re.sub("[0-9]+", lambda digits: digits[0].zfill(_LONGEST_NUMBER), name)
        return (float(name) if are_numbers else 0.0, padded, name)

    return tuple(sorted(different, key=key))


def name_classes(found: Mapping[str, int], where: str, reporter: Reporter) -> dict[str, str]:
    """Name the class of each label."""
    names = {text: clean(text) for text in found}
    known = {text: name for text, name in names.items() if not _UNKNOWN.fullmatch(name)}
    if all(map(_NUMBER.fullmatch, known.values())):
        known = {text: re.sub(r"\.0+$", "", name) for text, name in known.items()}
        _check_not_negative(known.values(), where)
    _tell(found, names, known, where, reporter)
    place = {name: i for i, name in enumerate(sorted_names(known.values()))}
    ordered = sorted(known, key=lambda text: place[known[text]])
    return {text: known[text] for text in ordered} | {
        text: "" for text in names if text not in known
    }


def _check_not_negative(names: Iterable[str], where: str) -> None:
    wrong = [name for name in names if name.startswith("-")]
    if wrong:
        raise SourceError(
            f"{where} has the label {wrong[0]}: numbers of classes start at 0, and -1 means that "
            "the class is unknown; give names or other numbers"
        )


def _tell(
    found: Mapping[str, int],
    names: Mapping[str, str],
    known: Mapping[str, str],
    where: str,
    reporter: Reporter,
) -> None:
    for name in dict.fromkeys(name for text, name in names.items() if name and text not in known):
        n = sum(found[text] for text in names if names[text] == name)
        reporter.warn(f"{where}: {n:,} labels are {name!r}, which means that the class is unknown")
    spellings, in_lower_case = defaultdict(set), defaultdict(set)
    for text, name in known.items():
        spellings[name].add(text.strip())
        in_lower_case[_LEADING_ZEROS.sub("", name.lower())].add(name)
    for name, same in spellings.items():
        if len(same) > 1:
            shown = ", ".join(map(ascii, sorted(same)))
            reporter.warn(f"{where}: {name!r} is written in {len(same)} ways, one class: {shown}")
    for close in in_lower_case.values():
        if len(close) > 1:
            shown = ", ".join(map(repr, sorted(close)))
            reporter.say(f"{where}: classes that differ in case or leading zeros only: {shown}")


def number_labels(
    labels: Mapping[str, Sequence[str]], where: str, reporter: Reporter = SILENT
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Give the labels of all splits numbers, by one list of classes."""
    name_of = name_classes(Counter(chain.from_iterable(labels.values())), where, reporter)
    class_names = tuple(dict.fromkeys(name for name in name_of.values() if name))
    index = {"": -1} | {name: i for i, name in enumerate(class_names)}
    number_of = {text: index[name] for text, name in name_of.items()}
    return class_names, {
        split: np.array([number_of[text] for text in texts], dtype=np.int64)
        for split, texts in labels.items()
    }
