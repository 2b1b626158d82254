"""What a search for leaks found, as plain values and back: the search reads all features."""

from __future__ import annotations

from dataclasses import asdict, astuple
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.evaluate.images import images_sha256
from featx.evaluate.leaks import Conflict, Leak, Leaks
from featx.evaluate.near import NearPairs, NearRule
from featx.evaluate.pairs import Pair
from featx.evaluate.settings import Settings
from featx.evaluate.views import ClassView
from featx.fewshot import subset_hash
from featx.fingerprint import fingerprint

__all__ = ["leaks_key", "recall_leaks", "record_leaks"]

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
