"""The hash of images and classes is that of sorted entries, however many there are."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featx.sources import base
from featx.sources.base import content_of


def oracle(digests: np.ndarray, labels: np.ndarray, class_names: list[str]) -> str:
    names = [name.encode("utf-8", "surrogatepass") for name in (*class_names, "")]
    state = hashlib.sha256(b"featx content 1\n")
    for digest, name in sorted((bytes(d), names[k]) for d, k in zip(digests, labels, strict=True)):
        state.update(digest + len(name).to_bytes(4, "little") + name)
    return state.hexdigest()


# Few different bytes, so that digests are equal or differ late.
@given(
    rows=st.lists(st.tuples(st.sampled_from([0, 1, 127, 128, 255]), st.integers(0, 31))),
    names=st.lists(st.text(st.characters(), max_size=3), min_size=1, max_size=5),
    data=st.data(),
)
def test_the_content_is_that_of_the_sorted_entries(rows, names, data):
    digests = np.full((len(rows), 32), 7, np.uint8)
    for i, (byte, place) in enumerate(rows):
        digests[i, place] = byte
    label = st.integers(-1, len(names) - 1)
    size = len(rows)
    labels = np.array(data.draw(st.lists(label, min_size=size, max_size=size)), np.int64)
    assert content_of(digests, labels, names) == oracle(digests, labels, names)


def test_more_rows_than_are_hashed_at_once(monkeypatch):
    monkeypatch.setattr(base, "_ROWS_PER_PIECE", 7)
    rng = np.random.default_rng(0)
    digests, labels = rng.integers(0, 256, (50, 32), np.uint8), rng.integers(-1, 3, 50)
    names = ["b", "a", "élan"]
    assert content_of(digests, labels, names) == oracle(digests, labels, names)
