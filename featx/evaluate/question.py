"""What is asked of one pair of caches: all that is known before features are read for a fit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.evaluate.base import BaseQuestion
from featx.evaluate.draws import Subset
from featx.evaluate.leak_memory import leaks_key, recall_leaks, record_leaks
from featx.evaluate.leaks import Leaks, find_leaks
from featx.evaluate.output import ResultsFolder
from featx.evaluate.pairs import Pair
from featx.evaluate.records import RecordError, made
from featx.evaluate.result import FitResult
from featx.evaluate.settings import NEAR_OFF, Settings
from featx.evaluate.views import ClassView
from featx.fewshot import DRAWS_VERSION
from featx.fingerprint import fingerprint
from featx.heads import find_head
from featx.heads.foreign import ForeignHead
from featx.heads.select import has_lone_classes
from featx.progress import Reporter
from featx.store import seconds_of
from featx.words import ALL

__all__ = ["Question"]

_VERSION = 2
"""Part of every fit's name; to be raised when the same question gets another answer."""

_CHECKED = "features_checked"
_FROM_META = ("backbone", "layer", "pool", "input_size", "precision")


class Question(BaseQuestion):
    """One pair of caches, its subsets and its test rows."""

    def __init__(
        self,
        pair: Pair,
        settings: Settings,
        reporter: Reporter,
        on_leaks: Callable[[Leaks], object] | None = None,
        known: ResultsFolder | None = None,
    ) -> None:
        self._on_leaks, self._known = on_leaks, known
        self._new_leaks: str | None = None
        self._codes: dict[str, dict[str, Any]] = {}
        super().__init__(pair, settings, reporter)
        # Not before: what is refused because of leaks leaves nothing behind.
        if known is not None and self._new_leaks is not None:
            known.add_leaks(self._new_leaks, record_leaks(self.leaks))

    def _find_leaks(self, drawable: NDArray[np.bool_]) -> Leaks:
        """Search, unless an earlier run did."""
        pair, known = self.pair, self._known
        key = leaks_key(pair, drawable, self.test_rows, self.settings)
        leaks = self._recalled(None if known is None else known.find_leaks(key))
        if leaks is None:
            leaks, self._new_leaks = find_leaks(pair, drawable, self.test_rows, self.settings), key
        if self._on_leaks is not None:
            self._on_leaks(leaks)
        if self.settings.near == NEAR_OFF:
            self._tell(["near twins are not looked for (--near off)"])
        return leaks

    def _recalled(self, stored: dict[str, Any] | None) -> Leaks | None:
        try:
            if stored is None:
                return None
            return made("leaks", partial(recall_leaks, pair=self.pair), stored)
        except RecordError as error:
            self.reporter.warn(f"{self.pair.name}: what was kept of leaks is not used: {error}")
            return None

    def fit_id(self, head: str, subset: Subset) -> str:
        """Name what is fitted, on what, and how: 16 hexadecimal digits."""
        # The number of a draw, which was part of the name at first, is no part of the question:
        # seed and rows say which draw it is. With 0 for all, fits of that time go on answering.
        draw = {"repeat": 0, "seed": subset.seed, "rows": subset.sha256}
        return fingerprint(self._identity(head, subset) | self._search(subset) | draw)[:16]

    def question_id(self, head: str, subset: Subset) -> str:
        """Name what all draws of one size have in common: 16 hexadecimal digits."""
        return fingerprint(self._identity(head, subset))[:16]

    def _identity(self, head: str, subset: Subset) -> dict[str, Any]:
        identity = {
            "version": _VERSION,
            "train": self.pair.train.fingerprint,
            "test": self.pair.test.fingerprint,
            "test_rows": self.test_rows.tolist(),
            "head": head,
            "per_class": str(subset.per_class),
            "C": self.settings.C,
            "folds": self.settings.folds,
            "scale": self.settings.scale,
            "class_weight": self.settings.class_weight,
        }
        if subset.per_class != ALL:
            identity["draws"] = DRAWS_VERSION
        return identity | self._choices() | self._code(head)

    def _search(self, subset: Subset) -> dict[str, int]:
        """Version of the search, where it is not the first: a lone class turned that off."""
        codes = np.asarray(self.pair.train.y)[subset.rows]
        groups = None if self.pair.groups is None else self.pair.groups.train[subset.rows]
        return {"search": 2} if has_lone_classes(codes, groups) else {}

    def _code(self, head: str) -> dict[str, Any]:
        """Say which code a head is: a digest of the user's own, once for all fits, or a version."""
        if head not in self._codes:
            found = find_head(head, self.settings.allow_code)
            version = getattr(found, "version", 1)
            self._codes[head] = {"head_version": version} if version > 1 else {}
            if isinstance(found, ForeignHead) and (digest := found.code_sha256):
                self._codes[head] = {"code": digest}
        return self._codes[head]

    def answer(self, head: str, subset: Subset, known: ResultsFolder) -> FitResult | None:
        """Find a fit that was made before."""
        told = _told(self._leaks(subset))
        images = self._images(subset)
        # A fit is named by row numbers; where data came in another order, these are other images.
        found = (
            result
            for result in known.find(self.fit_id(head, subset))
            if self._is_sound(result)
            and _told(result.detail.get("leaks")) == told
            and all(result.detail.get(name) in (None, images[name]) for name in images)
        )
        asked = ((result, self.as_asked(result, head, subset)) for result in found)
        # Kept under these names before others: the same images may lie in two folders.
        best = sorted(asked, key=lambda both: both[0].key != both[1].key)
        return best[0][1] if best else None

    def names(self) -> dict[str, Any]:
        """Give the columns that the caches name."""
        meta = self.pair.train.meta
        label = str(meta.get("weights", {}).get("label", ""))
        return {"data": self.pair.data_name, "weights": label} | {k: meta[k] for k in _FROM_META}

    def _is_sound(self, result: FitResult) -> bool:
        """Whether a fit is not of features that were damaged."""
        # A fit of an older featx, which did not compare features with their digests, is not
        # believed if a cache was written after it: what was there before may have been damaged.
        # That today's file is not, the search for leaks has seen, which reads all of it.
        written = (str(c.meta.get("created", "")) for c in (self.pair.train, self.pair.test))
        return bool(result.detail.get(_CHECKED)) or max(written) <= result.created

    def _choices(self) -> dict[str, Any]:
        """Classes and groups, where any were chosen."""
        parts = {"train": self.pair.train, "test": self.pair.test}
        views = {part: c.record() for part, c in parts.items() if isinstance(c, ClassView)}
        groups = {"groups": self.pair.groups.record()} if self.pair.groups else {}
        return ({"classes": views} if views else {}) | groups

    def record(self, subset: Subset) -> dict[str, Any]:
        """Give what a fit's JSON keeps of the question; see `BaseQuestion.record`."""
        return super().record(subset) | self._choices() | {_CHECKED: True}

    def asked(self, head: str, subset: Subset) -> dict[str, Any]:
        """Give what a fit's JSON keeps of how it was asked; see `BaseQuestion.asked`."""
        caches = {"train_cache": str(self.pair.train.path), "test_cache": str(self.pair.test.path)}
        return super().asked(head, subset) | caches | self._cost

    @cached_property
    def _cost(self) -> dict[str, float]:
        """Seconds that the extraction of both caches took, where that is known."""
        caches = {cache.fingerprint: cache.path for cache in (self.pair.train, self.pair.test)}
        seconds = [seconds_of(Path(path), name) for name, path in caches.items()]
        known = [value for value in seconds if value is not None]
        return {"extract_seconds": sum(known)} if len(known) == len(seconds) else {}


def _told(leaks: Any) -> dict[str, Any]:
    """Leave out, where there are no leaks, what was to be done about them and how near is near."""
    if not isinstance(leaks, dict):
        return {}
    near = leaks.get("near")
    # The rule that featx chose comes out otherwise where another version measures distances.
    usual = {"near": "usual"} if isinstance(near, dict) and near.get("is_default") else {}
    found = bool(leaks.get("n_pairs"))
    kept = {key: value for key, value in leaks.items() if found or key != "on_leak"}
    return kept if found else kept | usual
