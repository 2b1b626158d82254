"""How fast this machine extracts, against how fast it could: ``featx bench``.

In: a plan of an extraction. Out: a row of rates for each backbone: decoding, the bare network and
the disk alone, all of it together, and what holds it back. Nothing is kept. The room must not know
heads or results.
"""

from __future__ import annotations

from featx.bench.pictures import make_pictures
from featx.bench.run import BenchRow, bench
from featx.bench.table import advise, to_table

__all__ = ["BenchRow", "advise", "bench", "make_pictures", "to_table"]
