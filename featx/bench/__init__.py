"""How fast this machine extracts, against how fast it could: ``featx bench``."""

from __future__ import annotations

from featx.bench.pictures import make_pictures
from featx.bench.run import BenchRow, bench
from featx.bench.table import advise, to_table

__all__ = ["BenchRow", "advise", "bench", "make_pictures", "to_table"]
