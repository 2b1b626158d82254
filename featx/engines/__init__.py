"""Engines: where and how the network is run over a source.

In: a backbone (or several feature points of one), a source, a device, a precision, a runtime. Out:
batches of features of fixed ranges of rows, with the status of each image. The way: `machine`
chooses, `loader` decodes in processes of its own into `shared` places, `local` runs batches
on one device, `several` on several. The room must not know cache files, labels or heads.
"""

from __future__ import annotations

from featx.engines.base import Engine, FeatureBatch
from featx.engines.local import LocalEngine
from featx.engines.machine import (
    n_cores,
    resolve_device,
    resolve_devices,
    resolve_precision,
)
from featx.engines.runtimes import resolve_runtime
from featx.engines.several import SeveralDevices, open_engine

__all__ = [
    "Engine",
    "FeatureBatch",
    "LocalEngine",
    "SeveralDevices",
    "n_cores",
    "open_engine",
    "resolve_device",
    "resolve_devices",
    "resolve_precision",
    "resolve_runtime",
]
