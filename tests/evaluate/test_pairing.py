"""Which caches belong together: of one data set, and of two."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from memory_cache import make_cache

from featx.errors import ProtocolError, UsageError
from featx.evaluate import Settings, cross_pairs, evaluate, pair_caches
from featx.evaluate.pairing import with_enough_images
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
    assert "3 of 45 test images have a copy among the 60 training images: 1 same file" in text
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


def test_train_and_test_of_the_same_data_and_network_are_a_pair():
    train, test = make_cache(), make_cache(split="test")
    other = {"source": {"content": "?"}, "weights": "v", "schema": 1}
    caches = [test, make_cache(identity=other), train, make_cache(split="test", data="zoo")]
    pairs, notices = pair_caches(caches)
    assert [(p.train, p.test) for p in pairs] == [(train, test)]
    assert len(notices) == 2
    assert any("farm" in n and "no split to test on, but train" in n for n in notices)
    assert any("zoo" in n and "no split train to fit on, but test" in n for n in notices)


def sampled(split, train, test, seed=0, **changes):
    """A cache of a run  --per-class TRAIN --test-per-class TEST."""
    sample = {"per_class": train, "test_per_class": test, "seed": seed}
    sample = None if train is test is None else sample
    cache = make_cache(split=split, sample=sample, **changes)
    own = train if split in ("train", "all") else test
    cache.fingerprint = f"{split} {own} {seed}"
    return cache


def couples(caches, test_split=None):
    pairs, _ = pair_caches(caches, test_split)
    return {(pair.train.fingerprint, pair.test.fingerprint) for pair in pairs}


def test_samples_pair_with_samples_only():
    pairs, notices = pair_caches([sampled("train", 5, 2), make_cache(split="test")])
    assert pairs == []
    assert len(notices) == 2
    assert couples([sampled("train", 5, 2), sampled("test", 5, 2, seed=1)]) == set()


@pytest.mark.parametrize(
    ("runs", "wanted"),
    [
        # The second run finds the test cache of the first, and leaves it as it is.
        ([(8, 5), (12, 5)], {(8, 5), (12, 5)}),
        ([(8, 5), (8, 9)], {(8, 5), (8, 9)}),
        ([(8, 5), (12, 5), (12, 7)], {(8, 5), (12, 5), (12, 7)}),
        ([(None, None), (8, None)], {(None, None), (8, None)}),
        ([(None, None), (8, 5)], {(None, None), (8, 5)}),
        ([(None, 5), (8, 5)], {(None, 5), (8, 5)}),
    ],
)
def test_caches_of_every_run_pair_though_a_later_run_found_one_there(runs, wanted):
    caches = {}
    for train, test in runs:
        for split in ("train", "test"):
            cache = sampled(split, train, test)
            caches.setdefault(cache.fingerprint, cache)
    found = couples(caches.values())
    assert found == {(f"train {train} 0", f"test {test} 0") for train, test in wanted}


def test_a_sample_that_is_too_small_is_left_out_where_another_is_not():
    pairs, _ = pair_caches([sampled("train", 8, 5), sampled("train", 12, 5), sampled("test", 8, 5)])
    kept, notices = with_enough_images(pairs, (4, 10, "all"))
    assert [pair.train.fingerprint for pair in kept] == ["train 12 0"]
    assert "fewer than 10 images" in notices[0]
    assert with_enough_images(pairs, (8,)) == (pairs, [])
    assert with_enough_images(pairs, ("all",)) == (pairs, [])
    ((largest,), _) = with_enough_images(pairs, (13,))  # the fit says what is missing
    assert largest.train.fingerprint == "train 12 0"
    assert with_enough_images([], (13,)) == ([], [])


def test_val_is_tested_on_where_there_is_no_test_and_left_for_choices_where_there_is():
    train, val, test = (make_cache(split=split) for split in ("train", "val", "test"))
    (pair,), notices = pair_caches([val, train])
    assert (pair.train, pair.test, notices) == (train, val, [])
    assert pair.data_name == "farm (val)"
    (result, *_) = evaluate(pair, Settings(C=1.0, per_class=(5,), repeats=1))
    assert result.data == "farm (val)"
    assert "tested on the split val" in result.notes
    (pair,), notices = pair_caches([val, test, train])
    assert (pair.train, pair.test, pair.data_name) == (train, test, "farm")
    assert "val" in notices[0]
    assert "left for choices" in notices[0]
    (pair,), _ = pair_caches([val, test, train], "validation")
    assert (pair.train, pair.test) == (train, val)


@pytest.mark.parametrize(
    ("splits", "test_split", "why"),
    [
        (["train"], None, "no split to test on, but train.*--test-folder.*--data.*--holdout"),
        (["val"], None, "no split train to fit on, but val"),
        (["test", "val"], None, "no split train"),
        (["train", "val"], "test", "no split test to test on, but train, val"),
        (["all"], "val", "no splits to test on"),
    ],
)
def test_what_is_missing_is_said_with_what_to_do(splits, test_split, why):
    pairs, notices = pair_caches([make_cache(split=split) for split in splits], test_split)
    assert pairs == []
    assert len(notices) == len(splits)
    assert re.search(why, notices[0])


def test_only_test_and_val_can_be_tested_on():
    with pytest.raises(UsageError, match="tested on test or on val"):
        pair_caches([make_cache()], "train")
    with pytest.raises(UsageError, match="tset.*test"):
        pair_caches([make_cache()], "tset")


def extracted(train, test, made=("train", "test")):
    """Caches of a run over images that are called by two words."""
    contents = {"train": train, "test": test}
    splits = {name: {"listed": f"names of {contents[name]}", "n_images": 9} for name in contents}
    for name in made:
        splits[name]["content"] = contents[name]
    caches = {}
    for name in made:
        identity = {"source": {"content": contents[name]}, "weights": "w", "schema": 1}
        caches[name] = make_cache(split=name, identity=identity, splits=splits, created="today")
        caches[name].fingerprint = contents[name]
    return caches


OLD = {name: make_cache(split=name) for name in ("train", "test")}


@pytest.mark.parametrize(
    ("caches", "is_told"),
    [
        (extracted("t", "e"), False),
        (extracted("t", "e") | extracted("T", "E", ["train"]), True),  # in the middle of a run
        ({**extracted("t", "e"), "train": extracted("T", "E")["train"]}, True),
        ({**extracted("t", "e"), "test": extracted("T", "E")["test"]}, True),
        ({**extracted("t", "e"), "train": extracted("T", "e")["train"]}, False),  # new train images
        ({**extracted("t", "e"), "test": extracted("t", "E")["test"]}, False),
        ({"train": extracted("t", "e")["train"], "test": OLD["test"]}, True),
        ({"train": OLD["train"], "test": extracted("t", "e")["test"]}, True),
        (OLD, False),  # of a version that recorded nothing
        (extracted("t", "e", ["train"]) | extracted("t", "e", ["test"]), False),
        (extracted("T", "E", ["train"]) | extracted("t", "e", ["test"]), True),
        ({**extracted("t", "e"), **extracted("T", "e", ["train"])}, False),  # --split train
        ({**extracted("t", "e"), **extracted("T", "E", ["train"])}, True),
    ],
)
def test_caches_of_two_states_of_the_data_are_told(caches, is_told):
    (pair,), _ = pair_caches(caches.values())
    assert bool(pair.notices) == is_told
    if is_told:
        assert "not of one state of the data" in pair.notices[0]
        assert "beside 9 images of" in pair.notices[0]
        result = evaluate(pair, Settings(C=1.0, per_class=(5,), repeats=1))[0]
        assert pair.notices[0] in result.notes


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
    caches = [make_cache(split=split) for split in ("train", "test", "unlabeled")]
    pairs, notices = pair_caches(caches)
    assert len(pairs) == 1
    assert "split 'unlabeled' is not used" in notices[0]


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


@pytest.mark.parametrize("odd", ["a tenth", 3, [1], {"test": 5}])
def test_records_of_other_programs_do_not_end_the_search(odd):
    caches = [make_cache(split=split, sample=odd, splits=odd) for split in ("train", "test")]
    pairs, notices = pair_caches(caches)
    assert (len(pairs), notices) == (1, [])
    assert pairs[0].notices == ()
