"""Fit on one data set, test on another."""

from __future__ import annotations

import io

import numpy as np
import pytest
from memory_cache import make_cache

from featx.errors import ProtocolError, UsageError
from featx.evaluate import Settings, cross_pairs, evaluate
from featx.progress import Reporter
from featx.sources.select import ClassChoice

EVERYTHING = ClassChoice()


def farm(split="train", **changes):
    return make_cache(60, split=split, **changes)


def zoo(split="test", names=("bee", "ant", "cow"), **changes):
    """The classes of the farm, in another order of labels."""
    cache = make_cache(45, split=split, seed=5, **{"data": "zoo", **changes})
    table = np.array([1, 0, 2])
    cache.y, cache.class_names = table[cache.y], list(names)
    cache.fingerprint = f"zoo-{cache.fingerprint}-{changes.get('input_size', '')}"
    return cache


def run(pair, **settings):
    stream = io.StringIO()
    chosen = Settings(**{"per_class": ("all",), "C": 0.01, **settings})
    results = evaluate(pair, chosen, reporter=Reporter(quiet=True, stream=stream))
    return results, stream.getvalue()


def test_labels_are_aligned_by_name():
    (pair,), notices = cross_pairs([zoo(), farm()], "farm", "zoo", EVERYTHING)
    assert notices == []
    assert pair.train.class_names == pair.test.class_names == ["ant", "bee", "cow"]
    assert np.array_equal(pair.test.y, np.arange(45) % 3)
    (result,), _ = run(pair)
    assert result.data == "farm -> zoo"
    assert result.acc1 > 0.8  # by the wrong labels it would be below 0.4
    assert (result.n_train, result.n_test) == (60, 45)
    assert (result.train_fingerprint, result.test_fingerprint) == (
        "train-w-0",
        "zoo-test-w-5-",
    )


def test_classes_of_either_side_are_left_out_and_told():
    """CIFAR-10 without frog, STL-10 without monkey, automobile = car; in small."""
    train = farm()
    train.class_names = ["automobile", "frog", "ship"]
    test = zoo(names=("monkey", "car", "ship"))
    choice = ClassChoice(rename={"automobile": "car"})
    (pair,), _ = cross_pairs([train, test], "farm", "zoo", choice)
    assert pair.train.class_names == pair.test.class_names == ["car", "ship"]
    assert pair.notices == (
        "2 shared classes, left out: frog (only in farm), monkey (only in zoo)",
    )
    (result,), text = run(pair)
    assert "left out: frog (only in farm), monkey (only in zoo)" in text
    assert "unusable" not in text
    assert (result.n_train, result.n_test) == (40, 30)
    assert set(train.y[result.detail["train_rows"]]) == {0, 2}
    assert result.detail["classes"]["test"]["left_out"] == ["monkey"]


def test_chosen_classes_and_their_order():
    choice = ClassChoice(keep=("cow", "ant"))
    (pair,), _ = cross_pairs([farm(), zoo()], "farm", "zoo", choice)
    assert pair.test.class_names == ["cow", "ant"]
    assert pair.data == "farm -> zoo +cow +ant"
    assert pair.notices == ("2 shared classes",)
    (pair,), _ = cross_pairs([farm(), zoo()], "farm", "zoo", ClassChoice(drop=("bee",)))
    assert pair.train.class_names == ["ant", "cow"]


def test_fewer_than_two_shared_classes_list_both():
    with pytest.raises(ProtocolError) as caught:
        cross_pairs([farm(), zoo(names=("x", "ant", "y"))], "farm", "zoo", EVERYTHING)
    for words in ("share 1 of", "farm has ant, bee, cow", "zoo has x, ant, y", "--map OLD=NEW"):
        assert words in str(caught.value)


def test_a_class_that_neither_has_is_an_error():
    with pytest.raises(UsageError, match="--drop: there is no class 'bea'"):
        cross_pairs([farm(), zoo()], "farm", "zoo", ClassChoice(drop=("bea",)))


def test_other_input_sizes_are_told_where_the_features_fit():
    identity = {"source": {"content": "z"}, "weights": "w", "schema": 1, "input_size": 96}
    test = zoo(input_size=96, identity=identity)
    (pair,), _ = cross_pairs([farm(), test], "farm", "zoo", EVERYTHING)
    assert pair.notices[1] == (
        "the features were made differently (train and test): input_size None and 96"
    )
    (result,), text = run(pair)
    assert "made differently" in text
    assert "made differently" in result.notes


def test_a_partner_made_alike_is_preferred():
    identity = {"source": {"content": "z"}, "weights": "w", "schema": 1, "input_size": 96}
    both = [zoo(input_size=96, identity=identity), zoo()]
    (pair,), _ = cross_pairs([farm(), *both], "farm", "zoo", EVERYTHING)
    assert pair.test.base is both[1]


def test_other_feature_sizes_are_an_error_with_both_sizes():
    with pytest.raises(ProtocolError) as caught:
        cross_pairs([farm(), zoo(d=50, input_size=16)], "farm", "zoo", EVERYTHING)
    for words in (
        "100 features (input size 32)",
        "50 (input size 16)",
        "--input-size 32",
        "--pool",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize("change", [{"layer": "x"}, {"pool": "avg"}, {"backbone": "other"}])
def test_other_points_of_the_network_are_no_partners(change):
    with pytest.raises(ProtocolError, match="zoo has no cache with these weights"):
        cross_pairs([farm(), zoo(**change)], "farm", "zoo", EVERYTHING)


def test_other_weights_are_no_partners():
    identity = {"source": {"content": "z"}, "weights": "v", "schema": 1}
    with pytest.raises(ProtocolError, match="no cache with these weights"):
        cross_pairs([farm(), zoo(identity=identity)], "farm", "zoo", EVERYTHING)


def test_one_without_partner_is_told_beside_one_with():
    alone = farm(layer="first")
    alone.fingerprint = "alone"
    pairs, notices = cross_pairs([farm(), alone, zoo()], "farm", "zoo", EVERYTHING)
    assert len(pairs) == 1
    assert "first" in notices[0]


def test_whole_data_sets_stand_in_for_splits():
    (pair,), _ = cross_pairs([farm("all"), zoo("all")], "farm", "zoo", EVERYTHING)
    assert not pair.is_holdout
    (pair,), _ = cross_pairs([farm("all"), farm(), zoo("all"), zoo()], "farm", "zoo", EVERYTHING)
    assert (pair.train.meta["split"], pair.test.meta["split"]) == ("train", "test")
    with pytest.raises(ProtocolError, match="no finished cache of 'zoo', split 'test'.*has train"):
        cross_pairs([farm(), zoo("train")], "farm", "zoo", EVERYTHING)


def test_one_cache_on_both_sides_is_held_out_from():
    whole = farm("all")
    (pair,), _ = cross_pairs([whole], "farm", "farm", EVERYTHING)
    assert pair.is_holdout
    (result,), _ = run(pair)
    assert not set(result.detail["train_rows"]) & set(result.detail["test_rows"])


def test_the_same_images_under_two_names_are_refused():
    twin = zoo()
    twin.fingerprint = farm().fingerprint
    with pytest.raises(ProtocolError, match="the same images"):
        cross_pairs([farm(), twin], "farm", "zoo", EVERYTHING)


def test_leaks_are_sought_across_data_sets():
    train, test = farm(), zoo()
    test.X[[3, 4]] = train.X[[6, 7]]
    test.image_digests[8] = train.image_digests[9] = 7
    (pair,), _ = cross_pairs([train, test], "farm", "zoo", EVERYTHING)
    results, text = run(pair, on_leak="drop")
    assert "3 of 45 test images have a twin among the 60 training images: 1 same file" in text
    assert not {6, 7, 9} & set(results[0].detail["train_rows"])


def test_a_class_without_an_image_on_one_side_is_left_out():
    test = zoo()
    test.y[test.y == 0] = -1  # bees
    (pair,), _ = cross_pairs([farm(), test], "farm", "zoo", EVERYTHING)
    assert pair.train.class_names == ["ant", "cow"]
    assert pair.notices == ("2 shared classes, left out: bee (only in farm)",)
    (result,), _ = run(pair)
    assert (result.n_train, result.n_test) == (40, 30)
    train = farm()
    train.status[train.y == 2] = 2
    (pair,), _ = cross_pairs([train, zoo()], "farm", "zoo", EVERYTHING)
    assert pair.notices == ("2 shared classes, left out: cow (only in zoo)",)


def test_the_other_data_are_tested_on_val_where_there_is_no_test_or_it_is_asked_for():
    (pair,), _ = cross_pairs([farm(), zoo("val")], "farm", "zoo", EVERYTHING)
    assert pair.data_name == "farm -> zoo (val)"
    both = [farm(), zoo("val"), zoo("test")]
    (pair,), _ = cross_pairs(both, "farm", "zoo", EVERYTHING)
    assert (pair.tested, pair.data_name) == ("test", "farm -> zoo")
    (pair,), _ = cross_pairs(both, "farm", "zoo", EVERYTHING, "dev")
    assert pair.tested == "val"
    with pytest.raises(ProtocolError, match="no finished cache of 'zoo', split 'val'"):
        cross_pairs([farm(), zoo("test")], "farm", "zoo", EVERYTHING, "val")
