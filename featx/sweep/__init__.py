"""One choice varied, all else equal: input size, layer, pooling or preprocessing.

In: a plan of an extraction, the axes that vary, settings of fits. Out: a `SweepRow` for each
system, with its fits and its rate, a table and a picture. Each system is an ordinary cache file,
each fit an ordinary result. The room must not know commands.
"""

from __future__ import annotations

from featx.sweep.run import Axes, SweepRow, sweep, to_frame, to_table

__all__ = ["Axes", "SweepRow", "sweep", "to_frame", "to_table"]
