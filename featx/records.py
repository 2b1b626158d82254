"""Files that say what they are and hold a digest of themselves: JSON, and tensors in safetensors.

The metadata of a safetensors file hold one JSON text under the key ``featx``: what the file is, the
version of its format, what its writer says of it, and the SHA-256 of all that. A JSON file holds
the same as keys. Nothing in such a file is a program, and nothing is run when it is read.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from featx.atomic import replace_file, replace_text
from featx.errors import FeatxError

__all__ = [
    "ENDING",
    "RecordError",
    "SealedFiles",
    "made",
    "parse_json",
    "read_older_too",
    "read_record",
    "record_text",
    "write_record",
]

ENDING = ".safetensors"
_KEY, _FORMAT, _VERSION, _DIGEST = "featx", "format", "version", "sha256"
_NOW = 1  # version of JSON files
_NARROW = (",", ":")  # the digest of a JSON file is of a text without spaces

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SealedFiles:
    """One kind of such files."""

    format: str
    version: int
    noun: str
    error: type[FeatxError]
    missing: str
    unknown: str
    damaged: str

    def write(
        self,
        path: Path,
        record: Mapping[str, Any],
        save: Callable[[str, dict[str, str]], object],
    ) -> None:
        """Write a file: whole, or not at all."""
        whole = {_FORMAT: self.format, _VERSION: self.version, **record}
        whole[_DIGEST] = _digest(whole)
        metadata = {_KEY: json.dumps(whole, allow_nan=False)}
        try:
            replace_file(path, lambda part: save(part, metadata))
        except (OSError, SafetensorError) as error:
            raise self.error(f"the {self.noun} {path} cannot be written: {error}") from error

    def read(self, path: Path) -> tuple[dict[str, Any], frozenset[str]]:
        """Read what a file says, and none of its tensors."""
        if not path.is_file():
            raise self.error(f"there is no {self.noun} {path}: {self.missing}")
        try:
            with safe_open(path, framework="numpy") as stream:
                text = (stream.metadata() or {}).get(_KEY)
                names = frozenset(stream.keys())
        except (OSError, SafetensorError) as error:
            raise self.error(
                f"{path} is no {self.noun}, or is damaged: it cannot be read as safetensors "
                f"({error})"
            ) from error
        if text is None:
            raise self.error(f"{path} {self.unknown}")
        return self._parsed(path, text), names

    def _parsed(self, path: Path, text: str) -> dict[str, Any]:
        try:
            record: dict[str, Any] = parse_json(text)
            kind, version = record.get(_FORMAT), record.get(_VERSION)
            is_whole = record.pop(_DIGEST, None) == _digest(record)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise self.damage(path, f"its metadata are no record ({error})") from error
        if kind != self.format:
            raise self.error(
                f"{path} is not a {self.noun} but a {kind}: a featx model is for  featx predict "
                "--model, a featx trained network for  --backbone"
            )
        if version != self.version:
            writer = record.get("featx_version", "of another time")
            raise self.error(
                f"{path} is a {self.noun}, written by featx {writer} in version {version} of the "
                f"format, and this featx reads version {self.version}: update featx"
            )
        if not is_whole:
            raise self.damage(path, "what it says about itself does not fit its digest")
        return record

    def damage(self, path: Path, why: str) -> FeatxError:
        """Say what is wrong with a file, and what to do."""
        return self.error(
            f"{path} is damaged, or was changed since it was written: {why}; {self.damaged}"
        )


def _digest(record: Mapping[str, Any], separators: tuple[str, str] | None = None) -> str:
    # ASCII: names of classes and files may be no text, and still have a digest.
    text = json.dumps(record, sort_keys=True, separators=separators, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; ValueError where it is none, or nested deeper than Python can read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deep") from error


class RecordError(FeatxError):
    """A JSON file that is no record, or that was changed since it was written."""


def record_text(kind: str, record: Mapping[str, Any]) -> str:
    """Write a record as JSON, one line for each of its keys."""
    whole = {_KEY: kind, _VERSION: _NOW, **record}
    whole[_DIGEST] = _digest(whole, _NARROW)
    lines = [
        f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in whole.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_record(kind: str, path: Path) -> dict[str, Any]:
    """Read a record, if every character of it is as it was written."""
    try:
        whole = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(whole, dict) or whole.get(_KEY) != kind or whole.get(_VERSION) != _NOW:
            raise RecordError(f"it is no {kind} of this version of featx")
        digest = whole.pop(_DIGEST, "")
        if _digest(whole, _NARROW) != digest:
            raise RecordError("it was changed or damaged: its digest does not fit")
    # Nested just less deep than can be read, it cannot be written for its digest.
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"it cannot be read as JSON ({error})") from error
    return {key: value for key, value in whole.items() if key not in (_KEY, _VERSION)}


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
