"""What every question about two splits begins with: test rows, leaks, and the subsets drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.errors import ProtocolError
from featx.evaluate.draws import Subset, check_classes, draw_all
from featx.evaluate.images import images_sha256
from featx.evaluate.leak_report import guard, leak_record, leak_remark
from featx.evaluate.leaks import Leaks
from featx.evaluate.pairs import Pair
from featx.evaluate.result import FitResult
from featx.evaluate.settings import Settings
from featx.evaluate.views import count_unusable
from featx.fewshot import DRAWS_VERSION
from featx.progress import Reporter

__all__ = ["BaseQuestion"]


class BaseQuestion(ABC):
    """One pair, its subsets and its test rows."""

    def __init__(self, pair: Pair, settings: Settings, reporter: Reporter) -> None:
        self.pair, self.settings, self.reporter = pair, settings, reporter
        self.notices: list[str] = []
        drawable, self.test_rows = pair.split(settings.holdout, settings.holdout_seed)
        if not self.test_rows.size:
            raise ProtocolError(f"{pair.name}: no test image is labelled and usable")
        idle = check_classes(pair.train, drawable, pair.test, self.test_rows)
        self._tell([*pair.notices, *self._unusable(), *idle])
        self.leaks = self._find_leaks(drawable)
        least = max([k for k in settings.per_class if isinstance(k, int)], default=1)
        drawable = guard(self.leaks, settings.on_leak, drawable, self._tell, reporter, least)
        check_classes(pair.train, drawable, pair.test, self.test_rows)  # of what is left
        self.subsets, notices = draw_all(pair.train, drawable, settings)
        self._tell(notices)
        self.remarks = [*self._split_remarks(), *pair.notices, *idle]
        self.remarks += leak_remark(self.leaks, settings.on_leak)
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
            what = (
                "of each class" if self.pair.groups is None else "of each class, in whole groups,"
            )
            share = f"{self.settings.holdout:.0%} {what} held out"
            yield f"no test split: {share} (seed {self.settings.holdout_seed})"
        elif self.pair.tested != "test":
            yield f"tested on the split {self.pair.tested}"

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
        told = {"on_leak": self.settings.on_leak, "n_drawn": self._n_drawn_leaks(subset)}
        return leak_record(self.leaks) | told

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
