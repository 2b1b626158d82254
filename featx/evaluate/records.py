"""JSON files that say what they are, hold a digest of themselves, and are never overwritten."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from featx.atomic import replace_text
from featx.errors import FeatxError
from featx.records import parse_json

__all__ = ["RecordError", "made", "read_older_too", "read_record", "record_text", "write_record"]

_TYPE, _VERSION, _DIGEST = "featx", "version", "sha256"
_NOW = 1

T = TypeVar("T")


class RecordError(FeatxError):
    """A file that is no record, or that was changed since it was written."""


def record_text(kind: str, record: Mapping[str, Any]) -> str:
    """Write a record as JSON, one line for each of its keys."""
    whole = {_TYPE: kind, _VERSION: _NOW, **record}
    whole[_DIGEST] = _digest(whole)
    lines = [
        f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in whole.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _digest(whole: Mapping[str, Any]) -> str:
    # ASCII, since names of files need not be text.
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def read_record(kind: str, path: Path) -> dict[str, Any]:
    """Read a record, if every character of it is as it was written."""
    try:
        whole = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(whole, dict) or whole.get(_TYPE) != kind or whole.get(_VERSION) != _NOW:
            raise RecordError(f"it is no {kind} of this version of featx")
        digest = whole.pop(_DIGEST, "")
        if _digest(whole) != digest:
            raise RecordError("it was changed or damaged: its digest does not fit")
    # Nested just less deep than can be read, it cannot be written for its digest.
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"it cannot be read as JSON ({error})") from error
    return {key: value for key, value in whole.items() if key not in (_TYPE, _VERSION)}


def made(kind: str, make: Callable[[dict[str, Any]], T], record: dict[str, Any]) -> T:
    """Make something of a record, whose content another program may have written."""
    try:
        return make(record)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise RecordError(
            f"it has the digest of a {kind}, but not the content ({reason})"
        ) from error


def read_older_too(kind: str, path: Path) -> dict[str, Any]:
    """Read a record, or an object of a featx that gave files of this kind no digest."""
    values = parse_json(path.read_text(encoding="utf-8"))
    is_older = isinstance(values, dict) and _DIGEST not in values
    return values if is_older else read_record(kind, path)


def write_record(stem: Path, kind: str, record: Mapping[str, Any]) -> Path:
    """Write a record whole, beside what is there; one writer at a time."""
    names = (stem.name + (".json" if n == 1 else f"-{n}.json") for n in itertools.count(1))
    path = next(path for name in names if not (path := stem.with_name(name)).exists())
    replace_text(path, record_text(kind, record))
    return path
