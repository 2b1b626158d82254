"""Runtimes: what computes a forward pass. PyTorch as it is, compiled, or OpenVINO."""

from __future__ import annotations

from featx.engines.runtimes.base import Resize, Result, Runtime
from featx.engines.runtimes.choice import open_runtime, resolve_runtime

__all__ = ["Resize", "Result", "Runtime", "open_runtime", "resolve_runtime"]
