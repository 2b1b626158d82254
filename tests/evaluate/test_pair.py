"""The rows of a pair: classes chosen at the fit, and which images they are."""

from __future__ import annotations

import io

import numpy as np
import pytest
from memory_cache import make_cache

from featx.errors import UsageError
from featx.evaluate import Pair, Settings, choose_classes, evaluate
from featx.evaluate.pair import ClassView, count_unusable, describe, images_sha256
from featx.progress import Reporter
from featx.sources.select import ClassChoice


def run(pair, **settings):
    stream = io.StringIO()
    chosen = Settings(**{"per_class": (5,), "repeats": 1, "C": 0.01, **settings})
    results = evaluate(pair, chosen, reporter=Reporter(quiet=True, stream=stream))
    return results, stream.getvalue()


def test_a_dropped_class_is_neither_fitted_nor_tested(pair):
    chosen = choose_classes(pair, ClassChoice(drop=("bee",)))
    (result,), text = run(chosen, per_class=("all",))
    assert result.n_train == 40
    assert result.n_test == 30
    assert not set(pair.train.y[result.detail["train_rows"]]) & {1}
    assert not set(pair.test.y[result.detail["test_rows"]]) & {1}
    assert result.detail["class_names"] == ["ant", "cow"]
    assert "2 classes of 3, left out: bee" in text
    assert "unusable" not in text
    assert result.data == "farm -bee"
    assert "2 classes of 3, left out: bee" in result.notes
    assert result.detail["classes"]["train"]["left_out"] == ["bee"]


def test_it_equals_a_fit_on_a_cache_that_never_had_the_class(pair):
    chosen = choose_classes(pair, ClassChoice(drop=("ant",)))
    (result,), _ = run(chosen, per_class=("all",))
    parts = []
    for cache, n in ((make_cache(), 60), (make_cache(45, split="test"), 45)):
        keep = np.arange(n) % 3 > 0
        cache.X, cache.y = cache.X[keep], cache.y[keep] - 1
        cache.status, cache.class_names = cache.status[keep], ["bee", "cow"]
        cache.image_digests, cache.paths = cache.image_digests[keep], cache.paths[: keep.sum()]
        parts.append(cache)
    (plain,), _ = run(Pair(*parts), per_class=("all",))
    assert result.acc1 == plain.acc1
    assert result.detail["confusion_matrix"] == plain.detail["confusion_matrix"]
    assert result.fit_id != plain.fit_id


def test_classes_are_merged_and_ordered(pair):
    choice = ClassChoice(keep=("pet", "bee"), rename={"ant": "pet", "cow": "pet"})
    chosen = choose_classes(pair, choice)
    assert chosen.train.class_names == chosen.test.class_names == ["pet", "bee"]
    assert np.array_equal(chosen.train.y, np.where(pair.train.y == 1, 1, 0))
    (result,), text = run(chosen)
    assert result.data == "farm ant=pet cow=pet +pet +bee"
    assert "2 classes of 3, ant as pet, cow as pet" in text


def test_everything_is_the_pair_itself(pair):
    assert choose_classes(pair, ClassChoice()) is pair


def test_unusable_rows_are_still_counted_and_rows_left_out_are_not(pair):
    pair.train.status[0] = 2
    pair.train.y[7] = -1
    view = ClassView(pair.train, ClassChoice(drop=("ant",)))
    assert count_unusable(pair.train) == count_unusable(view) == 2
    _, text = run(choose_classes(pair, ClassChoice(drop=("ant",))))
    assert "2 rows of cache/farm-train.h5 are unusable" in text


def test_other_choices_are_other_fits(pair):
    choices = [ClassChoice(), ClassChoice(drop=("ant",)), ClassChoice(rename={"ant": "emmet"})]
    ids = [run(choose_classes(pair, choice))[0][0].fit_id for choice in choices]
    assert len(set(ids)) == 3


def test_a_hold_out_keeps_one_view():
    whole = make_cache(90, split="all")
    chosen = choose_classes(Pair(whole, whole), ClassChoice(drop=("cow",)))
    assert chosen.train is chosen.test
    (result,), _ = run(chosen, per_class=("all",))
    assert (result.n_train, result.n_test) == (48, 12)
    assert not set(result.detail["train_rows"]) & set(result.detail["test_rows"])


def test_errors_name_the_data(pair):
    with pytest.raises(
        UsageError, match="farm: --drop: there is no class 'bees': did you mean bee"
    ):
        choose_classes(pair, ClassChoice(drop=("bees",)))
    with pytest.raises(UsageError, match="1 of 3 classes stay"):
        choose_classes(pair, ClassChoice(keep=("ant",)))


def test_a_long_choice_has_a_short_name_of_its_own():
    names = tuple(f"a class with a long name {i}" for i in range(9))
    first, second = describe(ClassChoice(keep=names)), describe(ClassChoice(drop=names))
    assert first != second
    assert len(first) < 20
    assert describe(ClassChoice(drop=("frog",))) == "-frog"


ROWS = np.array([3, 5, 8])


def test_images_are_known_by_digest_else_by_path_and_by_class():
    cache = make_cache()
    by_path = images_sha256(cache, ROWS)
    assert by_path == images_sha256(make_cache(seed=4, backbone="other"), ROWS)
    assert by_path != images_sha256(cache, ROWS[::-1])
    assert by_path != images_sha256(make_cache(split="test"), ROWS)
    digests = np.random.default_rng(0).integers(1, 255, (60, 32), np.uint8)
    cache.image_digests = digests
    by_digest = images_sha256(cache, ROWS)
    assert by_digest != by_path
    moved = make_cache(seed=1)
    moved.paths = [f"elsewhere/{path}" for path in moved.paths]
    moved.image_digests = digests
    assert images_sha256(moved, ROWS) == by_digest
    shifted = make_cache()
    shifted.image_digests, shifted.y = np.roll(digests, 3, axis=0), np.roll(cache.y, 3)
    assert images_sha256(shifted, ROWS) != by_digest
    assert images_sha256(shifted, ROWS + 3) == by_digest
    cache.class_names = ["wasp", "bee", "cow"]
    assert images_sha256(cache, ROWS) != by_digest
