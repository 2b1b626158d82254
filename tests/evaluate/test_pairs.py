"""Which caches belong together."""

from __future__ import annotations

import numpy as np
import pytest
from memory_cache import make_cache

from featx.errors import ProtocolError
from featx.evaluate import pair_caches


def test_train_and_test_of_the_same_data_and_network_are_a_pair():
    train, test = make_cache(), make_cache(split="test")
    other = {"source": {"content": "?"}, "weights": "v", "schema": 1}
    caches = [test, make_cache(identity=other), train, make_cache(split="test", data="zoo")]
    pairs, notices = pair_caches(caches)
    assert [(p.train, p.test) for p in pairs] == [(train, test)]
    assert len(notices) == 2
    assert any("farm" in n and "no cache of its test split" in n for n in notices)
    assert any("zoo" in n and "no cache of its train split" in n for n in notices)


def test_samples_pair_with_samples_only():
    sample = {"per_class": 5, "test_per_class": 2, "seed": 0}
    pairs, notices = pair_caches([make_cache(sample=sample), make_cache(split="test")])
    assert pairs == []
    assert len(notices) == 2


def test_a_cache_without_splits_holds_test_rows_out():
    whole = make_cache(split="all")
    (pair,), notices = pair_caches([whole])
    assert notices == []
    assert pair.is_holdout
    whole.status[0] = 2
    drawable, test_rows = pair.split(0.2, 0)
    assert not drawable[test_rows].any()
    assert not drawable[0]
    assert drawable.sum() + len(test_rows) == 59
    assert (np.bincount(whole.y[test_rows]) == 4).all()


def test_other_splits_are_not_used():
    pairs, notices = pair_caches([make_cache(split="val")])
    assert pairs == []
    assert "split 'val' is not used" in notices[0]


def test_partners_that_cannot_be_compared():
    train, test = make_cache(), make_cache(split="test")
    test.class_names = ["ant", "bee", "dog"]
    with pytest.raises(ProtocolError, match="different classes .cow, dog"):
        pair_caches([train, test])
    test.class_names = ["bee", "ant", "cow"]
    with pytest.raises(ProtocolError, match="order differs"):
        pair_caches([train, test])
    test = make_cache(d=50, split="test")
    with pytest.raises(ProtocolError, match="100 features"):
        pair_caches([train, test])
    test = make_cache(split="test")
    test.fingerprint = train.fingerprint
    with pytest.raises(ProtocolError, match="the same images"):
        pair_caches([train, test])


def test_two_candidates_are_an_error_and_one_file_twice_is_not():
    first, second = make_cache(), make_cache(seed=1)
    with pytest.raises(ProtocolError, match="two caches are the train split"):
        pair_caches([first, second, make_cache(split="test")])
    assert len(pair_caches([first, first, make_cache(split="test")])[0]) == 1
