"""From a source and a backbone to a finished cache file."""

from __future__ import annotations

from featx.extract.plan import Plan, run_plan
from featx.extract.record import make_spec
from featx.extract.run import ExtractReport, extract, extract_many
from featx.extract.settings import Sample, Settings, cache_path, take_sample

__all__ = [
    "ExtractReport",
    "Plan",
    "Sample",
    "Settings",
    "cache_path",
    "extract",
    "extract_many",
    "make_spec",
    "run_plan",
    "take_sample",
]
