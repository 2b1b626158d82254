"""Names as a cache stores them: one array of fixed-length UTF-8."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, overload

import numpy as np

from featx.errors import CacheError

__all__ = ["Names", "encode_names"]

_NAMES_AT_ONCE: Final = 1 << 16


class Names(Sequence[str]):
    """Names in a stored array, each decoded when it is asked for.

    A Python string takes four times the memory: ten million names, which a place of shards may
    have, stay small here.
    """

    def __init__(self, stored: np.ndarray) -> None:
        self.stored = stored

    def __len__(self) -> int:
        return len(self.stored)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Names: ...
    def __getitem__(self, index: int | slice) -> str | Names:
        if isinstance(index, slice):
            return Names(self.stored[index])
        return str(self.stored[index].decode("utf-8", "surrogateescape"))

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _NAMES_AT_ONCE):
            for name in self.stored[start : start + _NAMES_AT_ONCE].tolist():
                yield name.decode("utf-8", "surrogateescape")


def encode_names(names: Sequence[str], what: str) -> np.ndarray:
    """Names as one array of fixed-length UTF-8.

    Undecodable bytes of file names (`os.fsdecode` makes them lone surrogates)
    are stored as they were.
    """
    if isinstance(names, Names):
        return names.stored
    rest = iter(names)
    parts = [np.array([], "S1")]
    while some := [_encode(name, what) for name in islice(rest, _NAMES_AT_ONCE)]:
        parts.append(np.array(some, f"S{max(1, *map(len, some))}"))
    return np.concatenate(parts)


def _encode(name: str, what: str) -> bytes:
    try:
        data = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        data = b"\0"
    if b"\0" in data or data.decode("utf-8", "surrogateescape") != name:
        raise CacheError(f"{what}: {name!r} cannot be stored as UTF-8: rename it")
    return data
