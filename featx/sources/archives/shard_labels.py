"""Labels of the samples of a WebDataset: read one by one, then numbered by class."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from featx.errors import SourceError
from featx.sources.archives.members import Index
from featx.sources.archives.tar import read_tar_member
from featx.sources.layout import check_two_classes, some

__all__ = ["NAME_FILES", "Label", "read_label", "resolve_labels"]

Label = int | str | None
"""A number or a name of a class; None where there is no label."""

NAME_FILES = ("classes.txt", "classnames.txt")
"""Where the names of numbered classes are, one a line, beside the shards."""

_KEYS = ("label", "cls", "class")  # of the JSON files
_MOST_BYTES = {"cls": 4096, "json": 1 << 20, "txt": 4096}  # more is no label
_LONGEST_NAME = 200
_NUMBER = re.compile(r"[+-]?\d{1,9}")


def read_label(stream: BinaryIO, index: Index, files: Mapping[str, str]) -> Label:
    """Read the label of one sample.

    Parameters
    ----------
    stream : binary file
        The open shard.
    index : Index
        Its members.
    files : mapping of str to str
        Extensions of the sample's files, and their names.

    Returns
    -------
    int, str or None
        The first found in the ``.cls``, ``.json`` and ``.txt`` file; None where none has one.
    """
    for extension, most in _MOST_BYTES.items():
        if extension in files:
            _, offset, size = index.rows[index.files[files[extension]]]
            if size <= most:
                label = _parse(extension, read_tar_member(stream, offset, size))
                if label is not None:
                    return label
    return None


def _parse(extension: str, data: bytes) -> Label:
    try:
        text = data.decode("utf-8-sig")
        return _label(_from_json(text) if extension == "json" else text)
    except (ValueError, RecursionError):  # no UTF-8, no JSON
        return None


def _from_json(text: str) -> Any:
    values = json.loads(text)
    found = [values[key] for key in _KEYS if key in values] if isinstance(values, dict) else []
    return next((value for value in found if _label(value) is not None), None)


def _label(value: Any) -> Label:
    """Take a number or a line of text; a number below zero means that there is no label."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    text = str(value).strip()
    if _NUMBER.fullmatch(text):
        return int(text) if int(text) >= 0 else None
    return text if text and text.isprintable() and len(text) <= _LONGEST_NAME else None


def resolve_labels(
    labels: Mapping[str, Sequence[Label]], paths: Mapping[str, Sequence[str]], root: Path
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Give the labels of all splits numbers, by one list of classes.

    Parameters
    ----------
    labels : mapping of str to sequence, length N
        The labels of each split, as `read_label` gave them.
    paths : mapping of str to sequence of str, length N
        The rows' names, for messages.
    root : Path
        The folder where `NAME_FILES` are looked for.

    Returns
    -------
    class_names : tuple of str
        The lines of the file; without one, the names or numbers that occur, sorted.
    labels : dict of str to ndarray of int64, shape (N,)
        Index into `class_names`; -1 is unknown.

    Raises
    ------
    SourceError
        If some labels are numbers and others are names, a number has no line in the file,
        or there is one class only.
    """
    first: dict[Label, str] = {}  # one row of each label
    for split, values in labels.items():
        for value, path in zip(values, paths[split], strict=True):
            first.setdefault(value, path)
    first.pop(None, None)
    numbers = sorted(value for value in first if isinstance(value, int))
    names = sorted(value for value in first if isinstance(value, str))
    if numbers and names:
        raise SourceError(
            f"the labels are numbers in some samples ({numbers[0]} in {first[numbers[0]]!r}) and "
            f"names in others ({names[0]!r} in {first[names[0]]!r}): give all in one way"
        )
    class_names, index = _classes(numbers, names, first, root)
    check_two_classes(str(root), class_names)
    return class_names, {
        split: np.array([index.get(value, -1) for value in values], np.int64)
        for split, values in labels.items()
    }


def _classes(
    numbers: list[int], names: list[str], first: Mapping[Label, str], root: Path
) -> tuple[tuple[str, ...], dict[Label, int]]:
    known = _read_names(root) if numbers else None
    if known is None:
        values: list[Label] = [*numbers, *names]
        return tuple(map(str, values)), {value: i for i, value in enumerate(values)}
    file, lines = known
    if numbers[-1] >= len(lines):
        raise SourceError(
            f"the label {numbers[-1]} of {first[numbers[-1]]!r} has no name: {str(file)!r} has "
            f"{len(lines):,} lines, for the labels from 0 to {len(lines) - 1}"
        )
    return tuple(lines), {number: number for number in numbers}


def _read_names(root: Path) -> tuple[Path, list[str]] | None:
    file = next((root / name for name in NAME_FILES if (root / name).is_file()), None)
    if file is None:
        return None
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").rstrip().split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"cannot read the class names in {str(file)!r}: {error}") from error
    repeated = [line for line, n in Counter(lines).items() if n > 1 or not line]
    if repeated:
        raise SourceError(
            f"{str(file)!r} must name each class once, on a line of its own; "
            f"empty or repeated are {some(repeated)}"
        )
    return file, lines
