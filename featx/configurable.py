"""Settings declared beside their defaults, checked, and read from words ``key=value``.

A head, or a network, is a frozen dataclass; its settings are the fields made by `setting`. There
is one way to change them, `Configurable.with_settings`, which `featx.heads.configure` and
`featx.heads.Classifier` call.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Self, get_args, get_origin, get_type_hints

from featx.errors import UsageError, unknown_name

__all__ = [
    "Configurable",
    "check_number",
    "parse",
    "setting",
    "settings_of",
    "split_settings",
    "words_of",
]

_RULE = "featx.configurable"
_WITH_SETTINGS = re.compile(r"(?P<name>[^()]+)\((?P<words>[^()]*)\)")
_KINDS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}


@dataclass(frozen=True)
class _Rule:
    within: str = ""
    choices: tuple[str, ...] = ()


def setting(default: Any, *, within: str = "", choices: Sequence[str] = ()) -> Any:
    """Declare a field of a head that people may set."""
    return field(default=default, metadata={_RULE: _Rule(within, tuple(choices))})


class Configurable:
    """Base of frozen dataclasses whose fields made by `setting` can be changed."""

    name: str

    def __post_init__(self) -> None:
        for key, value in self.settings.items():
            self._check(key, value)

    @property
    def settings(self) -> dict[str, Any]:
        """Names and values of all settings."""
        return {key: getattr(self, key) for key in _rules(type(self))}

    def with_settings(self, **values: Any) -> Self:
        """Give the same head with other settings."""
        self._check_names(values)
        made = {key: _as_kind(value, self._kind(key)) for key, value in values.items()}
        return dataclasses.replace(self, **made)  # type: ignore[type-var]

    def read(self, key: str, text: str) -> Any:
        """Turn the text of a setting into its value."""
        self._check_names({key: text})
        kind = self._kind(key)
        try:
            if (item := _item(kind)) is None:
                return _parsed(text, kind)
            return tuple(_parsed(part, item) for part in text.split(",") if part.strip())
        except ValueError:
            raise _wrong_type(self.name, key, text, kind) from None

    def _kind(self, key: str) -> Any:
        return get_type_hints(type(self))[key]

    def _check_names(self, values: Mapping[str, Any]) -> None:
        for key in values:
            if not self.settings:
                raise UsageError(f"{self.name} has no settings: leave {key} out")
            if key not in self.settings:
                raise unknown_name(f"setting of {self.name}", key, self.settings)

    def _check(self, key: str, value: Any) -> None:
        rule, kind = _rules(type(self))[key], self._kind(key)
        item = _item(kind)
        values = value if item is not None and isinstance(value, tuple) else (value,)
        if (item is not None and not isinstance(value, tuple)) or not all(
            _is_a(one, item or kind) for one in values
        ):
            raise _wrong_type(self.name, key, value, kind)
        if rule.choices and value not in rule.choices:
            raise unknown_name(f"{key} of {self.name}", str(value), rule.choices)
        if item is not None and not values:
            raise UsageError(f"{key} of {self.name} is empty: give one number or more")
        if rule.within and not all(_is_within(one, rule.within) for one in values):
            raise UsageError(f"{key} of {self.name} is {value}: it must be in {rule.within}")


def settings_of(head: object) -> dict[str, Any]:
    """Names and values of the settings of any head; none where it is not `Configurable`."""
    return head.settings if isinstance(head, Configurable) else {}


def split_settings(text: str) -> tuple[str, list[str]]:
    """Take the settings off a name: ``mlp(hidden=64 alpha=0.1)`` is ``mlp`` and two words."""
    match = _WITH_SETTINGS.fullmatch(text)
    return (match["name"], match["words"].split()) if match else (text, [])


def words_of(settings: Mapping[str, Any]) -> str:
    """Write settings as they are typed, ``hidden=512,256 dropout=0.2``."""
    return " ".join(f"{key}={_text(value)}" for key, value in settings.items())


def parse(head: object, words: Sequence[str]) -> dict[str, Any]:
    """Read words ``key=value`` as settings of a head."""
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UsageError(f"{word!r} is no setting: write key=value, as in hidden=512,256")
        if key in values:
            raise UsageError(f"the setting {key} is given twice: leave one of them out")
        if not isinstance(head, Configurable):
            raise UsageError(f"{getattr(head, 'name', head)} has no settings: leave {key} out")
        values[key] = head.read(key, text)
    return values


def check_number(name: str, value: object, interval: str, *, is_whole: bool = False) -> None:
    """Raise a `UsageError` for what is no number, or lies outside an interval such as "(0, inf)".

    NaN lies outside every interval, and infinity is no number to give.
    """
    kind = Integral if is_whole else Real
    if isinstance(value, bool) or not isinstance(value, kind):
        raise UsageError(f"{name} is {value!r}: it must be {_KINDS[int if is_whole else float]}")
    if not _is_within(value, interval):  # type: ignore[arg-type]
        raise UsageError(f"{name} is {value}: it must be {_in_words(interval)}")


def _in_words(interval: str) -> str:
    low, high = interval[1:-1].split(", ")
    least = f"above {low}" if interval[0] == "(" else f"{low} or more"
    if high == "inf":
        return f"{least}, and finite" if interval[0] == "(" else least
    return f"{least}, and {'below' if interval[-1] == ')' else 'at most'} {high}"


def _rules(owner: Any) -> dict[str, _Rule]:
    return {f.name: f.metadata[_RULE] for f in dataclasses.fields(owner) if _RULE in f.metadata}


def _item(kind: Any) -> Any:
    """Type of the numbers of a tuple; None for a type that is no tuple."""
    return get_args(kind)[0] if get_origin(kind) is tuple else None


def _is_a(value: Any, kind: Any) -> bool:
    # bool is an int in Python, and no number here.
    return type(value) is kind or (kind is float and type(value) is int)


def _as_kind(value: Any, kind: Any) -> Any:
    item = _item(kind)
    if item is not None:
        is_many = isinstance(value, Sequence) and not isinstance(value, str)
        return tuple(_as_kind(one, item) for one in (value if is_many else (value,)))
    return float(value) if kind is float and type(value) is int else value


def _parsed(text: str, kind: Any) -> Any:
    if kind is bool and text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true" if kind is bool else kind(text)


def _wrong_type(head: str, key: str, value: Any, kind: Any) -> UsageError:
    item = _item(kind)
    what = _KINDS[kind] if item is None else f"{_KINDS[item]}, or several with commas"
    return UsageError(f"{key} of {head} is {value!r}: it must be {what}")


def _is_within(value: float, interval: str) -> bool:
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below and math.isfinite(value)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_text(one) for one in value)
    return str(value).lower() if isinstance(value, bool) else str(value)
