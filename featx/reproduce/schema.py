"""What may stand in a recipe, checked against the dataclasses that will take it."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from featx.errors import UsageError, unknown_name

__all__ = ["check_keys", "read_fields"]

_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def check_keys(where: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    """Refuse a key that means nothing."""
    names = list(allowed)
    for key in given:
        if key not in names:
            raise unknown_name(f"key in {where}", key, names)


def read_fields(where: str, given: Mapping[str, Any], kind: type, left_out: Iterable[str]) -> Any:
    """Read a section as keyword arguments of a dataclass."""
    hints = get_type_hints(kind)
    check_keys(where, given, set(hints) - set(left_out))
    return {key: _converted(f"{key} in {where}", value, hints[key]) for key, value in given.items()}


def _converted(what: str, value: Any, hint: Any) -> Any:
    choices = _choices(hint)
    tuples = [choice for choice in choices if get_origin(choice) is tuple]
    if tuples:
        values = value if isinstance(value, list) else [value]
        items = _choices(get_args(tuples[0])[0])
        return tuple(_one(what, item, items) for item in values)
    return _one(what, value, choices)


def _one(what: str, value: Any, choices: tuple[Any, ...]) -> Any:
    if float in choices and type(value) is int:
        return value if int in choices else float(value)
    if type(value) in choices:
        return value
    names = " or ".join(_KINDS[choice] for choice in choices if choice in _KINDS)
    raise UsageError(f"{what} is {value!r}: it must be {names}")


def _choices(hint: Any) -> tuple[Any, ...]:
    is_union = get_origin(hint) in (Union, types.UnionType)
    return get_args(hint) if is_union else (hint,)
