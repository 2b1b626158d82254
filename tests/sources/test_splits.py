"""Which split is fitted on and which one is tested on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featx.errors import FeatxError, ProtocolError, UsageError
from featx.sources import open_data
from featx.sources.splits import choose_splits, describe_choice, read_split


@pytest.mark.parametrize(
    ("splits", "test_split", "wanted"),
    [
        (["train", "test"], None, ("train", "test")),
        (["train", "val"], None, ("train", "val")),
        (["train", "val", "test"], None, ("train", "test")),
        (["train", "val", "test"], "val", ("train", "val")),
        (["train", "val", "test"], "validation", ("train", "val")),
        (["train", "val", "test"], "dev", ("train", "val")),
        (["train", "val", "test", "unlabeled"], "test", ("train", "test")),
        (["all"], None, ("all", "all")),
    ],
)
def test_what_is_fitted_and_what_is_tested(
    splits: list[str], test_split: str | None, wanted: tuple[str, str]
) -> None:
    assert choose_splits(splits, test_split) == wanted


@pytest.mark.parametrize(
    ("splits", "test_split", "kind", "words"),
    [
        (["train"], None, ProtocolError, ("--test-folder", "--data", "--holdout")),
        (["test"], None, ProtocolError, ("no split train", "--train-folder")),
        (["train", "unlabeled"], None, ProtocolError, ("to test on, but train, unlabeled",)),
        (["train", "val"], "test", ProtocolError, ("no split test", "train, val")),
        (["all"], "val", ProtocolError, ("no splits", "--holdout")),
        (["train", "test"], "train", UsageError, ("test or on val",)),
        (["train", "test"], "unlabeled", UsageError, ("test or on val",)),
        (["train", "test"], "tests", UsageError, ("unknown split 'tests'", "test")),
    ],
)
def test_what_cannot_be_chosen_is_said_with_what_to_do(
    splits: list[str], test_split: str | None, kind: type[FeatxError], words: tuple[str, ...]
) -> None:
    with pytest.raises(kind) as caught:
        choose_splits(splits, test_split)
    assert all(word in str(caught.value) for word in words)


def test_a_person_is_told_before_anything_is_computed() -> None:
    assert describe_choice(["train", "test"]) == "featx fit draws from train and tests on test"
    assert "tests on val, since there is no split test" in describe_choice(["train", "val"])
    assert "left for choices" in describe_choice(["train", "val", "test"])
    assert "--holdout" in describe_choice(["all"])
    assert "nothing to do with these data" in describe_choice(["train"])


def test_words_for_splits() -> None:
    words = ("train", "Training", "valid", "dev", "TEST", "eval", "all", "unlabelled")
    splits = ["train", "train", "val", "val", "test", "test", "all", "unlabeled"]
    assert [read_split(word) for word in words] == splits


def test_names_of_images_are_the_same_in_any_order_and_others_where_one_is_moved() -> None:
    source = open_data("digits")["test"]
    shuffled = source.take(np.random.default_rng(0).permutation(len(source)))
    assert shuffled.names_id() == source.names_id()
    assert source.take(np.arange(1, len(source))).names_id() != source.names_id()
    labels = source.labels.copy()
    labels[3] = (labels[3] + 1) % 10
    assert replace(source, labels=labels).names_id() != source.names_id()
