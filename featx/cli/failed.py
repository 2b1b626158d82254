"""What commands say of fits that failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featx.progress import Reporter

if TYPE_CHECKING:
    from featx.evaluate import FitResult

__all__ = ["tell_failed"]


def tell_failed(fits: Sequence[FitResult], reporter: Reporter) -> int:
    """Tell how many fits failed, each reason once, and give the exit code."""
    failed = [fit for fit in fits if fit.error]
    for head, reason in dict.fromkeys((fit.clf, fit.error) for fit in failed):
        reporter.warn(f"{head} failed: {reason}")
    if failed:
        reporter.warn(
            f"{len(failed)} of {len(fits)} fits failed and are in no mean: the same command tries "
            "them again"
        )
    return int(bool(failed))
