"""Progress of long work: a tqdm bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TextIO

from featx.stops import check
from featx.text import visible

__all__ = ["SILENT", "Bar", "Reporter"]

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_NOTES = 0.5


class Bar:
    """One piece of long work, used as a context manager."""

    def __init__(
        self, total: int, label: str, unit: str, stream: TextIO | None, initial: int = 0
    ) -> None:
        self.total, self.label, self.unit = total, visible(label, keep=""), unit
        self.done = self._initial = initial
        self._stream = stream
        self._note = ""
        self._started = self._printed = time.monotonic()
        self._tqdm: Any = None

    def __enter__(self) -> Self:
        if self._stream is not None and self._stream.isatty():
            from tqdm import tqdm

            self._tqdm = tqdm(
                total=self.total,
                initial=self.done,
                desc=self.label,
                unit=f" {self.unit}",
                file=self._stream,
                dynamic_ncols=True,
            )
        return self

    def update(self, n: int = 1, note: str = "") -> None:
        """Count `n` more units as done; a stop that somebody swallowed ends the work here."""
        check()
        self.done += n
        self._note = visible(note, keep="") or self._note
        if self._tqdm is not None:
            if note:
                is_alone = n == 0 and time.monotonic() - self._printed >= _SECONDS_BETWEEN_NOTES
                self._printed = time.monotonic() if is_alone else self._printed
                self._tqdm.set_postfix_str(self._note, refresh=is_alone)
            self._tqdm.update(n)
        elif self.done < self.total and self._is_due():
            self._line()

    def _is_due(self) -> bool:
        return time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES

    def _line(self, *, is_last: bool = False) -> None:
        self._printed = time.monotonic()
        if self._stream is None:
            return
        elapsed = self._printed - self._started
        rate = (self.done - self._initial) / elapsed if elapsed > 0 else 0.0
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate > 0 else ""
        # Work may also end early, as a training does.
        left = f", {elapsed:.1f} s" if is_last else left
        note = f" ({self._note})" if self._note else ""
        # As tqdm has it, slow units are told by the time of one.
        speed = f"{1 / rate:,.1f} s/{self.unit}" if 0 < rate < 1 else f"{rate:,.1f} {self.unit}/s"
        print(
            f"{self.label}: {self.done:,}/{self.total:,}, {speed}{left}{note}",
            file=self._stream,
            flush=True,
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._tqdm is not None:
            self._tqdm.close()
        elif kind is None:
            self._line(is_last=True)


@dataclass(frozen=True)
class Reporter:
    """Where progress and notices go."""

    quiet: bool = False
    stream: TextIO | None = None

    def __deepcopy__(self, memo: object) -> Self:
        """Give itself: streams cannot be copied, and estimators that are cloned copy all."""
        return self

    def bar(self, total: int, label: str, unit: str = "image", initial: int = 0) -> Bar:
        """Start a piece of long work."""
        stream = None if self.quiet else (self.stream or sys.stderr)
        return Bar(total, label, unit, stream, initial)

    def say(self, text: str) -> None:
        """Print a line of progress, unless quiet."""
        if not self.quiet:
            self._print(text)

    def warn(self, text: str) -> None:
        """Print a line that a person must see, also when quiet."""
        self._print(f"warning: {text}")

    def _print(self, text: str) -> None:
        stream, text = self.stream or sys.stderr, visible(text, keep="")
        if stream.isatty():
            from tqdm import tqdm

            tqdm.write(text, file=stream)
        else:
            print(text, file=stream, flush=True)


class _Silent(Reporter):
    """A reporter that prints nothing, the default of library calls."""

    def _print(self, text: str) -> None:
        del text


SILENT = _Silent(quiet=True)
