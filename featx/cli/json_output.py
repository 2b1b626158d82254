"""``--json``: what a command found, for scripts, in place of its text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, TypeVar

import click

__all__ = ["echo_json", "json_option"]

F = TypeVar("F", bound=Callable[..., Any])


def json_option(function: F) -> F:
    """Add ``--json``."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print JSON for scripts, in place of text."
    )(function)


def echo_json(value: Any) -> None:
    """Print a value as JSON; what is missing, or no finite number, is null."""
    click.echo(json.dumps(_plain(value), indent=1, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "item"):  # a number of NumPy
        return _plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
