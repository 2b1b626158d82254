"""Images that are both in what may be fitted on and in what is tested on: found and described."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from featx.evaluate.near import NearPairs, NearRule, Sketch, find_near, mean_row, sketch_rows
from featx.evaluate.pair import CacheLike, ClassView, Pair, images_sha256
from featx.evaluate.settings import NEAR_OFF, Settings
from featx.fewshot import subset_hash
from featx.fingerprint import fingerprint
from featx.heads.base import Rows, RowsView, as_stored

__all__ = [
    "KINDS",
    "SAME_GROUP",
    "Conflict",
    "Leak",
    "Leaks",
    "find_copies",
    "find_leaks",
    "leak_lines",
    "leak_record",
    "leaks_key",
    "recall_leaks",
    "record_leaks",
]

SAME_FILE, EQUAL_FEATURES, NEAR = KINDS = ("same file", "equal features", "near")
"""How a test image can be a training image too, the surest first."""

SAME_GROUP = "same group"

_SHOWN, _RECORDED = 3, 50

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Leak:
    """A training image and a test image that are not independent."""

    kind: str
    train: int
    test: int
    cosine: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Conflict:
    """Two rows that are one image, with different classes."""

    kind: str
    first: tuple[str, int]
    second: tuple[str, int]


@dataclass(frozen=True)
class Leaks:
    """Everything found for a pair of caches."""

    pair: Pair
    n_train: int
    n_test: int
    found: tuple[Leak, ...]
    conflicts: tuple[Conflict, ...] = ()
    near: NearPairs | None = None

    @property
    def train_rows(self) -> NDArray[np.int64]:
        """Training rows that leak, ascending."""
        return np.unique(np.array([leak.train for leak in self.found], np.int64))

    @property
    def duplicates(self) -> list[Leak]:
        """All but those of the kind `SAME_GROUP`."""
        return [leak for leak in self.found if leak.kind != SAME_GROUP]

    @property
    def counts(self) -> dict[str, int]:
        """Test images by their surest kind; those in a group of training images apart."""
        n = Counter(leak.kind for leak in one_per_test_image(self.duplicates))
        in_groups = {leak.test for leak in self.found if leak.kind == SAME_GROUP}
        return {**{kind: n[kind] for kind in KINDS}, SAME_GROUP: len(in_groups)}

    @property
    def n_duplicates(self) -> int:
        """Test images that are, or nearly are, a training image."""
        return len({leak.test for leak in self.duplicates})

    @property
    def summary(self) -> str:
        """What was found, in one line; empty where nothing was."""
        counts, parts = self.counts, []
        if self.n_duplicates:
            kinds = ", ".join(f"{counts[kind]:,} {kind}" for kind in KINDS if counts[kind])
            parts.append(
                f"{self.n_duplicates:,} of {self.n_test:,} test images have a copy among the "
                f"{self.n_train:,} training images: {kinds}"
            )
        if counts[SAME_GROUP]:
            column = self.pair.groups.column if self.pair.groups else ""
            parts.append(
                f"{counts[SAME_GROUP]:,} of {self.n_test:,} test images are in a group "
                f"({column}) of training images"
            )
        return " and ".join(parts)

    def name(self, part: str, row: int) -> str:
        """Name an image and its class."""
        cache = self.pair.train if part == "train" else self.pair.test
        label = int(cache.y[row])
        return f"{cache.paths[row]} ({cache.class_names[label] if label >= 0 else 'unknown'})"


def one_per_test_image(found: Iterable[Leak]) -> list[Leak]:
    """Keep the first of each test image."""
    return list(_first_of(found, lambda leak: leak.test).values())


def _first_of(items: Iterable[T], key: Callable[[T], K]) -> dict[K, T]:
    """Give the first item of each key, in the order in which the keys come."""
    found: dict[K, T] = {}
    for item in items:
        found.setdefault(key(item), item)
    return found


def find_leaks(
    pair: Pair, drawable: NDArray[np.bool_], test_rows: NDArray[np.int64], settings: Settings
) -> Leaks:
    """Compare every image that may be drawn with every one that is tested.

    Parameters
    ----------
    pair : Pair
        The caches; each is read once.
    drawable : ndarray of bool, shape (N_train,)
        Rows of the train cache that may be drawn.
    test_rows : ndarray of int64, shape (n_test,)
        Rows of the test cache.
    settings : Settings
        `near` is used.

    Returns
    -------
    Leaks
        Same files by the SHA-256 of their bytes, where the caches have it; equal features;
        near features, unless switched off; equal groups, where the pair has groups.

    Raises
    ------
    ProtocolError
        If a test row holds NaN or infinity.
    """
    parts = _Parts(pair, np.flatnonzero(drawable).astype(np.int64), test_rows)
    is_near_wanted = settings.near != NEAR_OFF
    sketches = _sketch_both(parts, with_sketch=is_near_wanted)
    near = None
    if is_near_wanted and len(parts.train) and len(test_rows):
        near = find_near(*sketches, None if isinstance(settings.near, str) else settings.near)
    digests = sketches[0][1].digests, sketches[1][1].digests
    return parts.compare({SAME_FILE: parts.files(), EQUAL_FEATURES: digests}, near)


def find_copies(pair: Pair, drawable: NDArray[np.bool_], test_rows: NDArray[np.int64]) -> Leaks:
    """Compare the files of images alone; features are not read."""
    parts = _Parts(pair, np.flatnonzero(drawable).astype(np.int64), test_rows)
    return parts.compare({SAME_FILE: parts.files()})


def _sketch_both(
    parts: _Parts, *, with_sketch: bool
) -> tuple[tuple[Rows, Sketch], tuple[Rows, Sketch]]:
    pair = parts.pair
    X, X_test = as_stored(pair.train.X), as_stored(pair.test.X)
    # Equal values of float16 and float32 have equal digests as the wider of the two types.
    dtype = np.result_type(*(np.asarray(some[0:1]).dtype for some in (X, X_test)))
    train, test = RowsView(X, parts.train), RowsView(X_test, parts.test)
    centre = mean_row(train, test) if with_sketch else np.zeros(X.shape[1], np.float32)
    return (
        (train, sketch_rows(train, dtype, centre, with_sketch=with_sketch)),
        (test, sketch_rows(test, dtype, centre, with_sketch=with_sketch, must_be_finite=True)),
    )


_Keys = tuple[Sequence[Hashable], Sequence[Hashable]]
"""What is compared of the rows of both parts; None equals nothing."""


@dataclass(frozen=True)
class _Parts:
    """Two sets of rows, and what is found between them."""

    pair: Pair
    train: NDArray[np.int64]
    test: NDArray[np.int64]

    def files(self) -> _Keys:
        """Digest of each image."""
        return _files(self.pair.train, self.train), _files(self.pair.test, self.test)

    def compare(self, keys: Mapping[str, _Keys], near: NearPairs | None = None) -> Leaks:
        """Find leaks by the keys of each kind, the surest kind first, and label conflicts."""
        found = [leak for kind, both in keys.items() for leak in self._equal(kind, *both)]
        found = _surest(found, self._near(near) if near is not None else [])
        conflicts = self._conflicts_across(found)
        for kind, (train, _) in keys.items():
            conflicts += self._conflicts_inside(kind, train)
        if self.pair.groups is not None:
            found += self._equal(SAME_GROUP, *self.pair.groups.of(self.train, self.test))
        n_train, n_test = len(self.train), len(self.test)
        return Leaks(self.pair, n_train, n_test, tuple(found), _each_once(conflicts), near)

    def _equal(self, kind: str, train: Sequence[Hashable], test: Sequence[Hashable]) -> list[Leak]:
        """Pair every row whose key is in the other part with the first row that has it."""
        in_train, in_test = _first_rows(train), _first_rows(test)
        cosine = 1.0 if kind == EQUAL_FEATURES else None
        couples = {(in_train[key], j) for j, key in enumerate(test) if key in in_train}
        couples |= {(i, in_test[key]) for i, key in enumerate(train) if key in in_test}
        return [
            Leak(kind, int(self.train[i]), int(self.test[j]), cosine) for i, j in sorted(couples)
        ]

    def _near(self, pairs: NearPairs) -> list[Leak]:
        columns = (self.train[pairs.train], self.test[pairs.test], pairs.cosine, pairs.ratio)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [Leak(NEAR, *row) for row in rows]

    def _conflicts_across(self, found: Iterable[Leak]) -> list[Conflict]:
        return [
            Conflict(leak.kind, ("train", leak.train), ("test", leak.test))
            for leak in found
            if self.pair.train.y[leak.train] != self.pair.test.y[leak.test]
        ]

    def _conflicts_inside(self, kind: str, train: Sequence[Hashable]) -> list[Conflict]:
        first, labels = _first_rows(train), np.asarray(self.pair.train.y)[self.train]
        return [
            Conflict(kind, ("train", int(self.train[first[key]])), ("train", int(self.train[i])))
            for i, key in enumerate(train)
            if key is not None and labels[i] != labels[first[key]]
        ]


def _files(cache: CacheLike, rows: NDArray[np.int64]) -> list[Hashable]:
    digests = np.asarray(cache.image_digests)[rows]
    return [row.tobytes() if row.any() else None for row in digests]  # zeros: not known


def _first_rows(keys: Sequence[Hashable]) -> dict[Hashable, int]:
    """Find the first row of each key."""
    known = [i for i, key in enumerate(keys) if key is not None]
    return _first_of(known, keys.__getitem__)


def _surest(sure: list[Leak], near: list[Leak]) -> list[Leak]:
    """Keep a pair of rows once, and a near pair only where one of the two has no surer pair."""
    train, test = {leak.train for leak in sure}, {leak.test for leak in sure}
    near = [leak for leak in near if not (leak.train in train and leak.test in test)]
    return list(_first_of([*sure, *near], lambda leak: (leak.train, leak.test)).values())


def _each_once(conflicts: Iterable[Conflict]) -> tuple[Conflict, ...]:
    """Keep two rows once: as the first kind, which is the surest, in the place of the last."""
    kept: dict[tuple[object, object], Conflict] = {}
    for conflict in conflicts:
        rows = conflict.first, conflict.second
        kept[rows] = kept.pop(rows, conflict)
    return tuple(kept.values())


# 2: the images are part of the key, and the features were compared with their digests.
# 3: near pairs are those of centred rows.
_VERSION = 3
_ARRAYS = {"train": np.int64, "test": np.int64, "cosine": np.float64, "ratio": np.float64}


def leaks_key(
    pair: Pair, drawable: NDArray[np.bool_], test_rows: NDArray[np.int64], settings: Settings
) -> str:
    """Name a search by everything that its outcome depends on."""
    caches, chosen = (pair.train, pair.test), (np.flatnonzero(drawable), test_rows)
    return fingerprint(
        {
            "version": _VERSION,
            "caches": [cache.fingerprint for cache in caches],
            "classes": [c.record() if isinstance(c, ClassView) else None for c in caches],
            "groups": pair.groups.record() if pair.groups else None,
            "rows": [subset_hash(rows) for rows in chosen],
            "images": [images_sha256(c, rows) for c, rows in zip(caches, chosen, strict=True)],
            "near": settings.near,
        }
    )


def record_leaks(leaks: Leaks) -> dict[str, Any]:
    """Give everything that was found as plain values."""
    near = None
    if leaks.near is not None:
        lists = {name: getattr(leaks.near, name).tolist() for name in _ARRAYS}
        near = lists | {"rule": asdict(leaks.near.rule), "n_sketched": leaks.near.n_sketched}
    return {
        "n_train": leaks.n_train,
        "n_test": leaks.n_test,
        "found": [list(astuple(leak)) for leak in leaks.found],
        "conflicts": [[c.kind, list(c.first), list(c.second)] for c in leaks.conflicts],
        "near": near,
    }


def recall_leaks(record: dict[str, Any], pair: Pair) -> Leaks:
    """Rebuild what `record_leaks` wrote."""
    near = record["near"]
    if near is not None:
        arrays: dict[str, Any] = {
            name: np.array(near[name], dtype) for name, dtype in _ARRAYS.items()
        }
        near = NearPairs(**arrays, rule=NearRule(**near["rule"]), n_sketched=near["n_sketched"])
    found = tuple(Leak(*values) for values in record["found"])
    conflicts = tuple(Conflict(kind, tuple(a), tuple(b)) for kind, a, b in record["conflicts"])
    return Leaks(pair, record["n_train"], record["n_test"], found, conflicts, near)


def leak_lines(leaks: Leaks) -> list[str]:
    """Describe the first pairs and the first label conflicts."""
    lines = []
    for kind in (*KINDS, SAME_GROUP):
        pairs = one_per_test_image(leak for leak in leaks.found if leak.kind == kind)
        lines += _first_lines(kind, pairs, partial(_pair_line, leaks))
    return lines + _first_lines("label conflict", leaks.conflicts, partial(conflict_line, leaks))


def _first_lines(kind: str, found: Sequence[T], line: Callable[[T], str]) -> list[str]:
    n_more = len(found) - _SHOWN
    return [line(one) for one in found[:_SHOWN]] + [f"{kind}: and {n_more:,} more"] * (n_more > 0)


def conflict_line(leaks: Leaks, conflict: Conflict) -> str:
    """Describe two labels of one image."""
    names = [leaks.name(part, row) for part, row in (conflict.first, conflict.second)]
    return f"label conflict, {conflict.kind}: {names[0]} and {names[1]}"


def _pair_line(leaks: Leaks, leak: Leak) -> str:
    like = f" (cosine {leak.cosine:.3f})" if leak.kind == NEAR else ""
    names = _names(leaks, leak)
    return f"{leak.kind}{like}: {names['test']} and {names['train']}"


def _names(leaks: Leaks, leak: Leak) -> dict[str, str]:
    return {part: leaks.name(part, getattr(leak, part)) for part in ("train", "test")}


def leak_record(leaks: Leaks) -> dict[str, Any]:
    """Give what was found as plain values, for a fit's JSON."""
    near: Any = "off"
    if leaks.near is not None:
        near = asdict(leaks.near.rule) | {"n_by_sketch_only": leaks.near.n_sketched}
    return {
        "n_train": leaks.n_train,
        "n_test": leaks.n_test,
        "n_twins": leaks.n_duplicates,
        "test_images": leaks.counts,
        "n_train_images": len(leaks.train_rows),
        "near": near,
        "n_pairs": len(leaks.found),
        "pairs": [asdict(leak) | _names(leaks, leak) for leak in leaks.found[:_RECORDED]],
        "n_label_conflicts": len(leaks.conflicts),
        "label_conflicts": [conflict_line(leaks, c) for c in leaks.conflicts[:_RECORDED]],
    }
