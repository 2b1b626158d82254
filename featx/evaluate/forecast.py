"""How long the fits of a question take, said before they begin where that is more than a minute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from featx.evaluate.question import Subset, union_of
from featx.evaluate.settings import Settings
from featx.heads import Pool, RowSpace, find_head
from featx.heads.device import CPU, device_for
from featx.heads.linear import LinearHead, LinearWork, gram_seconds
from featx.heads.scaling import Scaling, n_components_of
from featx.text import count_of, time_text

__all__ = ["foretell"]

_LONG_SECONDS = 60.0
# Fewer operations than this take no minute anywhere, and are not timed.
_FEW_FLOPS = 1e10

Task = tuple[Subset, str]


def foretell(
    pool: Pool, groups: Sequence[Sequence[Task]], n_classes: int, settings: Settings
) -> str | None:
    """Say how long groups of fits take on this machine; None for less than a minute.

    `pool` holds rows of one group, of which some are timed; those of the others are like them.
    """
    tasks = [(subset, find_head(name, settings.allow_code)) for g in groups for subset, name in g]
    counted = [(subset, head) for subset, head in tasks if isinstance(head, LinearHead)]
    n_rows = max((len(subset.rows) for subset, _ in counted), default=0)
    is_known = device_for(pool.device, n_rows) == CPU and n_components_of(settings.scale) is None
    if not counted or not is_known or settings.scale == "whiten":
        return None
    works = [
        LinearWork(
            head, _rows(pool, len(subset.rows), settings), n_classes, _folds(subset, settings)
        )
        for subset, head in counted
    ]
    grams = _grams(groups, works, settings)
    if sum(work.flops for work in works) + sum(n * n for n in grams) * pool.shape[1] < _FEW_FLOPS:
        return None
    of_grams = sum(gram_seconds(_rows(pool, n, settings)) for n in grams)
    seconds = of_grams + _seconds(works)
    if seconds < _LONG_SECONDS:
        return None
    n_fits = sum(
        max(1, work.n_folds) * (len(work.head.grid) if work.n_folds else 1) for work in works
    )
    rows = f"on up to {n_rows:,} rows"
    text = f"{time_text(seconds)}: {count_of(n_fits, 'fit')} "
    if settings.C is None:
        given = of_grams + _seconds([replace(work, n_folds=0) for work in works])
        text += f"of a penalty {rows}; with a given one (--C VALUE) {time_text(given)}"
    else:
        text += f"with the given penalty {rows}"
    others = dict.fromkeys(head.name for _, head in tasks if not isinstance(head, LinearHead))
    return f"{text}; not counted: {', '.join(others)}" if others else text


def _folds(subset: Subset, settings: Settings) -> int:
    """Folds of a search; 0 where there is none."""
    n_images = settings.folds if isinstance(subset.per_class, str) else subset.per_class
    n_folds = min(settings.folds, n_images)
    return n_folds if settings.C is None and n_folds > 1 else 0


def _rows(pool: Pool, n: int, settings: Settings) -> RowSpace:
    """Rows of the pool, as many as that; again from the first on, should it have fewer."""
    return RowSpace(pool, np.arange(n) % pool.shape[0], Scaling(settings.scale))


def _grams(
    groups: Sequence[Sequence[Task]], works: Sequence[LinearWork], settings: Settings
) -> list[int]:
    """Rows of every Gram matrix: one a group, or one a fold and fit where folds scale the rows."""
    dual = [work for work in works if work.is_dual]
    if not Scaling(settings.scale).is_of_rows:
        return [work.space.n_rows for work in dual for _ in range(work.n_folds + 1)]
    of_groups = (union_of([subset for subset, _ in group]) for group in groups if group)
    return [len(rows) for rows in of_groups] if dual else []


def _seconds(works: Sequence[LinearWork]) -> float:
    """Time for all, of which those that are alike are timed once."""
    alike = Counter((work.head.name, work.space.n_rows, work.n_folds) for work in works)
    first = {(work.head.name, work.space.n_rows, work.n_folds): work for work in works}
    return sum(n * first[key].seconds() for key, n in alike.items())
