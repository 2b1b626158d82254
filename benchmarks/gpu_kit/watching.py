"""How far an extraction is, told to whoever measures or kills it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from featx.progress import Bar, Reporter

__all__ = ["Watch"]


@dataclass(frozen=True)
class Watch(Reporter):
    """A quiet reporter that hands on the number of rows that are computed.

    Parameters
    ----------
    tick : callable
        Takes that number, after each batch.
    """

    tick: Callable[[int], object] = print

    def bar(self, total: int, label: str, unit: str = "image", initial: int = 0) -> Bar:
        """Give a bar that tells."""
        if label.startswith("hashing"):
            return Bar(total, label, unit, None, initial)
        return _Telling(self.tick, total, label, unit, None, initial)


class _Telling(Bar):
    def __init__(self, tick: Callable[[int], object], *args: Any) -> None:
        super().__init__(*args)
        self._tick = tick

    def update(self, n: int = 1, note: str = "") -> None:
        """Count, and tell."""
        super().update(n, note)
        self._tick(self.done)
