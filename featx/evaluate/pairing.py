"""Which caches make pairs: of one data set, or across two over the classes that both have."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featx.catalog import open_complete
from featx.errors import CacheError, ProtocolError, UsageError, unknown_name
from featx.evaluate.pair import (
    CacheLike,
    ClassView,
    Pair,
    add_groups,
    choose_classes,
    describe,
    usable_rows,
)
from featx.fingerprint import differences, fingerprint
from featx.progress import SILENT, Reporter
from featx.sources.select import ClassChoice
from featx.sources.splits import choose_splits, read_split

__all__ = ["CacheChoice", "cross_pairs", "pair_caches", "with_enough_images"]


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
    classes = _record(cache.meta, "sample").get("classes")
    return fingerprint({"data": cache.meta["data"], "classes": classes, "identity": _how(cache)})


def _how(cache: CacheLike) -> dict[str, Any]:
    """Give how features were made, without from which images."""
    return {k: v for k, v in cache.meta["identity"].items() if k != "source"}


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
    _require_other_images(train, test)
    notice = _why_not_one_source(train, test)
    return Pair(train, test, notices=(notice,) if notice else ())


def _require_other_images(train: CacheLike, test: CacheLike) -> None:
    if train.fingerprint == test.fingerprint:
        raise ProtocolError(
            f"{train.path} and {test.path} were made from the same images: a head would be "
            "scored on rows it was fitted on"
        )


def _why_not_one_source(train: CacheLike, test: CacheLike) -> str | None:
    """Say so where the data changed between the runs that made two caches.

    It is enough if one of the two runs saw the other split as it is here: a cache is reused where
    its split did not change. Caches of older versions do not say what their runs saw.
    """
    seen = [_has_seen(*couple) for couple in ((train, test), (test, train))]
    if True in seen or False not in seen:
        return None
    runs = [
        f"{Path(one.path).name} of {one.meta.get('created')} beside "
        f"{_seen(one, other).get('n_images')} images of {other.meta['split']}"
        for one, other in ((train, test), (test, train))
        if _seen(one, other)
    ]
    here = f"{len(train.y)} of {train.meta['split']}, {len(test.y)} of {test.meta['split']}"
    return (
        f"train and test are not of one state of the data (made: {', '.join(runs)}, here: {here}): "
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


_TEST = ("test", "val", "all")


def cross_pairs(
    caches: Iterable[CacheLike],
    train_data: str,
    test_data: str,
    choice: ClassChoice,
    test_split: str | None = None,
) -> tuple[list[Pair], list[str]]:
    """Pair the caches of two data sets.

    Partners have the same backbone, weights, layer and pooling, and as many features. Where one
    of them is made exactly alike (input size, precision, preprocessing, sample), it is taken;
    else all that fit are, and a notice says what differs.
    """
    caches = list(caches)
    tests = _of_split(caches, test_data, [read_split(test_split)] if test_split else _TEST)
    pairs: list[Pair] = []
    notices = []
    for train in _of_split(caches, train_data, ("train", "all")):
        alike = [test for test in tests if _weights_and_layer(test) == _weights_and_layer(train)]
        partners = _best([test for test in alike if test.X.shape[1] == train.X.shape[1]], train)
        pairs += [_pair(train, test, choice) for test in partners]
        if not partners:
            notices.append(_why_alone(train, alike, test_data))
    if not pairs:
        raise ProtocolError("; ".join(notices))
    return pairs, notices


def _of_split(caches: Sequence[CacheLike], data: str, splits: Sequence[str]) -> list[CacheLike]:
    of_data = {c.fingerprint: c for c in caches if c.meta["data"] == data}.values()
    by_split = [[c for c in of_data if c.meta["split"] == split] for split in splits]
    found = next((caches for caches in by_split if caches), [])
    if not found:
        present = sorted({str(c.meta["split"]) for c in of_data})
        has = f"it has {', '.join(present)}" if present else "it has none at all"
        raise ProtocolError(
            f"there is no finished cache of {data!r}, split "
            f"{' or '.join(map(repr, splits))}: {has}; "
            f"run  featx extract --data {data}  first"
        )
    return found


def _weights_and_layer(cache: CacheLike) -> tuple[Any, ...]:
    identity = cache.meta["identity"]
    weights = identity.get("weights_sha256", identity.get("weights"))
    return cache.meta["backbone"], weights, cache.meta["layer"], cache.meta["pool"]


def _best(tests: list[CacheLike], train: CacheLike) -> list[CacheLike]:
    same = [c for c in tests if fingerprint(_how(c)) == fingerprint(_how(train))] or tests
    return [c for c in same if c.meta.get("sample") == train.meta.get("sample")] or same


def _why_alone(train: CacheLike, alike: list[CacheLike], test_data: str) -> str:
    what = f"{train.meta['backbone']} {train.meta['layer']}, pool {train.meta['pool']}"
    if not alike:
        return (
            f"{what}: {test_data} has no cache with these weights, made like "
            f"{Path(train.path).name}: extract it with the same flags"
        )
    size = train.meta["input_size"]
    sizes = ", ".join(f"{c.X.shape[1]:,} (input size {c.meta['input_size']})" for c in alike)
    return (
        f"{what}: {train.meta['data']} has {train.X.shape[1]:,} features (input size {size}), "
        f"{test_data} {sizes}: extract {test_data} with --input-size {size}, or both with "
        "--pool avg"
    )


def _pair(train: CacheLike, test: CacheLike, choice: ClassChoice) -> Pair:
    is_one = train.path == test.path
    if not is_one:
        _require_other_images(train, test)
    shared, notice = _shared(train, test, choice)
    train_view = _view(train, shared, choice)
    test_view = train_view if is_one else _view(test, shared, choice)
    notices = [f"{len(shared)} shared classes{notice}"]
    if differing := list(_differing(_how(train), _how(test))):
        notices.append(
            f"the features were made differently (train and test): {', '.join(differing)}"
        )
    typed = describe(ClassChoice(choice.keep, choice.drop))
    there = " (val)" if test.meta["split"] == "val" else ""
    name = f"{train.meta['data']} -> {test.meta['data']}{there} {typed}".strip()
    return Pair(train_view, test_view, data=name, notices=tuple(notices))


def _differing(train: Any, test: Any, name: str = "") -> Iterator[str]:
    """Yield the fields that differ, with both values."""
    if isinstance(train, Mapping) and isinstance(test, Mapping):
        for key in sorted(train.keys() | test.keys()):
            yield from _differing(train.get(key), test.get(key), f"{name}.{key}".lstrip("."))
    elif train != test:
        yield f"{name} {train} and {test}"


def _view(cache: CacheLike, shared: list[str], choice: ClassChoice) -> ClassView:
    """Keep the shared classes, with the new names of those that this cache has."""
    rename = {old: new for old, new in choice.rename.items() if old in cache.class_names}
    return ClassView(cache, ClassChoice(keep=tuple(shared), rename=rename))


def _with_images(cache: CacheLike) -> list[str]:
    """Classes of a cache that have a usable image."""
    labels = np.unique(np.asarray(cache.y)[usable_rows(cache)])
    return [cache.class_names[label] for label in labels]


def _shared(train: CacheLike, test: CacheLike, choice: ClassChoice) -> tuple[list[str], str]:
    """Classes that both have, in the order asked for, and a notice about the others."""
    either = list(dict.fromkeys([*train.class_names, *test.class_names]))
    _, wanted = choice.apply(np.zeros(0, np.int64), either)
    names = [{choice.rename.get(name, name) for name in _with_images(c)} for c in (train, test)]
    shared = [name for name in wanted if name in names[0] and name in names[1]]
    data = [str(cache.meta["data"]) for cache in (train, test)]
    if len(shared) < 2:
        lists = [
            f"{d} has {', '.join(c.class_names)}" for d, c in zip(data, (train, test), strict=True)
        ]
        raise ProtocolError(
            f"{data[0]} and {data[1]} share {len(shared)} of the classes asked for, a classifier "
            f"needs two: {lists[0]}. {lists[1]}. Give classes the same name with --map OLD=NEW"
        )
    lone = [
        f"{name} (only in {data[name in names[1]]})"
        for name in wanted
        if name not in shared and (name in names[0] or name in names[1])
    ]
    return shared, f", left out: {', '.join(lone)}" if lone else ""


_FILTERS = ("backbone", "layer", "pool", "input_size")


@dataclass(frozen=True, kw_only=True)
class CacheChoice:
    """Which caches are fitted on and tested on; empty tuples choose all."""

    data: tuple[str, ...] = ()
    backbone: tuple[str, ...] = ()
    layer: tuple[str, ...] = ()
    pool: tuple[str, ...] = ()
    input_size: tuple[int, ...] = ()
    train_data: str | None = None
    test_data: str | None = None
    test_split: str | None = None
    classes: ClassChoice = field(default_factory=ClassChoice)
    groups: str | None = None

    def __post_init__(self) -> None:
        if (self.train_data is None) != (self.test_data is None):
            raise UsageError("--train-data and --test-data go together: name both data sets")
        if self.train_data is not None and self.data:
            raise UsageError("--data is for fits within a data set: leave it out, or --train-data")

    def pairs_in(
        self,
        folder: str | os.PathLike[str],
        per_class: Iterable[int | str],
        reporter: Reporter = SILENT,
    ) -> list[Pair]:
        """Pair the finished caches of a folder; say which were taken, and why others were not."""
        caches, notices = open_complete(folder)
        try:
            return self.pairs(caches, per_class, reporter, f"{folder}", notices)
        except CacheError:
            for cache in caches:
                cache.close()
            raise

    def pairs(
        self,
        caches: Sequence[CacheLike],
        per_class: Iterable[int | str],
        reporter: Reporter = SILENT,
        where: str = "the list of caches",
        notices: Sequence[str] = (),
    ) -> list[Pair]:
        """Pair some caches, as `pairs_in` does those of a folder."""
        chosen: Sequence[CacheLike] = caches
        for name in _FILTERS:
            chosen = _only(chosen, name, getattr(self, name), where)
        if self.train_data is not None and self.test_data is not None:
            both = self.train_data, self.test_data
            chosen = _only(chosen, "data", both, where)
            pairs, alone = cross_pairs(chosen, *both, self.classes, self.test_split)
        else:
            chosen = _only(chosen, "data", self.data, where)
            pairs, alone = pair_caches(chosen, self.test_split)
            pairs, small = with_enough_images(pairs, per_class)
            alone = [*alone, *small]
            pairs = [choose_classes(pair, self.classes) for pair in pairs]
        for notice in [*notices, *alone]:
            reporter.warn(notice)
        if not pairs:
            raise CacheError(
                f"{where} holds no finished caches to fit and test on: "
                + (alone[0] if alone else "run  featx extract --backbone NAME  first")
            )
        if len(chosen) < len(caches):
            reporter.say(
                f"{len(chosen)} of {len(caches)} caches in {where} are as asked: "
                + ", ".join(sorted({Path(cache.path).name for cache in chosen}))
            )
        return [add_groups(pair, self.groups) for pair in pairs] if self.groups else pairs


def _only(
    caches: Sequence[CacheLike], name: str, wanted: Sequence[str | int], where: str
) -> Sequence[CacheLike]:
    """Choose the caches that have one of the values."""
    present = {str(cache.meta.get(name)) for cache in caches}
    kept: set[str] = set()
    for value in map(str, wanted):
        found = {value} & present
        if not found and name == "backbone":
            # A name of timm as it was typed stands for every tag of it that was extracted.
            found = {other for other in present if other.startswith(f"{value}.")}
        if not found:
            hint = unknown_name(f"{name.replace('_', ' ')} in {where}", value, present)
            raise CacheError(f"{hint}; extract it with  featx extract")
        kept |= found
    return [cache for cache in caches if str(cache.meta.get(name)) in kept] if wanted else caches
