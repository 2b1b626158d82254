"""Which cache is fitted on and which one is tested on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featx.errors import ProtocolError
from featx.fewshot import name_images, split_holdout
from featx.fingerprint import differences, fingerprint
from featx.heads.base import Rows
from featx.sources.splits import choose_splits

if TYPE_CHECKING:
    from featx.evaluate.groups import Groups

__all__ = ["CacheLike", "Pair", "pair_caches", "with_enough_images"]

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
    """Rows that may be fitted on, and rows that are tested on."""

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
        """What the table calls the data: with the split that is tested on, where it is not test."""
        name = str(self.train.meta["data"]) if self.data is None else self.data
        is_usual = self.data is not None or self.tested in ("test", "all")
        return name if is_usual else f"{name} ({self.tested})"

    @property
    def tested(self) -> str:
        """Split that is tested on; ``all`` where rows are held out."""
        return str(self.test.meta.get("split", "test"))

    def usable(self, cache: CacheLike) -> NDArray[np.bool_]:
        """Rows with features and a known label, shape (N,)."""
        return np.asarray((np.asarray(cache.status) == _DONE) & (np.asarray(cache.y) >= 0))

    def split(self, fraction: float, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Rows that may be drawn, and rows that are tested."""
        usable = self.usable(self.train)
        if not self.is_holdout:
            return usable, np.flatnonzero(self.usable(self.test)).astype(np.int64)
        groups = self.groups
        train_rows, test_rows = split_holdout(
            self.train.y,
            fraction,
            seed=seed,
            valid=usable,
            groups=None if groups is None else np.array(groups.names)[groups.train],
            class_names=self.train.class_names,
            images=name_images(self.train.image_digests, self.train.paths),
        )
        drawable = np.zeros(len(usable), dtype=bool)
        drawable[train_rows] = True
        return drawable, test_rows


def pair_caches(
    caches: Iterable[CacheLike], test_split: str | None = None
) -> tuple[list[Pair], list[str]]:
    """Find the caches that every train cache is tested on."""
    groups: dict[str, list[CacheLike]] = {}
    for cache in caches:
        groups.setdefault(_point(cache), []).append(cache)
    pairs, notices = [], []
    for group in groups.values():
        by_split = _by_split(group)
        whole = by_split.pop("all", [])
        if by_split:
            found, alone = _pair_splits(by_split, test_split)
            pairs += found
            notices += alone
        if whole and test_split is not None:
            notices += [f"{_where(c)}: left out, it has no splits to test on" for c in whole]
        else:
            pairs += [Pair(cache, cache) for cache in whole]
    return pairs, notices


def with_enough_images(
    pairs: Sequence[Pair], per_class: Iterable[int | str]
) -> tuple[list[Pair], list[str]]:
    """Leave out pairs whose sample is smaller than the subsets, where others are large enough."""
    most = max((k for k in per_class if isinstance(k, int)), default=0)
    sizes = [_part(pair.train.meta, str(pair.train.meta["split"]))[0] or math.inf for pair in pairs]
    enough = min(most, max(sizes, default=0))
    few = f"left out, it has fewer than {most} images a class"
    both = list(zip(pairs, sizes, strict=True))
    return (
        [pair for pair, size in both if size >= enough],
        [f"{_where(pair.train)}: {few}" for pair, size in both if size < enough],
    )


def _pair_splits(
    by_split: dict[str, list[CacheLike]], test_split: str | None
) -> tuple[list[Pair], list[str]]:
    """Pair the caches of data with splits."""
    try:
        fitted, tested = choose_splits(by_split, test_split)
    except ProtocolError as error:
        caches = itertools.chain.from_iterable(by_split.values())
        return [], [f"{_where(cache)}: left out, {error}" for cache in caches]
    couples = list(itertools.product(by_split[fitted], by_split[tested]))
    couples = [couple for couple in couples if _is_asked_together(*couple)]
    paired = {id(cache) for couple in couples for cache in couple}
    why = {split: f"split {split!r} is not used" for split in by_split}
    why[fitted] = f"there is no cache of its {tested} split with this sample"
    why[tested] = f"there is no cache of its {fitted} split with this sample"
    if "val" in by_split and tested != "val":
        why["val"] = f"left for choices: heads are tested on {tested} (or  --test-split val)"
    notices = [
        f"{_where(cache)}: left out, {why[split]}"
        for split, caches in by_split.items()
        for cache in caches
        if id(cache) not in paired
    ]
    return [_checked(*couple) for couple in couples], notices


def _point(cache: CacheLike) -> str:
    """Everything that partners share: data, classes, and how features were made."""
    identity = {k: v for k, v in cache.meta["identity"].items() if k != "source"}
    classes = _record(cache.meta, "sample").get("classes")
    return fingerprint({"data": cache.meta["data"], "classes": classes, "identity": identity})


def _part(meta: Mapping[str, Any], split: str) -> tuple[int | None, int | None]:
    """Give the images a class and the seed that the run which made a cache took of a split."""
    sample = _record(meta, "sample")
    n = sample.get("per_class" if split in ("train", "all") else "test_per_class")
    return n, None if n is None else sample.get("seed")


def _is_asked_together(train: CacheLike, test: CacheLike) -> bool:
    """Whether a run that made one of them asked for the other too."""
    return any(
        _part(train.meta, str(of.meta["split"])) == _part(test.meta, str(of.meta["split"]))
        for of in (train, test)
    )


def _by_split(group: Sequence[CacheLike]) -> dict[str, list[CacheLike]]:
    """Give the caches of each split, one of each part of it."""
    parts: dict[str, dict[Any, CacheLike]] = {}
    for cache in sorted(group, key=lambda cache: str(cache.meta["split"])):
        split = str(cache.meta["split"])
        first = parts.setdefault(split, {}).setdefault(_part(cache.meta, split), cache)
        if first.fingerprint != cache.fingerprint:
            error = ProtocolError(
                f"two caches are the {split} split of {first.meta['data']!r}: {first.path} and "
                f"{cache.path}; name the one to use"
            )
            for line in differences(first.meta["identity"], cache.meta["identity"]):
                error.add_note(line)
            raise error
    return {split: list(caches.values()) for split, caches in parts.items()}


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
    notice = _why_not_one_source(train, test)
    return Pair(train, test, notices=(notice,) if notice else ())


def _why_not_one_source(train: CacheLike, test: CacheLike) -> str | None:
    """Say so where the data changed between the runs that made two caches.

    It is enough if one of the two runs saw the other split as it is here: a cache is reused where
    its split did not change. Caches of older versions do not say what their runs saw.
    """
    seen = [_has_seen(*couple) for couple in ((train, test), (test, train))]
    if True in seen or False not in seen:
        return None
    told = [
        f"{Path(one.path).name} of {one.meta.get('created')} beside "
        f"{_seen(one, other).get('n_images')} images of {other.meta['split']}"
        for one, other in ((train, test), (test, train))
        if _seen(one, other)
    ]
    here = f"{len(train.y)} of {train.meta['split']}, {len(test.y)} of {test.meta['split']}"
    return (
        f"train and test are not of one state of the data (made: {', '.join(told)}, here: {here}): "
        "extract both again (featx extract --overwrite)"
    )


def _has_seen(one: CacheLike, other: CacheLike) -> bool | None:
    """Whether the run that made a cache saw the other's images; None where it does not say."""
    seen, own = _seen(one, other), _seen(other, other)
    if "content" in seen:
        return bool(seen["content"] == other.meta["identity"].get("source", {}).get("content"))
    # It saw the names of the images alone, with  --split.
    return seen["listed"] == own["listed"] if "listed" in seen and "listed" in own else None


def _seen(one: CacheLike, other: CacheLike) -> Mapping[str, Any]:
    """Give what a cache records of another's split."""
    return _record(_record(one.meta, "splits"), str(other.meta["split"]))


def _record(meta: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Give what is recorded under a name; nothing where another program wrote something else."""
    found = meta.get(name)
    return found if isinstance(found, Mapping) else {}


def _where(cache: CacheLike) -> str:
    return f"{Path(cache.path).name} ({cache.meta['data']}, {cache.meta['split']})"
