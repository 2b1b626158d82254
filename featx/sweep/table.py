"""The rows of a sweep as tables: one row a fit, and one row a system."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from featx.evaluate import summarise
from featx.sweep.run import SweepRow

__all__ = ["to_frame", "to_table"]

_SYSTEM = ("backbone", "layer", "pool", "preprocess", "input_size", "is_native", "n_features")
_FROM_SUMMARY = (
    *("head", "per class", "repeats", "accuracy", "draws low", "draws high"),
    *("test low", "test high", "test images", "seconds"),
)


def to_frame(rows: Sequence[SweepRow]) -> pd.DataFrame:
    """Give one row for each fit, with everything that was varied."""
    lines = []
    for row in rows:
        own = {name: getattr(row, name) for name in _SYSTEM}
        own |= {"images_per_second": row.images_per_second, "problem": row.problem}
        lines += [fit.row() | own for fit in row.fits] or [own]
    return pd.DataFrame(lines)


def to_table(rows: Sequence[SweepRow], varied: Sequence[str]) -> pd.DataFrame:
    """Give one row for each system, head and size of subset."""
    lines = []
    for row in rows:
        own: dict[str, object] = {"backbone": row.backbone}
        own |= {_title(name): _value(row, name) for name in varied}
        own |= {"dim": row.n_features, "images/s": row.images_per_second}
        for _, line in summarise(row.fits).iterrows():
            lines.append(own | {name: line[name] for name in _FROM_SUMMARY})
    table = pd.DataFrame(lines)
    table.attrs["notes"] = [
        f"not run: {row.backbone} {' '.join(str(_value(row, name)) for name in varied)}: "
        f"{row.problem}"
        for row in rows
        if row.problem
    ]
    return table


def _title(name: str) -> str:
    return {"input_size": "input"}.get(name, name)


def _value(row: SweepRow, name: str) -> object:
    if name == "input_size":
        return f"native {row.input_size or ''}".strip() if row.is_native else str(row.input_size)
    return getattr(row, name)
