"""Files of tensors that say what they are: safetensors, with a record that seals itself.

The metadata of a safetensors file hold one JSON text under the key ``featx``: what the file is, the
version of its format, what its writer says of it, and the SHA-256 of all that. Nothing in such a
file is a program, and nothing is run when it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from featx.atomic import replace_file
from featx.errors import FeatxError

__all__ = ["ENDING", "SealedFiles", "parse_json"]

ENDING = ".safetensors"
_KEY, _FORMAT, _VERSION, _DIGEST = "featx", "format", "version", "sha256"


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


def _digest(record: Mapping[str, Any]) -> str:
    # ASCII: names of classes and files may be no text, and still have a digest.
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; ValueError where it is none, or nested deeper than Python can read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deep") from error
