"""Networks trained end to end, on the same draws and test images as the heads."""

from __future__ import annotations

from featx.train.plan import TrainPlan

__all__ = ["TrainPlan"]
