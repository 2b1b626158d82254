"""The words that options take, and the forms in which they may be typed: without torch."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from numbers import Integral, Number
from typing import Any

from featx.errors import UsageError, unknown_name

__all__ = [
    "ALL",
    "AUTO",
    "ENGINES",
    "INTERPOLATIONS",
    "LOCAL",
    "MISTAKES",
    "POOLS",
    "PRECISIONS",
    "RAY",
    "RUNTIMES",
    "STORE_DTYPES",
    "as_only",
    "as_side",
    "as_text",
    "check_engine",
    "check_scale",
    "check_word",
    "put_in_form",
    "with_side",
]

ALL, AUTO = "all", "auto"
POOLS = ("none", "avg", "max", "cls", "avg+cls")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
PRECISIONS = ("fp32", "bf16", "fp16", "auto")
RUNTIMES = ("torch", "compile", "openvino", "auto")
STORE_DTYPES = ("float16", "float32")
LOCAL, RAY = ENGINES = ("local", "ray")
MISTAKES: dict[str, dict[str, Any]] = {
    "correct": {},
    "half-range": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "divide-only": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    "divide-twice": {"mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0)},
    "bgr": {"channels": "bgr"},
    "raw": {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)},
}
"""Overrides that feed a network as wrongly as people do: values in -1 to 1, values in 0 to 1,
values in 0 to 1/255 (as weights see values in 0 to 1 that want 0 to 255), colours in the order of
OpenCV and Caffe, values in 0 to 255; and none."""


def check_word(kind: str, word: Any, allowed: Collection[str]) -> None:
    """Refuse a word that is none of those allowed."""
    if word not in allowed:
        raise unknown_name(kind, str(word), allowed)


def check_engine(engine: str, address: str | None) -> None:
    """Refuse an engine that there is not, and the address of a cluster without one."""
    check_word("engine", engine, ENGINES)
    if address is not None and engine != RAY:
        raise UsageError(f"the address {address!r} is of a Ray cluster: give  --engine ray  too")


def check_scale(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Refuse a mean or deviation of values in 0 to 255: here they are subtracted in 0 to 1."""
    if max(mean) <= 1 and max(std) <= 1:
        return
    names = ["mean" if max(mean) > 1 else "", "std" if max(std) > 1 else ""]
    std = tuple(v / 255 for v in std) if max(std) >= 1 else std
    mean = tuple(v / 255 for v in mean) if max(mean) > 1 else mean
    offer = "".join(
        f" --{name} " + " ".join(f"{v:.4g}" for v in values)
        for name, values in (("mean", mean), ("std", std))
    )
    raise UsageError(
        f"{' and '.join(filter(None, names))} are of values from 0 to 255, and are subtracted from "
        f"and divided into values from 0 to 1: give {offer}"
    )


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


def put_in_form(plan: Any) -> None:
    """Give each field of a frozen plan its declared form, whatever Python users put there.

    One word in place of a tuple becomes a tuple of one, a list a tuple; paths and devices become
    text, the pair of sides of a square one side, ``"all"`` in place of a number no limit.
    """
    for field in fields(plan):
        value = as_text(getattr(plan, field.name))
        if field.name == "input_size":
            value = as_side(value)
        elif field.type == "int | None" and value == ALL:
            value = None
        elif field.name == "device":
            value = tuple(map(str, value)) if isinstance(value, list | tuple) else str(value)
        elif str(field.type).startswith("tuple"):
            value = _as_tuple(value, or_none=str(field.type).endswith("None"))
        object.__setattr__(plan, field.name, value)


def _as_tuple(value: Any, or_none: bool) -> tuple[Any, ...] | None:
    if value is None:
        return None if or_none else ()
    is_one = isinstance(value, str | Number) or not isinstance(value, Iterable)
    return (value,) if is_one else tuple(map(as_text, value))
