"""Rows that are there already: the others are computed with the same batch size, or it is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from featx.backbones import BackboneGroup
from featx.engines import Engine
from featx.errors import CacheError
from featx.progress import Reporter
from featx.store import Cache, CacheSpec, find_begun

__all__ = ["go_on"]

_EARLIER = "earlier_batch_sizes"


def go_on(
    engine: Engine,
    group: BackboneGroup,
    targets: Sequence[Path],
    specs: Sequence[CacheSpec],
    reused: Sequence[Path | None],
    *,
    reporter: Reporter,
) -> tuple[Engine, list[CacheSpec]]:
    """Take up the batch size of the rows that a run resumes or reuses, and record any other.

    Features of one image differ in their last digits between batch sizes: the kernels for
    matrix products and convolutions depend on the shape.
    """
    known = [
        _batch_sizes(target, spec, reuse)
        for target, spec, reuse in zip(targets, specs, reused, strict=True)
    ]
    latest = [sizes[0] for sizes in known if sizes]
    if latest:
        engine = engine.going_on_with(group, latest[0])
    if others := sorted({*latest} - {engine.batch_size}):
        reporter.say(
            f"some rows are there already, computed with batch size {', '.join(map(str, others))}; "
            f"the rest is computed with {engine.batch_size}: the last digits of features depend on "
            f"it. To go on as before, give  --batch-size {others[0]}"
        )
    recorded = []
    for spec, sizes in zip(specs, known, strict=True):
        earlier = sorted({*sizes} - {engine.batch_size})
        record = engine.describe() | ({_EARLIER: earlier} if earlier else {})
        recorded.append(replace(spec, meta={**spec.meta, "engine": record}))
    return engine, recorded


def _batch_sizes(target: Path, spec: CacheSpec, reuse: Path | None) -> list[int]:
    """Give the batch sizes of the rows that are there, the last one first."""
    meta = find_begun(target, spec)
    if meta is None and reuse is not None:
        try:
            with Cache.open(reuse) as cache:
                meta = cache.meta
        except CacheError:  # missing, or damaged: its record is not believed
            return []
    record = (meta or {}).get("engine")
    if not isinstance(record, Mapping):
        return []
    earlier = record.get(_EARLIER)
    found = [record.get("batch_size"), *(earlier if isinstance(earlier, list) else [])]
    return [n for n in found if isinstance(n, int) and n > 0]
