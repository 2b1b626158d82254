"""How long extractions took, kept for later runs that find their caches complete."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featx.atomic import replace_text
from featx.evaluate.records import RecordError, read_older_too, record_text
from featx.extract import ExtractReport
from featx.store import Cache

__all__ = ["Times"]

_KIND = "seconds of extractions"


class Times:
    """Seconds of extractions, by the fingerprint of the features."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "extraction-seconds.json"

    def of(self, reports: Sequence[ExtractReport]) -> float | None:
        """Remember what was computed whole, and give the time of all of it."""
        known = self._read()
        total: float | None = 0.0
        for report in reports:
            with Cache.open(report.path) as cache:
                name = cache.fingerprint
            if report.n_computed == report.n_images:
                known[name] = report.seconds
            total = None if total is None or name not in known else total + known[name]
        self._write(known)
        return total

    def _read(self) -> dict[str, float]:
        try:
            values = read_older_too(_KIND, self.path)
            return {str(k): float(v) for k, v in values.get("seconds", values).items()}
        except (OSError, ValueError, TypeError, AttributeError, RecordError):
            return {}

    def _write(self, known: dict[str, float]) -> None:
        replace_text(self.path, record_text(_KIND, {"seconds": known}))
