"""How long extractions took: a small file beside the caches, read by whoever shows costs."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from featx.atomic import replace_text

__all__ = ["note_seconds", "seconds_of"]

_NAME = ".seconds.json"


def note_seconds(cache: Path, fingerprint: str, seconds: float) -> None:
    """Remember how long a whole extraction took, by the fingerprint of its features."""
    path = cache.parent / _NAME
    with suppress(OSError):  # the cache is there: its time is not worth an error
        replace_text(path, json.dumps(_read(path) | {fingerprint: round(seconds, 3)}, indent=0))


def seconds_of(cache: Path, fingerprint: str) -> float | None:
    """Give the seconds that the extraction of a cache took; None where nobody knows."""
    return _read(cache.parent / _NAME).get(fingerprint)


def _read(path: Path) -> dict[str, float]:
    try:
        return {str(k): float(v) for k, v in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}  # damaged, or not there: times are only shown
