"""Images that are both in what may be fitted on and in what is tested on."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

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
    "leaks_key",
    "recall_leaks",
    "record_leaks",
]

SAME_FILE = "same file"
KINDS = (SAME_FILE, "equal features", "near")
"""How a test image can have a twin, the surest first."""

SAME_GROUP = "same group"


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
    def counts(self) -> dict[str, int]:
        """Test images by the surest kind of their twins; `SAME_GROUP` is counted apart."""
        kind_of: dict[int, str] = {}
        for leak in self.twins:
            kind_of.setdefault(leak.test, leak.kind)
        kinds = list(kind_of.values())
        counts = {kind: kinds.count(kind) for kind in KINDS}
        in_groups = {leak.test for leak in self.found if leak.kind == SAME_GROUP}
        return counts | {SAME_GROUP: len(in_groups)}

    @property
    def twins(self) -> list[Leak]:
        """All but those of the kind `SAME_GROUP`."""
        return [leak for leak in self.found if leak.kind != SAME_GROUP]

    @property
    def n_twins(self) -> int:
        """Test images that have a twin."""
        return len({leak.test for leak in self.twins})


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
    sketches = _sketch_both(parts, with_sketch=settings.near != NEAR_OFF)
    keys: dict[str, tuple[Sequence[Hashable], Sequence[Hashable]]] = {
        SAME_FILE: (_files(pair.train, parts.train), _files(pair.test, test_rows)),
        "equal features": (sketches[0][1].digests, sketches[1][1].digests),
    }
    found = [leak for kind, both in keys.items() for leak in parts.equal(kind, *both)]
    near = None
    if settings.near != NEAR_OFF and len(parts.train) and len(test_rows):
        near = find_near(*sketches, None if isinstance(settings.near, str) else settings.near)
        found += parts.near(near)
    found = _surest(found)
    inside = [c for kind, both in keys.items() for c in parts.conflicts_inside(kind, both[0])]
    conflicts = {(c.first, c.second): c for c in [*parts.conflicts_across(found), *inside][::-1]}
    if pair.groups is not None:
        found += parts.equal(SAME_GROUP, *pair.groups.of(parts.train, test_rows))
    sure_first = tuple(conflicts.values())[::-1]
    return Leaks(pair, len(parts.train), len(test_rows), tuple(found), sure_first, near)


def find_copies(pair: Pair, drawable: NDArray[np.bool_], test_rows: NDArray[np.int64]) -> Leaks:
    """Compare the files of images alone; features are not read."""
    parts = _Parts(pair, np.flatnonzero(drawable).astype(np.int64), test_rows)
    files = _files(pair.train, parts.train), _files(pair.test, test_rows)
    found = parts.equal(SAME_FILE, *files)
    conflicts = [*parts.conflicts_across(found), *parts.conflicts_inside(SAME_FILE, files[0])]
    return Leaks(pair, len(parts.train), len(test_rows), tuple(found), tuple(conflicts))


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


def _files(cache: CacheLike, rows: NDArray[np.int64]) -> list[Hashable]:
    """Digest of each image; None, which equals nothing, where it is not known."""
    digests = np.asarray(cache.image_digests)[rows]
    return [row.tobytes() if row.any() else None for row in digests]


@dataclass(frozen=True)
class _Parts:
    """Two sets of rows, and what is found between them."""

    pair: Pair
    train: NDArray[np.int64]
    test: NDArray[np.int64]

    def equal(self, kind: str, train: Sequence[Hashable], test: Sequence[Hashable]) -> list[Leak]:
        """Pair every row whose key is in the other part with the first row that has it."""
        in_train, in_test = _first(train), _first(test)
        cosine = 1.0 if kind == "equal features" else None
        couples = {(in_train[key], j) for j, key in enumerate(test) if key in in_train}
        couples |= {(i, in_test[key]) for i, key in enumerate(train) if key in in_test}
        rows = [(int(self.train[i]), int(self.test[j])) for i, j in sorted(couples)]
        return [Leak(kind, i, j, cosine) for i, j in rows]

    def near(self, pairs: NearPairs) -> list[Leak]:
        columns = (self.train[pairs.train], self.test[pairs.test], pairs.cosine, pairs.ratio)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [Leak("near", *row) for row in rows]

    def conflicts_across(self, found: Iterable[Leak]) -> list[Conflict]:
        return [
            Conflict(leak.kind, ("train", leak.train), ("test", leak.test))
            for leak in found
            if self.pair.train.y[leak.train] != self.pair.test.y[leak.test]
        ]

    def conflicts_inside(self, kind: str, train: Sequence[Hashable]) -> list[Conflict]:
        first, labels = _first(train), np.asarray(self.pair.train.y)[self.train]
        return [
            Conflict(kind, ("train", int(self.train[first[key]])), ("train", int(self.train[i])))
            for i, key in enumerate(train)
            if key is not None and labels[i] != labels[first[key]]
        ]


def _first(keys: Sequence[Hashable]) -> dict[Hashable, int]:
    found: dict[Hashable, int] = {}
    for i, key in enumerate(keys):
        if key is not None:
            found.setdefault(key, i)
    return found


def _surest(found: list[Leak]) -> list[Leak]:
    """Keep a pair of rows once, and a near pair only where one of the two has no surer twin."""
    sure = [leak for leak in found if leak.kind != "near"]
    train, test = {leak.train for leak in sure}, {leak.test for leak in sure}
    near = [
        leak
        for leak in found
        if leak.kind == "near" and not (leak.train in train and leak.test in test)
    ]
    kept: dict[tuple[int, int], Leak] = {}
    for leak in [*sure, *near]:
        kept.setdefault((leak.train, leak.test), leak)
    return list(kept.values())


# 2: the images are part of the key, and the features were compared with their digests.
# 3: near twins are those of centred rows.
_VERSION = 3
_ARRAYS = ("train", "test", "cosine", "ratio")


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
    near = leaks.near
    return {
        "n_train": leaks.n_train,
        "n_test": leaks.n_test,
        "found": [list(astuple(leak)) for leak in leaks.found],
        "conflicts": [[c.kind, list(c.first), list(c.second)] for c in leaks.conflicts],
        "near": None
        if near is None
        else {
            **{name: getattr(near, name).tolist() for name in _ARRAYS},
            "rule": asdict(near.rule),
            "n_sketched": near.n_sketched,
        },
    }


def recall_leaks(record: dict[str, Any], pair: Pair) -> Leaks:
    """Rebuild what `record_leaks` wrote."""
    near = record["near"]
    if near is not None:
        near = NearPairs(
            train=np.array(near["train"], np.int64),
            test=np.array(near["test"], np.int64),
            cosine=np.array(near["cosine"], np.float64),
            ratio=np.array(near["ratio"], np.float64),
            rule=NearRule(**near["rule"]),
            n_sketched=near["n_sketched"],
        )
    return Leaks(
        pair,
        record["n_train"],
        record["n_test"],
        tuple(Leak(*values) for values in record["found"]),
        tuple(Conflict(kind, tuple(a), tuple(b)) for kind, a, b in record["conflicts"]),
        near,
    )
