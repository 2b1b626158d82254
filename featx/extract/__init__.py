"""From a source and a backbone to a finished cache file."""

from __future__ import annotations

from featx.extract.record import make_spec
from featx.extract.run import ExtractReport, extract
from featx.extract.settings import Sample, Settings, cache_path, take_sample

__all__ = [
    "ExtractReport",
    "Sample",
    "Settings",
    "cache_path",
    "extract",
    "make_spec",
    "take_sample",
]
