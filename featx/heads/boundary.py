"""The one place where what a library, or code of the user's, raises in a fit becomes a reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from featx.errors import FeatxError, FitError
from featx.stops import heard

__all__ = ["fit_errors"]

_MOST = 500


@contextmanager
def fit_errors(head: str) -> Iterator[None]:
    """Raise `FitError` in place of what libraries raise; stops are never swallowed inside.

    What is no property of the fit is passed on: errors of featx, of the disk and of memory
    (also of a GPU's, as MemoryError), and whatever ends a program.
    """
    with heard():
        try:
            yield
        except (FeatxError, OSError, MemoryError):
            raise
        except Exception as error:
            text = " ".join(str(error).split())[:_MOST]
            reason = f"{type(error).__name__}: {text}".removesuffix(": ")
            if type(error).__name__ == "OutOfMemoryError":  # torch's, a RuntimeError
                raise MemoryError(f"{head}: {reason}") from error
            raise FitError(f"{head} failed: {reason}") from error
