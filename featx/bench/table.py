"""Measurements as a table, and what they mean."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from featx.bench.run import BenchRow

__all__ = ["advise", "to_table"]

_GOOD = 0.95


def to_table(rows: Sequence[BenchRow]) -> pd.DataFrame:
    """Lay out measurements."""
    return pd.DataFrame(
        {
            "backbone": [row.backbone for row in rows],
            "input": [row.input_px for row in rows],
            "precision": [row.precision for row in rows],
            "runtime": [row.runtime for row in rows],
            "batch": [row.batch_size for row in rows],
            "decode": [f"{row.decode:,.1f}" for row in rows],
            "forward": [f"{row.forward:,.1f}" for row in rows],
            "write": [f"{row.write:,.1f}" for row in rows],
            "extract": [f"{row.together:,.1f}" for row in rows],
            "of ceiling": [f"{row.of_ceiling:.2f}" for row in rows],
            "of forward": [f"{row.ratio:.2f}" for row in rows],
            "of matmul": [f"{row.of_peak:.2f}" for row in rows],
        }
    )


def advise(row: BenchRow) -> str:
    """Say what holds a measurement back."""
    name = f"{row.backbone} {row.precision} {row.runtime}"
    reached = row.flops * row.forward / 1e9
    arithmetic = (
        f"{row.flops / 1e9:.1f} GFLOP an image, {reached:,.0f} GFLOP/s of the "
        f"{row.peak / 1e9:,.0f} of a large matrix product"
    )
    if row.ceiling < row.forward:
        what = "decoding" if row.decode == row.ceiling else "the disk"
        limit = (
            f"{what} allows {row.ceiling:,.1f} images/s, less than the network; "
            f"{row.of_ceiling:.0%} of that is reached"
        )
    elif row.ratio >= _GOOD:
        limit = "the network is all that one waits for"
    else:
        limit = f"{1 - row.ratio:.0%} below the bare network, which shares the cores with the rest"
    return f"{name}: {limit}; busiest: {row.times.advice()}. {arithmetic}"
