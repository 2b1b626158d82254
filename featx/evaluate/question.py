"""What is asked of one pair of caches: all that is known before features are read for a fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.errors import ProtocolError
from featx.evaluate.draws import Subset, draw_all
from featx.evaluate.images import images_sha256
from featx.evaluate.leak_memory import leaks_key, recall_leaks, record_leaks
from featx.evaluate.leak_report import guard, leak_record, leak_remark
from featx.evaluate.leaks import Leaks, find_leaks
from featx.evaluate.output import ResultsFolder
from featx.evaluate.pairs import Pair
from featx.evaluate.result import FitResult
from featx.evaluate.settings import NEAR_OFF, Settings
from featx.evaluate.views import ClassView, count_unusable
from featx.fingerprint import fingerprint
from featx.progress import Reporter

__all__ = ["Question"]

_VERSION = 2
"""Part of every fit's name; to be raised when the same question gets another answer."""


class Question:
    """One pair, its subsets and its test rows.

    Parameters
    ----------
    pair : Pair
        What to fit on and what to test on.
    settings : Settings
        Heads, subsets and repeats.
    reporter : Reporter
        Is told what a person must know.
    on_leaks : callable, optional
        Called with the leaks before anything is done about them.
    known : ResultsFolder, optional
        Keeps what the search for leaks found, and knows it the next time.

    Attributes
    ----------
    subsets : list of Subset
        By draw, then by size.
    test_rows : ndarray of int64
        Rows of the test cache.
    truth : ndarray of int64
        Their labels.
    leaks : Leaks
        What the search found.
    notices, remarks : list of str
        Told already; part of every fit's notes.

    Raises
    ------
    ProtocolError
        If a class has too few rows, nothing can be tested, or there are leaks and they are to
        be errors.
    """

    def __init__(
        self,
        pair: Pair,
        settings: Settings,
        reporter: Reporter,
        on_leaks: Callable[[Leaks], object] | None = None,
        known: ResultsFolder | None = None,
    ) -> None:
        self.pair, self.settings, self.reporter = pair, settings, reporter
        self.notices: list[str] = []
        drawable, self.test_rows = pair.split(settings.holdout, settings.holdout_seed)
        if not self.test_rows.size:
            raise ProtocolError(f"{pair.name}: no test image is labelled and usable")
        self._tell([*pair.notices, *self._unusable()])
        key = leaks_key(pair, drawable, self.test_rows, settings)
        stored = None if known is None else known.find_leaks(key)
        if stored is not None:
            self.leaks = recall_leaks(stored, pair)
        else:
            self.leaks = find_leaks(pair, drawable, self.test_rows, settings)
        if on_leaks is not None:
            on_leaks(self.leaks)
        drawable = self._guarded(drawable)
        if known is not None and stored is None:
            known.add_leaks(key, record_leaks(self.leaks))
        self.subsets, notices = draw_all(pair.train, drawable, settings)
        self._tell(notices)
        self.remarks = [*self._split_remarks(), *pair.notices]
        self.remarks += leak_remark(self.leaks, settings.on_leak)
        self.truth = np.asarray(pair.test.y)[self.test_rows]
        self._test_images = images_sha256(pair.test, self.test_rows)

    def _tell(self, notices: Iterable[str]) -> None:
        for notice in notices:
            self.notices.append(notice)
            self.reporter.warn(f"{self.pair.name}: {notice}")

    def _unusable(self) -> Iterator[str]:
        caches = [self.pair.train] if self.pair.is_holdout else [self.pair.train, self.pair.test]
        for cache in caches:
            if left_out := count_unusable(cache):
                yield f"{left_out} rows of {cache.path} are unusable or unlabelled and left out"

    def _split_remarks(self) -> Iterator[str]:
        if self.pair.is_holdout:
            what = (
                "of each class" if self.pair.groups is None else "of each class, in whole groups,"
            )
            share = f"{self.settings.holdout:.0%} {what} held out"
            yield f"no test split: {share} (seed {self.settings.holdout_seed})"

    def _guarded(self, drawable: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Rows that may be drawn once the leaks are dealt with."""
        if self.settings.near == NEAR_OFF:
            self._tell(["near twins are not looked for (--near off)"])
        return guard(self.leaks, self.settings.on_leak, drawable, self._tell, self.reporter)

    def fit_id(self, head: str, subset: Subset) -> str:
        """Name what is fitted, on what, and how: 16 hexadecimal digits.

        Parameters
        ----------
        head : str
            Name of the head.
        subset : Subset
            One of `subsets`.

        Returns
        -------
        str
        """
        identity = {
            "version": _VERSION,
            "train": self.pair.train.fingerprint,
            "test": self.pair.test.fingerprint,
            "test_rows": self.test_rows.tolist(),
            "head": head,
            "per_class": str(subset.per_class),
            "repeat": subset.repeat,
            "seed": subset.seed,
            "rows": subset.sha256,
            "C": self.settings.C,
            "folds": self.settings.folds,
            "scale": self.settings.scale,
            "class_weight": self.settings.class_weight,
        }
        return fingerprint(identity | self._choices())[:16]

    def answer(self, head: str, subset: Subset, known: ResultsFolder) -> FitResult | None:
        """Find a fit that was made before.

        Parameters
        ----------
        head : str
            Name of the head.
        subset : Subset
            One of `subsets`.
        known : ResultsFolder
            Where to look.

        Returns
        -------
        FitResult or None
            Of the same question, and with the same to tell about leaks.
        """
        told = _told(self._leaks(subset))
        found = known.find(self.fit_id(head, subset))
        return next((r for r in found if _told(r.detail.get("leaks", {})) == told), None)

    def _leaks(self, subset: Subset) -> dict[str, Any]:
        n_drawn = int(np.isin(subset.rows, self.leaks.train_rows).sum())
        told = {"on_leak": self.settings.on_leak, "n_drawn": n_drawn}
        return leak_record(self.leaks) | told

    def _choices(self) -> dict[str, Any]:
        """Classes and groups, where any were chosen."""
        parts = {"train": self.pair.train, "test": self.pair.test}
        views = {part: c.record() for part, c in parts.items() if isinstance(c, ClassView)}
        groups = {"groups": self.pair.groups.record()} if self.pair.groups else {}
        return ({"classes": views} if views else {}) | groups

    def record(self, subset: Subset) -> dict[str, Any]:
        """Give what a fit's JSON keeps of the question.

        Parameters
        ----------
        subset : Subset
            One of `subsets`.

        Returns
        -------
        dict
            Plain values.
        """
        is_choice = len(self.test_rows) < len(self.pair.test.y)
        return {
            "train_rows": subset.rows.tolist(),
            "test_rows": self.test_rows.tolist() if is_choice else "all",
            "train_images_sha256": images_sha256(self.pair.train, subset.rows),
            "test_images_sha256": self._test_images,
            "test_labels": self.truth.tolist(),
            "is_holdout": self.pair.is_holdout,
            "notices": list(self.notices),
            "leaks": self._leaks(subset),
            **self._choices(),
            "settings": self.settings.record(),
            "train_cache": str(self.pair.train.path),
            "test_cache": str(self.pair.test.path),
        }


def _told(leaks: dict[str, Any]) -> dict[str, Any]:
    """Leave out what was to be done about leaks where there are none."""
    found = bool(leaks.get("n_pairs"))
    return {key: value for key, value in leaks.items() if found or key != "on_leak"}
