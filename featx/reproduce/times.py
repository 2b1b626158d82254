"""How long extractions took, also those of earlier runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featx.evaluate.records import RecordError, read_older_too
from featx.extract import ExtractReport
from featx.store import Cache, seconds_of

__all__ = ["total_seconds"]

_KIND = "seconds of extractions"


def total_seconds(reports: Sequence[ExtractReport], folder: Path) -> float | None:
    """Give the time of all of some extractions; None where one is not known."""
    older = _of_older_versions(folder / "extraction-seconds.json")
    total = 0.0
    for report in reports:
        with Cache.open(report.path) as cache:
            seconds = seconds_of(cache.path, cache.fingerprint) or older.get(cache.fingerprint)
        if seconds is None:
            return None
        total += seconds
    return total


def _of_older_versions(path: Path) -> dict[str, float]:
    """Read what an older featx kept in the folder of results."""
    try:
        values = read_older_too(_KIND, path)
        return {str(k): float(v) for k, v in values.get("seconds", values).items()}
    except (OSError, ValueError, TypeError, AttributeError, RecordError):
        return {}
