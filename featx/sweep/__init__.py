"""One choice varied, all else equal: input size, layer, pooling or preprocessing."""

from __future__ import annotations

from featx.sweep.axes import Axes
from featx.sweep.run import SweepRow, sweep
from featx.sweep.table import to_frame, to_table

__all__ = ["Axes", "SweepRow", "sweep", "to_frame", "to_table"]
