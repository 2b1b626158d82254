"""Read pickles that hold data only, without the means to run anything.

`pickle.load` runs whatever a file names. Here its steps (as `pickletools` lists them) are
followed on a stack of plain values instead: nothing that a file names is imported or called,
arrays of numpy are recognised by how they are written, and all else is refused.
"""

from __future__ import annotations

import pickletools
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from featx.errors import SourceError

__all__ = ["MAX_BYTES", "MAX_STEPS", "PickledArray", "read_plain_pickle"]

MAX_BYTES = 1 << 29
"""Largest file that is read (512 MiB; the largest official one has 155 MB)."""

MAX_STEPS = 5_000_000
"""Most steps that are followed (the longest official file has about 300,000)."""

_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_FROM_BUFFER = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
_KNOWN = frozenset({*_RECONSTRUCT, *_FROM_BUFFER, "numpy.ndarray", "numpy.dtype", "_codecs.encode"})
_DTYPES = frozenset({"u1", "i1", "i2", "i4", "i8"})
_FORTRAN = frozenset("F")
_ORDERS = frozenset("|<=>")


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Raw:
    """Bytes of the file itself, from `start` on."""

    start: int
    length: int


class _Mark:
    pass


@dataclass
class _Dtype:
    code: str
    order: str = "|"


@dataclass
class PickledArray:
    """An array in a pickle."""

    values: np.ndarray
    start: int | None = None


class _Refused(Exception):  # noqa: N818 - carries a name to the surface, never leaves this module
    pass


def read_plain_pickle(data: bytes, file: str) -> Any:
    """Give what a pickle holds, if that is data only."""
    if len(data) > MAX_BYTES:
        raise SourceError(f"{file} has {len(data):,} bytes, more than {MAX_BYTES:,}")
    try:
        return _Machine(data).run()
    except _Refused as refused:
        raise SourceError(
            f"{file} is a pickle that wants to run {refused}: nothing was run. featx reads "
            "arrays of integers, lists, text and numbers only, which is all the official files hold"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged stack can fail anywhere
        raise SourceError(f"{file} is no pickle, or damaged ({_short(error)})") from error


def _shown(value: Any) -> str:
    return reprlib.repr(value)[:80]  # repr itself may never end


def _is_one(value: Any, known: frozenset[str]) -> bool:
    return isinstance(value, str) and value in known


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:120]


class _Machine:
    """The stack that a pickle's steps work on, with plain values only."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for n_steps, (opcode, arg, position) in enumerate(pickletools.genops(self.data)):
            if n_steps > MAX_STEPS:
                raise ValueError(f"more than {MAX_STEPS:,} steps")
            name = opcode.name
            if name in _RAW_HEADS:
                self.stack.append(_Raw((position or 0) + _RAW_HEADS[name], len(arg or b"")))
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _VALUES:
                self.stack.append(arg.decode("latin-1") if isinstance(arg, bytes) else arg)
            elif name in _STEPS:
                _STEPS[name](self, arg)
            elif name not in _NOTHING:
                raise _Refused(f"the pickle instruction {name}")
        [value] = self.stack
        return value

    def to_mark(self) -> list[Any]:
        """Pop all values down to the last mark."""
        values: list[Any] = []
        while not isinstance(value := self.stack.pop(), _Mark):
            values.append(value)
        return values[::-1]

    def tuple_of(self, n: int) -> None:
        self.stack[len(self.stack) - n :] = [tuple(self.stack[len(self.stack) - n :])]

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError("values appended to no list")
        target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise TypeError("items set in no dict")
        # Tuples of tuples could take for ever to hash.
        if not all(isinstance(key, (str, int)) for key in values[::2]):
            raise TypeError("a key that is neither text nor a number")
        target.update(zip(values[::2], values[1::2], strict=True))

    def name_global(self, name: str) -> None:
        if name not in _KNOWN:
            raise _Refused(repr(name))
        self.stack.append(_Global(name))

    def call(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        name = called.name if isinstance(called, _Global) else ""
        if name in _RECONSTRUCT:
            self.stack.append(PickledArray(np.empty(0, np.uint8)))
        elif name in _FROM_BUFFER:
            raw, dtype, shape, order = arguments
            self.stack.append(PickledArray(np.empty(0, np.uint8)))
            self._fill(self.stack[-1], tuple(shape), dtype, _is_one(order, _FORTRAN), raw)
        elif name == "numpy.dtype" and _is_one(arguments[0], _DTYPES):
            self.stack.append(_Dtype(arguments[0]))
        elif name == "_codecs.encode" and arguments[1] in ("latin1", "latin-1"):
            self.stack.append(arguments[0])
        else:
            raise _Refused(f"{name or _shown(called)} with {_shown(arguments)}")

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Dtype):
            target.order = state[1]
        elif isinstance(target, PickledArray):
            _, shape, dtype, is_fortran, raw = state
            self._fill(target, tuple(shape), dtype, bool(is_fortran), raw)
        else:
            raise _Refused(f"the state of {_shown(target)}")

    def _fill(
        self, target: PickledArray, shape: tuple[int, ...], dtype: Any, is_fortran: bool, raw: Any
    ) -> None:
        if not isinstance(dtype, _Dtype) or not _is_one(dtype.order, _ORDERS):
            raise _Refused(f"an array of {_shown(dtype)}")
        kind = np.dtype(dtype.order + dtype.code)
        if isinstance(raw, _Raw):
            values = np.frombuffer(self.data, np.uint8, raw.length, raw.start).view(kind)
            target.start = None if is_fortran else raw.start
        else:
            values = np.frombuffer(raw.encode("latin-1"), kind)
        if is_fortran:
            values = values.reshape(shape[::-1]).T
        target.values = np.ascontiguousarray(values).reshape(shape)


# Instructions that a long text begins with, by the number of bytes before the text.
_RAW_HEADS = {"BINSTRING": 5, "BINBYTES": 5, "BINBYTES8": 9, "BYTEARRAY8": 9}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "SHORT_BINSTRING", "SHORT_BINBYTES"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    )
)
_NOTHING = frozenset({"PROTO", "FRAME", "STOP"})


def _memoize(machine: _Machine, index: int | None) -> None:
    machine.memo[len(machine.memo) if index is None else index] = machine.stack[-1]


def _name_from_stack(machine: _Machine, _: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise TypeError("a name that is no text")
    machine.name_global(f"{module}.{name}")


def _make_dict(machine: _Machine, _: Any) -> None:
    values = machine.to_mark()
    machine.stack.append({})
    machine.set_items(values)


_STEPS: dict[str, Callable[[_Machine, Any], object]] = {
    "MARK": lambda m, _: m.stack.append(_Mark()),
    "POP": lambda m, _: m.stack.pop(),
    "POP_MARK": lambda m, _: m.to_mark(),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "LIST": lambda m, _: m.stack.append(m.to_mark()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.to_mark())),
    "DICT": _make_dict,
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "APPEND": lambda m, _: m.append([m.stack.pop()]),
    "APPENDS": lambda m, _: m.append(m.to_mark()),
    "SETITEM": lambda m, _: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    "SETITEMS": lambda m, _: m.set_items(m.to_mark()),
    "PUT": _memoize,
    "BINPUT": _memoize,
    "LONG_BINPUT": _memoize,
    "MEMOIZE": _memoize,
    "GET": lambda m, i: m.stack.append(m.memo[i]),
    "BINGET": lambda m, i: m.stack.append(m.memo[i]),
    "LONG_BINGET": lambda m, i: m.stack.append(m.memo[i]),
    "GLOBAL": lambda m, name: m.name_global(name.replace(" ", ".", 1)),
    "STACK_GLOBAL": _name_from_stack,
    "REDUCE": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.build(),
}
