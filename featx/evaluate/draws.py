"""The subsets of all draws, and which of them share one read and one Gram matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from featx.evaluate.pairs import CacheLike
from featx.evaluate.settings import ALL, Settings
from featx.fewshot import draw_subset, subset_hash

__all__ = ["Subset", "draw_all", "share_reads"]


@dataclass(frozen=True)
class Subset:
    """Rows of one draw.

    Parameters
    ----------
    per_class : int or "all"
        Images of each class.
    repeat : int
        Number of the draw, from 0.
    seed : int
        Seed of the draw.
    rows : ndarray of int64
        Rows of the train cache, ascending.
    """

    per_class: int | str
    repeat: int
    seed: int
    rows: NDArray[np.int64]

    @cached_property
    def sha256(self) -> str:
        """Hash of the rows."""
        return subset_hash(self.rows)


def draw_all(
    cache: CacheLike, drawable: NDArray[np.bool_], settings: Settings
) -> tuple[list[Subset], list[str]]:
    """Draw every subset; equal subsets of one size are kept once.

    Parameters
    ----------
    cache : CacheLike
        To be fitted on.
    drawable : ndarray of bool, shape (N,)
        Rows that may be drawn.
    settings : Settings
        Sizes, repeats and seed.

    Returns
    -------
    subsets : list of Subset
        By draw, then by size.
    notices : list of str
        One line for each size whose draws are not all different.
    """
    subsets: list[Subset] = []
    seen: dict[tuple[int | str, str], int] = {}
    for repeat in range(settings.repeats):
        for per_class in settings.per_class:
            k = None if per_class == ALL else int(per_class)
            seed = settings.seed + repeat
            rows = draw_subset(cache.y, k, seed=seed, valid=drawable, class_names=cache.class_names)
            subset = Subset(per_class, repeat, seed, rows)
            key = (per_class, subset.sha256)
            seen[key] = seen.get(key, 0) + 1
            if seen[key] == 1:
                subsets.append(subset)
    notices = [
        f"{k} per class is all there is: {n} draws would be the same one, which is fitted once"
        for (k, _), n in seen.items()
        if n > 1 and k != ALL
    ]
    return subsets, notices


def share_reads(subsets: list[Subset]) -> list[list[Subset]]:
    """Group subsets whose rows are read, and multiplied, together.

    The Gram matrix of n rows costs n^2. One of the union of all draws serves them all; where the
    draws hardly overlap, one for each draw is cheaper and smaller.

    Parameters
    ----------
    subsets : list of Subset
        All draws.

    Returns
    -------
    list of list of Subset
        Each subset is in one group.
    """
    by_draw: dict[int, list[Subset]] = {}
    for subset in subsets:
        by_draw.setdefault(subset.repeat, []).append(subset)
    apart = sum(len(union_of(group)) ** 2 for group in by_draw.values())
    together = len(union_of(subsets)) ** 2
    return [subsets] if together <= apart else list(by_draw.values())


def union_of(subsets: list[Subset]) -> NDArray[np.int64]:
    """Rows of any of the subsets, ascending."""
    return np.unique(np.concatenate([subset.rows for subset in subsets]))
