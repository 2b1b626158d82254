"""Which cache is fitted on and which one is tested on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featx.errors import ProtocolError
from featx.fewshot import split_holdout
from featx.fingerprint import differences, fingerprint
from featx.heads.base import Rows

if TYPE_CHECKING:
    from featx.evaluate.groups import Groups

__all__ = ["CacheLike", "Pair", "pair_caches"]

_DONE = 1


class CacheLike(Protocol):
    """What evaluation reads of a cache."""

    @property
    def X(self) -> Rows:  # noqa: N802
        """Features, (N, D), read when rows are asked for."""

    @property
    def y(self) -> NDArray[np.int64]:
        """Labels, (N,), -1 where unknown."""

    @property
    def status(self) -> NDArray[np.uint8]:
        """1 where the row can be used, (N,)."""

    @property
    def class_names(self) -> list[str]:
        """One name a class."""

    @property
    def paths(self) -> Sequence[str]:
        """One path an image, (N,)."""

    @property
    def image_digests(self) -> NDArray[np.uint8]:
        """SHA-256 of each image's bytes, (N, 32), zeros where unknown."""

    @property
    def meta(self) -> dict[str, Any]:
        """What was recorded at extraction."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the features were made from."""

    @property
    def path(self) -> Path:
        """The file."""


@dataclass(frozen=True)
class Pair:
    """Rows that may be fitted on, and rows that are tested on.

    Parameters
    ----------
    train, test : CacheLike
        The same cache where the data has no test split.
    data : str, optional
        What the table calls the data; as recorded in the train cache by default.
    notices : tuple of str
        What a person must know before the first fit.
    groups : Groups, optional
        Which images belong together.
    """

    train: CacheLike
    test: CacheLike
    data: str | None = None
    notices: tuple[str, ...] = ()
    groups: Groups | None = None

    @property
    def is_holdout(self) -> bool:
        """Whether test rows are held out of the one cache."""
        return self.train.fingerprint == self.test.fingerprint

    @property
    def name(self) -> str:
        """Data, backbone and layer, for messages."""
        meta = self.train.meta
        return f"{self.data_name} {meta['backbone']} {meta['layer']}"

    @property
    def data_name(self) -> str:
        """What the table calls the data."""
        return str(self.train.meta["data"]) if self.data is None else self.data

    def usable(self, cache: CacheLike) -> NDArray[np.bool_]:
        """Rows with features and a known label, shape (N,)."""
        return np.asarray((np.asarray(cache.status) == _DONE) & (np.asarray(cache.y) >= 0))

    def split(self, fraction: float, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Rows that may be drawn, and rows that are tested.

        Parameters
        ----------
        fraction : float
            Share of each class to hold out, where there is no test cache; whole groups, where
            the pair has groups.
        seed : int
            Of the held-out choice.

        Returns
        -------
        drawable : ndarray of bool, shape (N_train,)
            Never includes a tested row.
        test_rows : ndarray of int64
            Rows of the test cache, ascending.
        """
        usable = self.usable(self.train)
        if not self.is_holdout:
            return usable, np.flatnonzero(self.usable(self.test)).astype(np.int64)
        groups = None if self.groups is None else self.groups.train
        train_rows, test_rows = split_holdout(
            self.train.y, fraction, seed=seed, valid=usable, groups=groups
        )
        drawable = np.zeros(len(usable), dtype=bool)
        drawable[train_rows] = True
        return drawable, test_rows


def pair_caches(caches: Iterable[CacheLike]) -> tuple[list[Pair], list[str]]:
    """Find the test cache of every train cache.

    Parameters
    ----------
    caches : iterable of CacheLike
        Any caches.

    Returns
    -------
    pairs : list of Pair
        In the order of the train caches; a cache of the split ``all`` is its own test cache.
    notices : list of str
        One line for each cache that has no partner.

    Raises
    ------
    ProtocolError
        If partners have different classes, or a cache has two partners.
    """
    groups: dict[str, list[CacheLike]] = {}
    for cache in caches:
        groups.setdefault(_point(cache), []).append(cache)
    pairs, notices = [], []
    for group in groups.values():
        by_split = {
            split: _only(group, split) for split in sorted({str(c.meta["split"]) for c in group})
        }
        train, test = by_split.pop("train", None), by_split.pop("test", None)
        if train is not None and test is not None:
            pairs.append(_checked(train, test))
        elif alone := train or test:
            missing = "test" if train else "train"
            notices.append(f"{_where(alone)}: left out, there is no cache of its {missing} split")
        if whole := by_split.pop("all", None):
            pairs.append(Pair(whole, whole))
        notices += [f"{_where(c)}: left out, split {s!r} is not used" for s, c in by_split.items()]
    return pairs, notices


def _point(cache: CacheLike) -> str:
    """Everything that partners share: data, sample setting, and how features were made."""
    identity = {k: v for k, v in cache.meta["identity"].items() if k != "source"}
    sample = cache.meta.get("sample")
    return fingerprint({"data": cache.meta["data"], "sample": sample, "identity": identity})


def _only(group: Sequence[CacheLike], split: str) -> CacheLike:
    found = {c.fingerprint: c for c in group if c.meta["split"] == split}
    if len(found) > 1:
        first, second = list(found.values())[:2]
        lines = differences(first.meta["identity"], second.meta["identity"])
        error = ProtocolError(
            f"two caches are the {split} split of {first.meta['data']!r}: {first.path} and "
            f"{second.path}; name the one to use"
        )
        error.add_note("\n".join(lines))
        raise error
    return next(iter(found.values()))


def _checked(train: CacheLike, test: CacheLike) -> Pair:
    if list(train.class_names) != list(test.class_names):
        odd = sorted(set(train.class_names) ^ set(test.class_names))[:5]
        raise ProtocolError(
            f"{train.path} and {test.path} have different classes"
            + (f" ({', '.join(odd)})" if odd else " (the order differs)")
            + ": extract both splits of the same data"
        )
    if train.X.shape[1] != test.X.shape[1]:
        raise ProtocolError(
            f"{train.path} has {train.X.shape[1]:,} features, {test.path} {test.X.shape[1]:,}"
        )
    if train.fingerprint == test.fingerprint:
        raise ProtocolError(
            f"{train.path} and {test.path} were made from the same images: a head would be "
            "scored on rows it was fitted on"
        )
    return Pair(train, test)


def _where(cache: CacheLike) -> str:
    return f"{Path(cache.path).name} ({cache.meta['data']}, {cache.meta['split']})"
