"""From a source and a backbone to a finished cache file.

In: a `Plan`, the options of ``featx extract``. Out: cache files, and an `ExtractReport` for each.
The way: `known` answers what is complete without torch; `job` opens data, network and engine; `run`
opens writers and records how each file was made; `fill` writes batch by batch. `shards` does so
for a range of rows at a time, `on_ray` by the workers of a cluster. The room must not
know heads, results or commands.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featx.extract.estimate import estimate_plan, images_per_second
    from featx.extract.forecast import Scale, forecast_plan
    from featx.extract.job import Job, prepare, run_plan
    from featx.extract.on_ray import Cluster, run_on_ray
    from featx.extract.plan import NATIVE, Plan, Share
    from featx.extract.report import ExtractReport
    from featx.extract.run import extract, extract_many, make_spec
    from featx.extract.settings import Sample, Settings, cache_path, take_sample
    from featx.extract.shards import Shard, ShardJob, run_shards
    from featx.extract.times import StageTimes

_HOME = {
    "NATIVE": "plan",
    "Cluster": "on_ray",
    "ExtractReport": "report",
    "Job": "job",
    "Plan": "plan",
    "Sample": "settings",
    "Scale": "forecast",
    "Settings": "settings",
    "Shard": "shards",
    "ShardJob": "shards",
    "Share": "plan",
    "StageTimes": "times",
    "cache_path": "settings",
    "estimate_plan": "estimate",
    "extract": "run",
    "extract_many": "run",
    "forecast_plan": "forecast",
    "images_per_second": "estimate",
    "make_spec": "run",
    "prepare": "job",
    "run_on_ray": "on_ray",
    "run_plan": "job",
    "run_shards": "shards",
    "take_sample": "settings",
}

__all__ = [
    "NATIVE",
    "Cluster",
    "ExtractReport",
    "Job",
    "Plan",
    "Sample",
    "Scale",
    "Settings",
    "Shard",
    "ShardJob",
    "Share",
    "StageTimes",
    "cache_path",
    "estimate_plan",
    "extract",
    "extract_many",
    "forecast_plan",
    "images_per_second",
    "make_spec",
    "prepare",
    "run_on_ray",
    "run_plan",
    "run_shards",
    "take_sample",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'featx.extract' has no attribute {name!r}")
    return getattr(importlib.import_module(f"featx.extract.{_HOME[name]}"), name)
