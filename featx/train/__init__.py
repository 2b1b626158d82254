"""Networks trained end to end, on the same draws and test images as the heads."""

from __future__ import annotations

from featx.train.plan import TrainPlan
from featx.train.result import TrainResult
from featx.train.run import run_train

__all__ = ["TrainPlan", "TrainResult", "run_train"]
