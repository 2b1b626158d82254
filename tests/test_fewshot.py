"""Draws are stratified, nested, seeded and never change silently."""

from __future__ import annotations

import hashlib
import itertools
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from featx.errors import ProtocolError, UsageError
from featx.fewshot import draw_subset, draw_subsets, name_images, split_holdout, subset_hash

TWENTY = [0, 1] * 10
PINNED_DRAW = [6, 11, 13, 14, 15, 18]
PINNED_HOLDOUT = [1, 6, 10, 19]


def test_a_draw_never_changes():
    """Literal rows: every subset hash in every report depends on them."""
    assert draw_subset(TWENTY, 3, seed=0).tolist() == [3, 4, 7, 8, 12, 19]
    assert split_holdout(TWENTY, 0.2, seed=0)[1].tolist() == [2, 5, 10, 15]
    images = [b"image %d" % row for row in range(20)]
    named = {"seed": 0, "class_names": ["cat", "dog"], "images": images}
    assert draw_subset(TWENTY, 3, **named).tolist() == PINNED_DRAW
    assert split_holdout(TWENTY, 0.2, **named)[1].tolist() == PINNED_HOLDOUT
    assert subset_hash([1, 2]) == hashlib.sha256(struct.pack("<qq", 1, 2)).hexdigest()


def drawn_images(y, k, class_names, images, seed=0, draw=draw_subset):
    """Images of each class, whatever rows they are in."""
    rows = draw(np.array(y), k, seed=seed, class_names=class_names, images=images)
    rows = rows if draw is draw_subset else rows[1]
    return {
        name: sorted(images[row] for row in rows if class_names[y[row]] == name)
        for name in class_names
    }


@pytest.mark.parametrize("draw", [draw_subset, split_holdout])
def test_a_draw_of_images_depends_neither_on_other_classes_nor_on_any_order(draw):
    rng = np.random.default_rng(0)
    y, names = np.repeat([0, 1, 2], 30), ["ant", "bee", "cow"]
    # Six images of a class are one file each twice: they are told apart by counting.
    images = [b"%d" % (row if row % 30 > 11 else row // 2) for row in range(90)]
    size = 7 if draw is draw_subset else 0.3
    whole = drawn_images(y, size, names, images, draw=draw)
    shuffled = rng.permutation(90)
    again = [images[row] for row in shuffled]
    assert drawn_images(y[shuffled], size, names, again, draw=draw) == whole
    other = np.array([2, 0, 1])  # the same classes by other numbers
    assert drawn_images(other[y], size, ["bee", "cow", "ant"], images, draw=draw) == whole
    alone = drawn_images(y[30:] - 1, size, names[1:], images[30:], draw=draw)
    assert alone == {name: whole[name] for name in names[1:]}
    assert drawn_images(y, size, names, images, seed=1, draw=draw) != whole


def test_the_order_of_a_class_is_that_of_a_hash_of_seed_class_and_image():
    """By the formula of the docstring, with hashlib."""
    images = [b"a", b"b", b"a", b"c", b"d", b"a"]

    def key(name, count, image):
        start = json.dumps([2, 0, 5, name]).encode()
        return hashlib.sha256(start + b" %d " % count + image).digest()

    counts = [1, 1, 2, 1, 1, 3]
    keys = [key("é", count, image) for count, image in zip(counts, images, strict=True)]
    for k in range(1, 7):
        drawn = draw_subset([0] * 6, k, seed=5, class_names=["e\u0301"], images=images)
        assert drawn.tolist() == sorted(np.argsort(keys)[:k].tolist())


@given(st.lists(st.integers(0, 5), min_size=8, max_size=60), st.integers(0, 99))
def test_draws_of_images_are_nested_and_of_the_wanted_size(content, seed):
    y = np.arange(len(content)) % 2
    images = [b"%d" % number for number in content]
    sizes = range(1, len(content) // 2)
    sets = draw_subsets(y, sizes, seed=seed, class_names=["cat", "dog"], images=images)
    for k, rows in zip(sizes, sets, strict=True):
        assert np.bincount(y[rows]).tolist() == [k, k]
        one = draw_subset(y, k, seed=seed, class_names=["cat", "dog"], images=images)
        assert np.array_equal(rows, one)
    assert all(set(few) < set(more) for few, more in itertools.pairwise(sets))


def test_every_image_is_drawn_as_often_as_the_others():
    images = [b"%d" % row for row in range(40)]
    n = np.zeros(40)
    for seed in range(2000):
        n[draw_subset([0] * 40, 10, seed=seed, class_names=["cat"], images=images)] += 1
    # 2,000 draws of a quarter: 500 each with a deviation of 19.4.
    assert abs(n - 500).max() < 5 * 19.4
    assert 0.5 < n.std() / 19.4 < 1.6


def test_images_are_named_by_digest_and_by_path_where_it_is_unknown():
    digests = np.zeros((3, 32), np.uint8)
    digests[1] = 7
    digests[2, 0] = 1  # most of it zeros
    names = name_images(digests, ["a/1.png", "a/2.png", "a/3.png"])
    assert names == [b"a/1.png", b"\x07" * 32, b"\x01" + bytes(31)]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_held_out_groups_depend_on_their_names_and_not_on_any_order(order):
    rng = np.random.default_rng(1)
    y, groups = rng.integers(0, 3, 200), rng.choice(["x", "y", "z", "v", "w", "u", "t"], 200)
    images = [b"%d" % row for row in range(200)]
    names = ["ant", "bee", "cow"]

    def held(y, names, rows):
        given = [images[row] for row in rows]
        _, test = split_holdout(
            y[rows], 0.3, seed=3, groups=groups[rows], class_names=names, images=given
        )
        return {*groups[rows][test]}

    usual = held(y, names, np.arange(200))
    renumbered = np.argsort(order)[y]
    assert held(renumbered, [names[i] for i in order], rng.permutation(200)) == usual


labels = st.lists(st.integers(-1, 4), min_size=1, max_size=120)


@given(labels, st.integers(0, 2**40), st.data())
def test_draws_are_stratified_and_nested(y, seed, data):
    y = np.array(y)
    counts = np.array([np.sum(y == c) for c in np.unique(y[y >= 0])])
    if not counts.size:
        assert draw_subset(y, None, seed=seed).size == 0
        return
    large = data.draw(st.integers(1, int(counts.min())))
    small = data.draw(st.integers(1, large))
    few, many = draw_subset(y, small, seed=seed), draw_subset(y, large, seed=seed)
    assert set(few) <= set(many) <= set(draw_subset(y, None, seed=seed))
    for rows, k in ((few, small), (many, large)):
        assert rows.dtype == np.int64
        assert np.array_equal(rows, np.unique(rows))
        assert (np.bincount(y[rows])[np.unique(y[rows])] == k).all()
        assert set(y[rows]) == set(y[y >= 0])


@given(labels, st.integers(0, 99))
def test_a_class_does_not_depend_on_the_others(y, seed):
    y = np.array([*y, 2, 2, 2])
    alone = np.where(y == 2, 2, -1)
    drawn = draw_subset(np.where(y >= 0, y, -1), 1, seed=seed)
    assert draw_subset(alone, 1, seed=seed)[0] in drawn


@given(labels, st.floats(0.01, 0.99), st.integers(0, 99))
def test_a_holdout_shares_nothing_and_keeps_every_class_on_both_sides(y, fraction, seed):
    y = np.array([*y, *range(5), *range(5)])
    train, test = split_holdout(y, fraction, seed=seed)
    assert not set(train) & set(test)
    assert set(train) | set(test) == set(np.flatnonzero(y >= 0))
    assert set(y[train]) == set(y[test]) == set(range(5))


def test_other_seeds_draw_other_rows():
    y = np.zeros(1000, dtype=int)
    assert draw_subset(y, 100, seed=0).tolist() != draw_subset(y, 100, seed=1).tolist()
    assert draw_subset(y, 200, seed=0).tolist() != split_holdout(y, 0.2, seed=0)[1].tolist()


def test_invalid_rows_are_not_drawn():
    valid = np.arange(20) >= 10
    assert draw_subset(TWENTY, None, seed=0, valid=valid).tolist() == list(range(10, 20))
    assert draw_subset(TWENTY, 5, seed=0, valid=valid).min() >= 10
    train, test = split_holdout(TWENTY, 0.5, seed=0, valid=valid)
    assert min(train.min(), test.min()) >= 10


def test_too_few_rows_name_the_class_the_count_and_what_works():
    with pytest.raises(ProtocolError, match="'dog' has 3 usable .* the 4 .* works is 3"):
        draw_subset([0, 0, 0, 0, 1, 1, 1], 4, seed=0, class_names=["cat", "dog"])
    with pytest.raises(ProtocolError, match="'dog' has 0 usable"):
        draw_subset([0, 0], 1, seed=0, class_names=["cat", "dog"])
    with pytest.raises(ProtocolError, match="class 1 has 0"):
        draw_subset([0, 1], 1, seed=0, valid=[True, False])
    with pytest.raises(ProtocolError, match="no labelled"):
        draw_subset([-1, -1], 1, seed=0)
    with pytest.raises(ProtocolError, match="single usable"):
        split_holdout([0, 0, 1], 0.5, seed=0)


@pytest.mark.parametrize(
    ("k", "seed", "text"), [(0, 0, "per_class is 0"), (-3, 0, "-3"), (1, -1, "seed is -1")]
)
def test_wrong_numbers(k, seed, text):
    with pytest.raises(UsageError, match=text):
        draw_subset([0, 1], k, seed=seed)


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 2])
def test_wrong_fractions(fraction):
    with pytest.raises(UsageError, match="fraction"):
        split_holdout([0, 0], fraction, seed=0)


grouped = st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 15)), max_size=150)


@given(grouped, st.floats(0.05, 0.8), st.integers(0, 99))
def test_no_group_is_on_both_sides_of_a_holdout(rows, fraction, seed):
    """Two groups of a single class each make a split possible."""
    y = np.array([label for label, _ in rows] + [0, 1, 2, 0, 1, 2])
    groups = np.array([group for _, group in rows] + [20, 21, 22, 23, 24, 25])
    train, test = split_holdout(y, fraction, seed=seed, groups=groups)
    assert not set(groups[train]) & set(groups[test])
    assert sorted([*train, *test]) == np.flatnonzero(y >= 0).tolist()
    assert set(y[train]) == set(y[test]) == {0, 1, 2}
    again = split_holdout(y, fraction, seed=seed, groups=groups)
    assert np.array_equal(train, again[0])


@pytest.mark.parametrize("seed", range(8))
def test_shares_of_a_grouped_holdout_are_as_good_as_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 60, 900)
    y = rng.integers(0, 4, 60)[groups] if seed % 2 else rng.integers(0, 4, 900)

    def worst(test):
        shares = [np.mean(np.isin(np.flatnonzero(y == c), test)) for c in range(4)]
        return max(abs(share - 0.2) for share in shares)

    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    theirs = [worst(test) for _, test in splitter.split(y, y, groups)]
    ours = worst(split_holdout(y, 0.2, seed=seed, groups=groups)[1])
    assert ours <= max(0.04, np.median(theirs))


def test_groups_of_one_row_are_held_out_at_the_usual_share():
    y = np.repeat([0, 1, 2], 100)
    _, test = split_holdout(y, 0.2, seed=0, groups=np.arange(300))
    assert np.bincount(y[test]).tolist() == [20, 20, 20]


def test_a_class_in_one_group_cannot_be_held_out():
    with pytest.raises(ProtocolError, match="class 1 are in one group"):
        split_holdout([0, 0, 1, 1], 0.5, seed=0, groups=[0, 1, 2, 2])
    with pytest.raises(ProtocolError, match="cannot be on both sides"):
        # Of each two of three groups, one would have to be held out.
        split_holdout([0, 0, 1, 1, 2, 2], 0.5, seed=0, groups=[0, 1, 0, 2, 1, 2])
