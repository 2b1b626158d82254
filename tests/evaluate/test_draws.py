"""Subsets of all draws, and what they share."""

from __future__ import annotations

import numpy as np
from memory_cache import make_cache

from featx.evaluate import Settings
from featx.evaluate.draws import Subset, draw_all, share_reads, union_of
from featx.fewshot import draw_subset, name_images, subset_hash


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
