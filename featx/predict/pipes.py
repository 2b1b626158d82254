"""What comes through a pipe: one image, or names of images, one a line."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from featx.errors import SourceError, read_error
from featx.sources import Source, from_arrays

__all__ = ["read_pipes"]

STANDARD_INPUT = "-"
_MOST_BYTES = 1 << 30
_LOOKED_AT = 1024


def read_pipes(
    words: Sequence[str | os.PathLike[str]],
) -> tuple[list[str | os.PathLike[str]], list[Source]]:
    """Put the names that come through pipes in their place; with a source for each image."""
    plain: list[str | os.PathLike[str]] = []
    images = []
    for word in words:
        came = _read(word) if _is_pipe(word) else [word]
        if isinstance(came, Source):
            images.append(came)
        else:
            plain += came
    return plain, images


def _is_pipe(word: str | os.PathLike[str]) -> bool:
    """Whether a word is standard input, or a pipe that has a name."""
    if os.fspath(word) == STANDARD_INPUT:
        return True
    try:
        mode = Path(word).stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _read(word: str | os.PathLike[str]) -> Source | list[str | os.PathLike[str]]:
    """Read a pipe to its end: a source of one image, or the lines."""
    name = os.fspath(word)
    is_input = name == STANDARD_INPUT
    try:
        with nullcontext(sys.stdin.buffer) if is_input else Path(name).open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise read_error(name, error) from error
    if len(content) > _MOST_BYTES:
        raise SourceError(f"{name} gives more than {_MOST_BYTES:,} bytes: save it as files first")
    if not content.strip():
        raise SourceError(f"{name} gives nothing: it takes one image, or names of images")
    # Every format of images has zeros in its first bytes, and no name of a file has any.
    if b"\0" not in content[:_LOOKED_AT]:
        return [os.fsdecode(line) for line in content.splitlines() if line.strip()]
    return replace(from_arrays([content], name="images"), paths=(name,))
