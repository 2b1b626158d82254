"""Stops (Ctrl-C, a handler of SIGTERM) that hold even where a library swallows them.

scikit-learn's MLPClassifier and skorch catch KeyboardInterrupt and give back what is half trained,
as code of the user's may; Python itself drops what is raised in a finaliser.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

__all__ = ["NUMBERS", "check", "heard"]

NUMBERS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals that stop a program, as far as this system has them."""

_raised: list[BaseException] = []


@dataclass
class _Hearing:
    """A signal handler, and a note of what it raised."""

    handler: Callable[[int, FrameType | None], Any]

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self.handler(number, frame)
        except BaseException as stop:
            _raised.append(stop)
            raise


def check() -> None:
    """Raise the stop that came since the outermost `heard` began, if there was one.

    To be called before anything is recorded, in any thread.
    """
    if _raised:
        raise _raised[0] from None


@contextmanager
def heard() -> Iterator[None]:
    """Let a stop that comes inside end the block, whatever the code there makes of it.

    What a signal handler raised inside is raised at the end of the block: where it was swallowed,
    and in place of the error that somebody made of it. Handlers that raise nothing, and signals
    that are ignored, stay what they are. Signals are handled in the main thread alone: in other
    threads a block ends with the stop that the main thread heard.
    """
    handlers = {n: signal.getsignal(n) for n in NUMBERS}
    is_inner = any(isinstance(handler, _Hearing) for handler in handlers.values())
    if is_inner or current_thread() is not main_thread():
        try:
            yield
        finally:
            check()
        return
    try:
        try:
            for number, handler in handlers.items():
                if callable(handler):
                    signal.signal(number, _Hearing(handler))
            yield
        finally:
            _end(handlers)
    finally:
        _end(handlers)  # once more, where a stop cut the first one short


def _end(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        if callable(handler):
            signal.signal(number, handler)
    stops = _raised[:1]
    _raised.clear()
    if stops:
        raise stops[0] from None
