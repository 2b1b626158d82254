"""Networks trained end to end, on the same draws and test images as the heads.

In: a `TrainPlan`, the options of ``featx train``. Out: a `TrainResult` for each draw, with a row
in the results, curves and, if wanted, the network as a file that is a backbone.
The way: plan, question (network, images, draws, identity), search, classifier (the epochs),
result. The room must not know heads, caches of features or commands.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from featx.train.plan import TrainPlan

if TYPE_CHECKING:
    from featx.train.result import TrainResult
    from featx.train.run import run_train

_HOME = {"TrainResult": "result", "run_train": "run"}  # these import torch

__all__ = ["TrainPlan", "TrainResult", "run_train"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'featx.train' has no attribute {name!r}")
    return getattr(importlib.import_module(f"featx.train.{_HOME[name]}"), name)
