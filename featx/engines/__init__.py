"""Engines: where and how the network is run over a source."""

from __future__ import annotations

from featx.engines.base import Engine, FeatureBatch
from featx.engines.local import PRECISIONS, LocalEngine, resolve_device, resolve_precision

__all__ = [
    "PRECISIONS",
    "Engine",
    "FeatureBatch",
    "LocalEngine",
    "resolve_device",
    "resolve_precision",
]
