"""Labels of the samples of a WebDataset: read one by one, then numbered by class."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from featx.errors import SourceError
from featx.progress import Reporter
from featx.records import parse_json
from featx.sources.archives.members import Index
from featx.sources.archives.tar import read_tar_member
from featx.sources.labels import clean, label_text, number_labels
from featx.sources.layout import check_two_classes, some
from featx.sources.split_columns import is_split_name, is_split_word
from featx.sources.tables import find_column

__all__ = ["NAME_FILES", "read_label", "read_split_cells", "resolve_labels"]

NAME_FILES = ("classes.txt", "classnames.txt")
"""Where the names of numbered classes are, one a line, beside the shards."""

_KEYS = ("label", "cls", "class")  # of the JSON files
_MOST_BYTES = {"cls": 4096, "json": 1 << 20, "txt": 4096}  # more is no label
_LONGEST_NAME = 200
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]+)?")


def read_label(stream: BinaryIO, index: Index, files: Mapping[str, str]) -> str:
    """Read the label of one sample."""
    for extension in _MOST_BYTES:
        text = _read_text(stream, index, files, extension)
        if extension == "json" and text:
            text = _from_json(_parsed(text), f"{index.archive.path!r}, {files[extension]!r}")
        if label := _label(text):
            return label
    return ""


def read_split_cells(stream: BinaryIO, index: Index, files: Mapping[str, str]) -> dict[str, str]:
    """Read what the ``.json`` file of one sample may say of its split; see `read_label`."""
    values = _parsed(_read_text(stream, index, files, "json"))
    inner = [part for part in values.values() if isinstance(part, dict)]  # {"meta": {"split": …}}
    values = {key: value for part in (*inner, values) for key, value in part.items()}
    texts = {key: label_text(value) for key, value in values.items() if key not in _KEYS}
    return {
        key: text
        for key, text in texts.items()
        if text and (is_split_name(key) or is_split_word(text))
    }


def _read_text(stream: BinaryIO, index: Index, files: Mapping[str, str], extension: str) -> str:
    """Read a text file of a sample; "" where there is none, or it is too long or no UTF-8."""
    if extension not in files:
        return ""
    _, offset, size = index.rows[index.files[files[extension]]]
    if size > _MOST_BYTES[extension]:
        return ""
    try:
        return read_tar_member(stream, offset, size).decode("utf-8-sig")
    except UnicodeDecodeError:
        return ""


def _parsed(text: str) -> dict[str, Any]:
    try:
        values = parse_json(text)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _from_json(values: dict[str, Any], where: str) -> str:
    names = (find_column(where, values, [key]) for key in _KEYS)
    labels = (_label(label_text(values[name]) or "") for name in names if name is not None)
    return next(filter(None, labels), "")


def _label(text: str) -> str:
    """Take a number or a line of text."""
    text = text.strip()
    return text if text.isprintable() and len(text) <= _LONGEST_NAME else ""


def resolve_labels(
    labels: Mapping[str, Sequence[str]],
    paths: Mapping[str, Sequence[str]],
    root: Path,
    reporter: Reporter,
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Give the labels of all splits numbers, by one list of classes."""
    names, numbers = number_labels(labels, str(root), reporter)
    first: dict[str, str] = {}  # one row of each class
    for split, rows in numbers.items():
        for row, path in zip(rows.tolist(), paths[split], strict=True):
            if row >= 0:
                first.setdefault(names[row], path)
    are_numbers = [bool(_NUMBER.fullmatch(name)) for name in names]
    if any(are_numbers) and not all(are_numbers):
        number, word = (names[are_numbers.index(kind)] for kind in (True, False))
        raise SourceError(
            f"the labels are numbers in some samples ({number} in {first[number]!r}) and "
            f"names in others ({word!r} in {first[word]!r}): give all in one way"
        )
    known = _read_names(root) if any(are_numbers) else None
    if known is not None:
        names, numbers = _by_file(names, numbers, first, *known)
    check_two_classes(str(root), names)
    return names, numbers


def _by_file(
    names: tuple[str, ...],
    numbers: dict[str, np.ndarray],
    first: Mapping[str, str],
    file: Path,
    lines: list[str],
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Take the numbers of classes as lines of a file with their names."""
    wrong = [name for name in names if not (name.isdecimal() and int(name) < len(lines))]
    if wrong:
        raise SourceError(
            f"the label {wrong[-1]} of {first[wrong[-1]]!r} has no name: {str(file)!r} has "
            f"{len(lines):,} lines, for the labels from 0 to {len(lines) - 1}"
        )
    line = np.array([*map(int, names), -1], dtype=np.int64)  # the last is reached by -1
    return tuple(lines), {split: line[rows] for split, rows in numbers.items()}


def _read_names(root: Path) -> tuple[Path, list[str]] | None:
    file = next((root / name for name in NAME_FILES if (root / name).is_file()), None)
    if file is None:
        return None
    try:
        lines = [clean(line) for line in file.read_text("utf-8-sig").rstrip().split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"cannot read the class names in {str(file)!r}: {error}") from error
    repeated = [line for line, n in Counter(lines).items() if n > 1 or not line]
    if repeated:
        raise SourceError(
            f"{str(file)!r} must name each class once, on a line of its own; "
            f"empty or repeated are {some(repeated)}"
        )
    return file, lines
