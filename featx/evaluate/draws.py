"""The subsets of all draws, and which of them share one read and one Gram matrix."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from featx.errors import ProtocolError
from featx.evaluate.pairs import CacheLike
from featx.evaluate.settings import Settings
from featx.fewshot import draw_subsets, name_images, subset_hash
from featx.words import ALL

__all__ = ["Subset", "check_classes", "draw_all", "share_reads"]

_MOST_NAMED = 12


@dataclass(frozen=True)
class Subset:
    """Rows of one draw."""

    per_class: int | str
    repeat: int
    seed: int
    rows: NDArray[np.int64]

    @cached_property
    def sha256(self) -> str:
        """Hash of the rows."""
        return subset_hash(self.rows)


def check_classes(
    train: CacheLike, drawable: NDArray[np.bool_], test: CacheLike, test_rows: NDArray[np.int64]
) -> list[str]:
    """Compare the classes that can be fitted with those that are tested."""
    fitted = {train.class_names[label] for label in np.unique(np.asarray(train.y)[drawable])}
    tested = {test.class_names[label] for label in np.unique(np.asarray(test.y)[test_rows])}
    if lacking := [name for name in test.class_names if name in tested - fitted]:
        raise ProtocolError(
            f"{len(lacking)} of {len(tested)} tested classes have no usable training image, so "
            f"that every answer about them would be wrong: {_some(lacking)}. Add images, or leave "
            f"them out:  --drop {shlex.join(lacking)}"
        )
    idle = [name for name in train.class_names if name in fitted - tested]
    if not idle:
        return []
    return [
        f"{len(idle)} of {len(fitted)} classes have no test image and are never tested, the scores "
        f"are of the other {len(tested)}: {_some(idle)}"
    ]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def draw_all(
    cache: CacheLike, drawable: NDArray[np.bool_], settings: Settings
) -> tuple[list[Subset], list[str]]:
    """Draw every subset; equal subsets of one size are kept once."""
    sizes = [None if k == ALL else int(k) for k in settings.per_class]
    images = name_images(cache.image_digests, cache.paths)
    subsets: list[Subset] = []
    seen: dict[tuple[int | str, str], int] = {}
    for repeat in range(settings.repeats):
        seed = settings.seed + repeat
        drawn = draw_subsets(
            cache.y,
            sizes,
            seed=seed,
            valid=drawable,
            class_names=cache.class_names,
            images=images,
        )
        for per_class, rows in zip(settings.per_class, drawn, strict=True):
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
