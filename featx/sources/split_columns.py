"""Which column of a table says the split of each image: by its name, or by its values.

A column that looks like a split and is not understood is never passed over: images of the test
split would come among those of training.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from featx.errors import SourceError
from featx.progress import Reporter
from featx.sources.base import Source
from featx.sources.layout import some
from featx.sources.splits import in_order, split_of
from featx.sources.tables import find_column

__all__ = [
    "MOST_LOOKED_AT",
    "divide",
    "find_split",
    "is_split_name",
    "is_split_word",
    "may_be_split",
]

MOST_LOOKED_AT = 1000
"""Rows that show whether a column may hold splits."""

_MOST_VALUES = 20
_NAMES = frozenset({"split", "subset", "set", "partition", "fold", "phase", "usage"})
_WITH_OTHER_NUMBERS = frozenset({"fold", "phase", "usage"})  # of a cross-validation, of a trial
_AROUND = frozenset(
    {"is", "in", "for", "or", "and", "data", "dataset", "image", "img", "sample", "set", "flag"}
    | {"official", "original", "name", "id", "type", "v"}
)
_OTHER_WORDS = frozenset(
    {"dev", "development", "holdout", "heldout", "eval", "evaluation", "trainval"}
    | {"tr", "te", "trn", "tst"}
    | {"publictest", "privatetest"}
)
"""What others call a split, and means one split here and another there."""

_OTHER_NAMES = frozenset({"holdout", "heldout", "eval", "trainval"})  # of columns

_YES, _NO = frozenset({"1", "true", "yes", "y", "t"}), frozenset({"0", "false", "no", "n", "f"})
_CODES = _YES | _NO | {"2", ""}
_REST = {"train": "test", "test": "train", "val": "train", "unlabeled": "train"}


# testset, kfold
_GLUED = re.compile("(train|training|val|valid|validation|test|testing|k)(set|fold|split|data)")


def _plain(cell: str) -> str:
    return cell.strip().lower().removesuffix(".0")


def _words(name: str) -> list[str]:
    apart = re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
    return re.findall("[a-z]+", _GLUED.sub(r"\1_\2", apart))


def is_split_name(name: str) -> bool:
    """Whether a column is called as if it held splits: subset, data_split, isTrain, train/test."""
    words = _words(name)
    if not words:
        return False
    has_split = any(split_of(word) or word in _NAMES for word in words)
    is_flag = words[0] in ("is", "in") and any(map(split_of, words))
    is_other = "".join(word for word in words if word not in _AROUND) in _OTHER_NAMES
    return words[-1] in _NAMES or is_flag or is_other or (has_split and _is_about_splits(words))


def _is_about_splits(words: list[str]) -> bool:
    return all(split_of(word) or word in _AROUND | _NAMES for word in words)


def may_be_split(name: str, values: Iterable[str]) -> bool:
    """Whether a column is worth a look: by its name, or since it has few different values."""
    return is_split_name(name) or len(set(values)) <= _MOST_VALUES


def is_split_word(value: str) -> bool:
    """Whether a value is the name of a split, here or elsewhere."""
    return split_of(value.strip()) is not None or "".join(_words(value)) in _OTHER_WORDS


def _has_split_word(value: str) -> bool:
    return is_split_word(value) or any(map(is_split_word, _words(value)))


def find_split(
    columns: Mapping[str, Sequence[str]], where: str, reporter: Reporter
) -> tuple[str, list[str]] | None:
    """Find the column of the splits."""
    exact = find_column(where, columns, ["split"])
    values = {
        name: Counter(cells)
        for name, cells in columns.items()
        if any(map(str.strip, cells)) and may_be_split(name, cells[:MOST_LOOKED_AT])
    }
    named = [name for name in values if name == exact or (not exact and is_split_name(name))]
    found = {
        repr(name): [split_of(value.strip()) or "" for value in columns[name]]
        for name in named
        if all(split_of(value.strip()) for value in values[name])
    }
    flags = {name: split for name in named if (split := _flag_of(name, values[name]))}
    if flags:
        found[some(flags)] = _from_flags(flags, columns, where)
    if found:
        return _the_one(found, where)
    for name, counts in values.items():
        if name in named:
            _check_not_split(name, list(counts), bool(exact), where, reporter)
        else:
            _check_values(name, counts, where)
    return None


def _the_one(found: dict[str, list[str]], where: str) -> tuple[str, list[str]]:
    first, *others = found
    for other in others:
        if found[other] != found[first]:
            raise SourceError(
                f"{where} has two columns of splits that differ, {first} and {other}: remove one, "
                "or call the right one 'split'"
            )
    return first, found[first]


def _flag_of(name: str, values: Iterable[str]) -> str | None:
    """Give the split that a column of yes and no is about, as is_test is."""
    words = _words(name)
    splits = {split_of(word) for word in words} - {None}
    are_flags = set(map(_plain, values)) <= _YES | _NO
    # A column  train  may say that there is a train in the picture, and  is_valid  that the
    # picture is a good one: these are left to be refused.
    is_clear = len(words) > 1 and "valid" not in words and _is_about_splits(words)
    return splits.pop() if len(splits) == 1 and is_clear and are_flags else None


def _from_flags(
    flags: Mapping[str, str], columns: Mapping[str, Sequence[str]], where: str
) -> list[str]:
    rest = _REST[next(iter(flags.values()))] if len(flags) == 1 else "train"
    splits: list[str] = []
    for cells in zip(*(columns[name] for name in flags), strict=True):
        yes = [
            split for split, cell in zip(flags.values(), cells, strict=True) if _plain(cell) in _YES
        ]
        if len(yes) > 1 or (not yes and rest in flags.values()):
            raise SourceError(
                f"{where}, row {len(splits) + 1:,}: the columns {some(flags)} give no split or "
                "several: give each row one"
            )
        splits.append(yes[0] if yes else rest)
    return splits


def _check_not_split(
    name: str, values: list[str], is_exact: bool, where: str, reporter: Reporter
) -> None:
    """Refuse a column by its name; only warn where no value has to do with splits."""
    strange = [value for value in values if not split_of(value.strip())]
    codes = set(map(_plain, values)) <= _CODES and _WITH_OTHER_NUMBERS.isdisjoint(_words(name))
    if is_exact or codes or any(map(_has_split_word, values)):
        raise SourceError(
            f"{where}: the column {name!r} looks like a split, but some values are none: "
            f"{some(strange)}; write train, val, test or unlabeled in each row, or remove the "
            "column if it is no split"
        )
    reporter.warn(
        f"{where}: the column {name!r} is not taken as the split, since its values are none: "
        f"{some(strange)}; if it is one, write train, val, test or unlabeled"
    )


def _check_values(name: str, values: Mapping[str, int], where: str) -> None:
    """Refuse a column that holds names of splits in most rows, whatever it is called."""
    like = [value for value in values if is_split_word(value)]
    n_like = sum(values[value] for value in like)
    if len(like) > 1 and 2 * n_like > sum(values.values()):
        strange = [value for value in values if not split_of(value.strip())]
        hint = f" and write train, val, test or unlabeled for {some(strange)}" if strange else ""
        raise SourceError(
            f"{where}: the column {name!r} holds names of splits ({some(like)}): call it 'split'"
            f"{hint}, or remove it if it is none"
        )


def divide(source: Source, splits: Sequence[str]) -> dict[str, Source]:
    """Divide a source by the split of each row."""
    rows: dict[str, list[int]] = {}
    for row, split in enumerate(splits):
        rows.setdefault(split, []).append(row)
    return in_order(
        {
            split: replace(source.take(np.array(chosen)), split=split)
            for split, chosen in rows.items()
        }
    )
