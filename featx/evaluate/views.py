"""Caches with other classes than they were made with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.errors import UsageError
from featx.evaluate.pairs import CacheLike, Pair
from featx.fingerprint import fingerprint
from featx.heads.base import Rows
from featx.sources.select import ClassChoice

__all__ = ["ClassView", "choose_classes", "count_unusable"]

_LONGEST = 40


@dataclass(frozen=True, eq=False)
class ClassView:
    """A cache whose classes were renamed or left out; the rows stay where they are."""

    base: CacheLike
    choice: ClassChoice

    def __post_init__(self) -> None:
        _ = self._chosen  # now, not in the middle of a fit

    @cached_property
    def _chosen(self) -> tuple[NDArray[np.int64], list[str]]:
        return self.choice.apply(np.asarray(self.base.y), self.base.class_names)

    @property
    def y(self) -> NDArray[np.int64]:
        """New labels, (N,), -1 where unknown or left out."""
        return self._chosen[0]

    @property
    def class_names(self) -> list[str]:
        """Classes that stay, by their new labels."""
        return self._chosen[1]

    @property
    def X(self) -> Rows:  # noqa: N802
        """Features, (N, D)."""
        return self.base.X

    @property
    def status(self) -> NDArray[np.uint8]:
        """1 where the row can be used, (N,)."""
        return self.base.status

    @property
    def paths(self) -> Sequence[str]:
        """One path an image."""
        return self.base.paths

    @property
    def image_digests(self) -> NDArray[np.uint8]:
        """SHA-256 of each image's bytes, (N, 32)."""
        return self.base.image_digests

    @property
    def meta(self) -> dict[str, Any]:
        """What was recorded at extraction."""
        return self.base.meta

    @property
    def fingerprint(self) -> str:
        """That of the cache: the features are the same."""
        return self.base.fingerprint

    @property
    def path(self) -> Path:
        """The file."""
        return self.base.path

    @property
    def left_out(self) -> list[str]:
        """Classes of the cache that have no place here, by their old names."""
        kept = set(self.class_names)
        renamed = self.choice.rename
        return [name for name in self.base.class_names if renamed.get(name, name) not in kept]

    def record(self) -> dict[str, Any]:
        """Give the classes as plain values, for a fit's JSON and its name."""
        return {
            "class_names": list(self.class_names),
            "left_out": self.left_out,
            "renamed": dict(self.choice.rename),
        }


def choose_classes(pair: Pair, choice: ClassChoice) -> Pair:
    """Fit and test on some classes only."""
    if choice.is_everything:
        return pair
    try:
        train = ClassView(pair.train, choice)
    except UsageError as error:
        raise UsageError(f"{pair.data_name}: {error}") from error
    test = train if pair.test is pair.train else ClassView(pair.test, choice)
    n, total = len(train.class_names), len(pair.train.class_names)
    left_out = f", left out: {', '.join(train.left_out)}" if train.left_out else ""
    notice = f"{n} classes of {total}{left_out}" + _renamed(choice)
    return replace(
        pair,
        train=train,
        test=test,
        data=f"{pair.data_name} {describe(choice)}",
        notices=(*pair.notices, notice),
    )


def describe(choice: ClassChoice) -> str:
    """Give a choice a name that no other choice has, readable where it is short."""
    words = [f"{old}={new}" for old, new in choice.rename.items()]
    words += [f"+{name}" for name in choice.keep] + [f"-{name}" for name in choice.drop]
    text = " ".join(words)
    record = {"keep": choice.keep, "drop": choice.drop, "rename": dict(choice.rename)}
    return text if len(text) <= _LONGEST else f"[classes {fingerprint(record)[:6]}]"


def _renamed(choice: ClassChoice) -> str:
    words = [f"{old} as {new}" for old, new in choice.rename.items()]
    return f", {', '.join(words)}" if words else ""


def count_unusable(cache: CacheLike) -> int:
    """Rows without features or without a known label; classes left out by choice do not count."""
    base = cache.base if isinstance(cache, ClassView) else cache
    return int(((np.asarray(base.status) != 1) | (np.asarray(base.y) < 0)).sum())
