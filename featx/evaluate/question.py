"""What is asked of one pair: test rows, leaks, subsets and names, before a fit reads features."""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.errors import ProtocolError
from featx.evaluate.leaks import (
    Leaks,
    find_leaks,
    leak_lines,
    leak_record,
    leaks_key,
    recall_leaks,
    record_leaks,
)
from featx.evaluate.pair import CacheLike, ClassView, Pair, count_unusable, images_sha256
from featx.evaluate.result import FitResult
from featx.evaluate.results_folder import ResultsFolder
from featx.evaluate.settings import NEAR_OFF, Settings
from featx.fewshot import DRAWS_VERSION, draw_subsets, name_images, subset_hash
from featx.fingerprint import fingerprint
from featx.heads import find_head
from featx.heads.foreign import ForeignHead
from featx.heads.select import has_lone_classes
from featx.progress import Reporter
from featx.records import RecordError, made
from featx.store import seconds_of
from featx.text import some_of
from featx.words import ALL

__all__ = ["BaseQuestion", "Question", "Subset", "draw_all", "share_reads", "union_of"]

_SHOWN = 3


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


def _check_classes(
    train: CacheLike, drawable: NDArray[np.bool_], test: CacheLike, test_rows: NDArray[np.int64]
) -> list[str]:
    """Compare the classes that can be fitted with those that are tested."""
    fitted = {train.class_names[label] for label in np.unique(np.asarray(train.y)[drawable])}
    tested = {test.class_names[label] for label in np.unique(np.asarray(test.y)[test_rows])}
    if lacking := [name for name in test.class_names if name in tested - fitted]:
        raise ProtocolError(
            f"{len(lacking)} of {len(tested)} tested classes have no usable training image, so "
            f"that every answer about them would be wrong: {some_of(lacking)}. Add images, or "
            f"leave them out:  --drop {shlex.join(lacking)}"
        )
    idle = [name for name in train.class_names if name in fitted - tested]
    if not idle:
        return []
    return [
        f"{len(idle)} of {len(fitted)} classes have no test image and are never tested, the scores "
        f"are of the other {len(tested)}: {some_of(idle)}"
    ]


def draw_all(
    cache: CacheLike, drawable: NDArray[np.bool_], settings: Settings
) -> tuple[list[Subset], list[str]]:
    """Draw every subset; equal subsets of one size are kept once."""
    sizes = [None if k == ALL else int(k) for k in settings.per_class]
    images = name_images(cache.image_digests, cache.paths)
    drawn: dict[tuple[int | str, str], list[Subset]] = {}
    for repeat in range(settings.repeats):
        seed = settings.seed + repeat
        each = draw_subsets(
            cache.y,
            sizes,
            seed=seed,
            valid=drawable,
            class_names=cache.class_names,
            images=images,
        )
        for per_class, rows in zip(settings.per_class, each, strict=True):
            subset = Subset(per_class, repeat, seed, rows)
            drawn.setdefault((per_class, subset.sha256), []).append(subset)
    notices = [
        f"{k} per class is all there is: {len(same)} draws would be the same one, which is "
        "fitted once"
        for (k, _), same in drawn.items()
        if len(same) > 1 and k != ALL
    ]
    return [same[0] for same in drawn.values()], notices


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


class BaseQuestion(ABC):
    """One pair, its subsets and its test rows."""

    def __init__(self, pair: Pair, settings: Settings, reporter: Reporter) -> None:
        self.pair, self.settings, self.reporter = pair, settings, reporter
        self.notices: list[str] = []
        drawable, self.test_rows = pair.split(settings.holdout, settings.holdout_seed)
        if not self.test_rows.size:
            raise ProtocolError(f"{pair.name}: no test image is labelled and usable")
        idle = _check_classes(pair.train, drawable, pair.test, self.test_rows)
        self._tell([*pair.notices, *self._unusable(), *idle])
        self.leaks = self._find_leaks(drawable)
        drawable = self._apply_leak_policy(drawable)
        _check_classes(pair.train, drawable, pair.test, self.test_rows)  # of what is left
        self.subsets, notices = draw_all(pair.train, drawable, settings)
        self._tell(notices)
        self.remarks = [*self._split_remarks(), *pair.notices, *idle]
        if found := self.leaks.summary:
            is_dropped = settings.on_leak == "drop"
            self.remarks.append(f"{found} (left out of training)" if is_dropped else found)
        self.truth = np.asarray(pair.test.y)[self.test_rows]

    @abstractmethod
    def names(self) -> dict[str, Any]:
        """Columns of the table that say what is fitted, in the words of today."""

    @abstractmethod
    def question_id(self, head: str, subset: Subset) -> str:
        """Name what all draws of one size have in common."""

    @abstractmethod
    def _find_leaks(self, drawable: NDArray[np.bool_]) -> Leaks:
        """Compare the rows that may be drawn with `test_rows`."""

    def _tell(self, notices: Iterable[str]) -> None:
        for notice in notices:
            self.notices.append(notice)
            self.reporter.warn(f"{self.pair.name}: {notice}")

    def _unusable(self) -> Iterator[str]:
        splits = [self.pair.train] if self.pair.is_holdout else [self.pair.train, self.pair.test]
        for split in splits:
            if left_out := count_unusable(split):
                yield f"{left_out} rows of {split.path} are unusable or unlabelled and left out"

    def _split_remarks(self) -> Iterator[str]:
        if self.pair.is_holdout:
            whole = "" if self.pair.groups is None else ", in whole groups,"
            share = f"{self.settings.holdout:.0%} of each class{whole} held out"
            yield f"no test split: {share} (seed {self.settings.holdout_seed})"
        elif self.pair.tested != "test":
            yield f"tested on the split {self.pair.tested}"

    def _apply_leak_policy(self, drawable: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Warn about leaks, refuse them, or leave them out: give what may still be drawn."""
        leaks, found, lines = self.leaks, self.leaks.summary, leak_lines(self.leaks)
        if found and self.settings.on_leak == "raise":
            error = ProtocolError(f"{self.pair.name}: {found}")
            for line in lines:
                error.add_note(line)
            raise error
        self._tell([found] if found else [])
        for line in lines:
            self.reporter.warn(f"  {line}")
        if not found or self.settings.on_leak != "drop":
            return drawable
        kept = drawable & ~np.isin(np.arange(len(drawable)), leaks.train_rows)
        self._require_enough(drawable, kept)
        self._tell([f"{len(leaks.train_rows):,} training images that leak are left out"])
        return kept

    def _require_enough(self, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> None:
        """Refuse to leave too few images of a class that had enough."""
        least = max([k for k in self.settings.per_class if isinstance(k, int)], default=1)
        labels, names = np.asarray(self.pair.train.y), self.pair.train.class_names
        n_before, n_after = (
            np.bincount(labels[kept], minlength=len(names)) for kept in (before, after)
        )
        short = np.flatnonzero((n_before >= least) & (n_after < least))
        if not short.size:
            return
        of_classes = [f"{n_after[i]:,} of {n_before[i]:,} images of {names[i]}" for i in short]
        more = f" and {len(short) - _SHOWN} more classes" * (len(short) > _SHOWN)
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in self.leaks.counts.items() if n)
        raise ProtocolError(
            f"{self.pair.name}: leaving out what leaks ({kinds}) would keep only "
            f"{', '.join(of_classes[:_SHOWN])}{more}, fewer than the {least} per class asked for: "
            "look at the pairs (--on-leak warn); if they are not the same image, --near 0.3 is "
            "stricter and --no-near compares files and features alone; if they are, fit fewer "
            "images per class"
        )

    @cached_property
    def _test_images(self) -> str:
        return images_sha256(self.pair.test, self.test_rows)

    def _images(self, subset: Subset) -> dict[str, str]:
        return {
            "train_images_sha256": images_sha256(self.pair.train, subset.rows),
            "test_images_sha256": self._test_images,
        }

    def _n_drawn_leaks(self, subset: Subset) -> int:
        return int(np.isin(subset.rows, self.leaks.train_rows).sum())

    def _leaks(self, subset: Subset) -> dict[str, Any]:
        n_drawn = self._n_drawn_leaks(subset)
        return leak_record(self.leaks) | {"on_leak": self.settings.on_leak, "n_drawn": n_drawn}

    def record(self, subset: Subset) -> dict[str, Any]:
        """Give what a fit's JSON keeps of the question."""
        is_choice = len(self.test_rows) < len(self.pair.test.y)
        return {
            "train_rows": subset.rows.tolist(),
            "test_rows": self.test_rows.tolist() if is_choice else "all",
            **self._images(subset),
            "test_labels": self.truth.tolist(),
            "is_holdout": self.pair.is_holdout,
            "draws_version": DRAWS_VERSION,
            "notices": list(self.notices),
            "leaks": self._leaks(subset),
        }

    def asked(self, head: str, subset: Subset) -> dict[str, Any]:
        """Give what a fit's JSON keeps of how it was asked."""
        question = self.question_id(head, subset)
        return {"settings": self.settings.record(), "question": question}

    def as_asked(self, result: FitResult, head: str, subset: Subset) -> FitResult:
        """Give an answer under the names of this question, whatever it was kept under."""
        detail = {**result.detail, **self.asked(head, subset)}
        asked = replace(result, **self.names(), repeat=subset.repeat, detail=detail)
        if asked.key != result.key:
            return asked
        kept = {**result.detail, "question": detail["question"]}
        return replace(result, repeat=subset.repeat, detail=kept)


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
        leaks = self._recalled(known.find_leaks(key)) if known is not None else None
        if leaks is None:
            leaks, self._new_leaks = find_leaks(pair, drawable, self.test_rows, self.settings), key
        if self._on_leaks is not None:
            self._on_leaks(leaks)
        if self.settings.near == NEAR_OFF:
            self._tell(["near-duplicates are not looked for (--near off)"])
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
        leaks = _what_matters(self._leaks(subset))
        images = self._images(subset)
        # A fit is named by row numbers; where data came in another order, these are other images.
        found = (
            result
            for result in known.find(self.fit_id(head, subset))
            if self._is_sound(result)
            and _what_matters(result.detail.get("leaks")) == leaks
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


def _what_matters(leaks: Any) -> dict[str, Any]:
    """Leave out, where there are no leaks, what was to be done about them and how near is near."""
    if not isinstance(leaks, dict):
        return {}
    near = leaks.get("near")
    # The rule that featx chose comes out otherwise where another version measures distances.
    usual = {"near": "usual"} if isinstance(near, dict) and near.get("is_default") else {}
    found = bool(leaks.get("n_pairs"))
    kept = {key: value for key, value in leaks.items() if found or key != "on_leak"}
    return kept if found else kept | usual
