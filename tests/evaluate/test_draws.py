"""Subsets of all draws, and what they share."""

from __future__ import annotations

import io

import numpy as np
import pytest
from memory_cache import make_cache

from featx.errors import ProtocolError
from featx.evaluate import Pair, Settings, choose_classes, evaluate
from featx.evaluate.pair import ClassView
from featx.evaluate.question import Subset, draw_all, share_reads, union_of
from featx.fewshot import draw_subset, name_images, subset_hash
from featx.progress import Reporter
from featx.sources.select import ClassChoice


def test_draw_r_has_the_seed_plus_r_and_sizes_are_nested():
    cache = make_cache()
    settings = Settings(per_class=(3, 8), repeats=2, seed=5)
    subsets, notices = draw_all(cache, np.ones(60, bool), settings)
    assert [(s.per_class, s.repeat, s.seed) for s in subsets] == [
        (3, 0, 5),
        (8, 0, 5),
        (3, 1, 6),
        (8, 1, 6),
    ]
    images = name_images(cache.image_digests, cache.paths)
    alone = draw_subset(cache.y, 3, seed=6, class_names=cache.class_names, images=images)
    assert subsets[2].rows.tolist() == alone.tolist()
    assert set(subsets[0].rows) < set(subsets[1].rows)
    assert subsets[0].sha256 == subset_hash(subsets[0].rows)
    assert notices == []


def test_equal_draws_are_fitted_once():
    settings = Settings(per_class=(20, "all"), repeats=4)
    subsets, notices = draw_all(make_cache(), np.ones(60, bool), settings)
    assert [(s.per_class, s.repeat) for s in subsets] == [(20, 0), ("all", 0)]
    assert notices == [
        "20 per class is all there is: 4 draws would be the same one, which is fitted once"
    ]


def subset(repeat, rows):
    return Subset(1, repeat, repeat, np.array(rows))


def test_overlapping_draws_share_a_gram_matrix_and_separate_ones_do_not():
    overlapping = [subset(0, [1, 2, 3, 4]), subset(1, [1, 2, 3, 5])]
    assert share_reads(overlapping) == [overlapping]
    apart = [subset(0, [1, 2]), subset(0, [1]), subset(1, [3, 4])]
    assert share_reads(apart) == [apart[:2], apart[2:]]
    assert union_of(apart).tolist() == [1, 2, 3, 4]


def told(pair, **settings):
    stream = io.StringIO()
    chosen = Settings(**{"C": 0.01, "repeats": 1, **settings})
    results = evaluate(pair, chosen, reporter=Reporter(quiet=True, stream=stream))
    return results, stream.getvalue()


@pytest.mark.parametrize("per_class", [5, "all"])
def test_a_tested_class_without_a_training_image_is_refused(per_class):
    train, test = make_cache(), make_cache(45, split="test")
    train.y[train.y == 1] = -1
    with pytest.raises(ProtocolError, match=r"1 of 3 tested classes .*bee.*--drop bee"):
        told(Pair(train, test), per_class=(per_class,))
    (result,), _ = told(
        choose_classes(Pair(train, test), ClassChoice(drop=("bee",))), per_class=(per_class,)
    )
    assert result.n_test == 30


def test_images_that_failed_or_were_dropped_as_leaks_are_no_training_images():
    train, test = make_cache(), make_cache(45, split="test")
    train.status[train.y == 2] = 2
    with pytest.raises(ProtocolError, match="cow"):
        told(Pair(train, test), per_class=("all",))
    train, test = make_cache(), make_cache(45, split="test")
    cows = np.flatnonzero(train.y == 2)
    test.image_digests[2] = 7
    train.image_digests[cows] = 7
    with pytest.raises(ProtocolError, match="cow"):
        told(Pair(train, test), per_class=("all",), on_leak="drop", near="off")


@pytest.mark.parametrize("per_class", [5, "all"])
def test_classes_that_are_never_tested_are_told_and_noted(per_class):
    train, test = make_cache(), make_cache(45, split="test")
    test.y[test.y == 1] = -1
    (result,), text = told(Pair(train, test), per_class=(per_class,))
    assert "1 of 3 classes have no test image" in text
    assert "of the other 2: bee" in text
    assert "never tested" in result.notes
    right = np.array(result.detail["predictions"]) == result.detail["test_labels"]
    assert result.acc1 == right.mean()
    assert result.n_test == 30


def test_a_class_that_is_on_no_side_is_no_error_for_all():
    train, test = make_cache(), make_cache(45, split="test")
    train.class_names = test.class_names = ["ant", "bee", "cow", "dog"]
    (result,), text = told(Pair(train, test), per_class=("all",))
    assert "dog" not in text
    assert result.n_train == 60


def rows_of(cache, **settings):
    subsets, _ = draw_all(cache, cache.status == 1, Settings(repeats=3, **settings))
    return [{cache.image_digests[row].tobytes() for row in subset.rows} for subset in subsets]


def test_a_draw_of_a_class_does_not_change_with_the_others_their_order_or_failed_rows():
    """Ships are the same ones without airplanes, in another order and beside failed rows."""
    cache = make_cache(120)
    rng = np.random.default_rng(0)
    cache.image_digests = rng.integers(0, 256, (120, 32), np.uint8)
    cows = {cache.image_digests[row].tobytes() for row in np.flatnonzero(cache.y == 2)}
    whole = rows_of(cache, per_class=(4, 9))
    fewer = rows_of(ClassView(cache, ClassChoice(drop=("ant",))), per_class=(4, 9))
    turned = rows_of(ClassView(cache, ClassChoice(keep=("cow", "bee"))), per_class=(4, 9))
    assert [rows & cows for rows in whole] == [rows & cows for rows in fewer]
    assert fewer == turned
    assert whole[0] & cows < whole[1] & cows
    order = rng.permutation(120)
    other = make_cache(120)
    other.y, other.image_digests = cache.y[order], cache.image_digests[order]
    assert rows_of(other, per_class=(4, 9)) == whole
    cache.status[np.flatnonzero(cache.y == 0)[:20]] = 2
    assert [rows & cows for rows in rows_of(cache, per_class=(4, 9))] == [
        rows & cows for rows in whole
    ]
