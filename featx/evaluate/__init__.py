"""Comparing heads on cached features, honestly: draws, fits, scores and tables."""

from __future__ import annotations

from featx.evaluate.output import ResultsFolder, read_results
from featx.evaluate.pairs import CacheLike, Pair, pair_caches
from featx.evaluate.result import COLUMNS, FitResult
from featx.evaluate.run import evaluate
from featx.evaluate.settings import ALL, Settings
from featx.evaluate.table import format_table, summarise

__all__ = [
    "ALL",
    "COLUMNS",
    "CacheLike",
    "FitResult",
    "Pair",
    "ResultsFolder",
    "Settings",
    "evaluate",
    "format_table",
    "pair_caches",
    "read_results",
    "summarise",
]
