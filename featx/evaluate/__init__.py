"""Comparing heads on cached features, honestly: draws, fits, scores and tables.

In: finished caches and `Settings`. Out: a `FitResult` for each head, size of subset and draw, kept
in a folder of results; tables, comparisons with intervals. The way: `pairing` finds the caches of a
`pair`; `question` has its test rows, `leaks` (`near` finds those that are not equal) and draws;
`run` fits and `scores`; `results_folder` keeps each `result`; `table`, and `comparison` by the
words of `systems`, read them, with `intervals`. It must not know pixels, networks or commands.
"""

from __future__ import annotations

from featx.evaluate.comparison import compare, format_comparison
from featx.evaluate.leaks import Leaks, find_leaks
from featx.evaluate.pair import CacheLike, Pair, add_groups, choose_classes
from featx.evaluate.pairing import CacheChoice, cross_pairs, pair_caches
from featx.evaluate.result import COLUMNS, FitResult
from featx.evaluate.results_folder import ResultsFolder, read_results
from featx.evaluate.run import evaluate, run_fit
from featx.evaluate.settings import Settings
from featx.evaluate.table import format_table, summarise

__all__ = [
    "COLUMNS",
    "CacheChoice",
    "CacheLike",
    "FitResult",
    "Leaks",
    "Pair",
    "ResultsFolder",
    "Settings",
    "add_groups",
    "choose_classes",
    "compare",
    "cross_pairs",
    "evaluate",
    "find_leaks",
    "format_comparison",
    "format_table",
    "pair_caches",
    "read_results",
    "run_fit",
    "summarise",
]
