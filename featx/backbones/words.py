"""What may be typed in place of a plain word: paths, pairs and lists of one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from numbers import Integral
from typing import Any

from featx.errors import UsageError

__all__ = ["as_only", "as_side", "as_text", "with_side"]


def as_text(word: Any) -> Any:
    """Give the text of a path."""
    return os.fspath(word) if isinstance(word, os.PathLike) else word


def as_only(name: str, word: Any, several: str) -> Any:
    """Give the only element of a list; `several` says what to do where there are more."""
    if not isinstance(word, list | tuple):
        return word
    if len(word) != 1:
        raise UsageError(f"{name} is a list of {len(word)}: give one, or {several}")
    return word[0]


def as_side(size: Any) -> Any:
    """Give the side of a square."""
    if not isinstance(size, list | tuple):
        return size
    if len(size) != 2 or size[0] != size[1]:
        raise UsageError(f"input_size is {size!r}: give one number, the side of a square in pixels")
    return size[0]


def with_side(overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """Put a number in place of a pair in the changes to a preprocessing."""
    values = dict(overrides or {})
    side = values["input_size"] = as_side(values.pop("input_size", None))
    if side is None:
        del values["input_size"]
    elif not isinstance(side, Integral):
        raise UsageError(f"input_size is {side!r}: give a number of pixels")
    return values
