"""Choosing, dropping and renaming classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from featx.errors import UsageError
from featx.sources import ArraySource
from featx.sources.select import ClassChoice

NAMES = ["airplane", "automobile", "bird", "frog"]


def apply(labels=(0, 1, 2, 3, -1), **choice):
    found, names = ClassChoice(**choice).apply(np.array(labels, np.int64), NAMES)
    assert found.dtype == np.int64
    return found.tolist(), names


def test_dropping_keeps_the_order():
    assert apply(drop=("bird",)) == ([0, 1, -1, 2, -1], ["airplane", "automobile", "frog"])


def test_keeping_sets_the_order():
    assert apply(keep=("frog", "bird")) == ([-1, -1, 1, 0, -1], ["frog", "bird"])


def test_renaming_comes_first_and_merges():
    assert apply(rename={"airplane": "vehicle", "automobile": "vehicle"}, drop=("frog",)) == (
        [0, 0, 1, -1, -1],
        ["vehicle", "bird"],
    )
    assert apply(rename={"frog": "bird"}) == ([0, 1, 2, 2, -1], NAMES[:3])
    with pytest.raises(UsageError, match="--drop: there is no class 'automobile'"):
        apply(rename={"automobile": "car"}, drop=("automobile",))


def test_names_can_be_swapped():
    swapped = {"airplane": "bird", "bird": "airplane"}
    assert apply(rename=swapped)[1] == ["bird", "automobile", "airplane", "frog"]


def test_a_name_kept_twice_is_kept_once():
    assert apply(keep=("bird", "frog", "bird"))[1] == ["bird", "frog"]


@given(
    st.lists(st.sampled_from("abcde"), min_size=2, max_size=5, unique=True),
    st.dictionaries(st.sampled_from("abcde"), st.sampled_from("abcxyz")),
    st.lists(st.sampled_from("abcdexyz"), max_size=4),
    st.lists(st.sampled_from("abcdexyz"), max_size=4),
    st.data(),
)
def test_every_row_keeps_its_name_or_is_left_out(names, rename, keep, drop, data):
    assume(not set(keep) & set(drop))
    labels = np.array(data.draw(st.lists(st.integers(-1, len(names) - 1))), np.int64)
    choice = ClassChoice(tuple(keep), tuple(drop), rename)
    new_names = [rename.get(name, name) for name in names]
    try:
        found, kept = choice.apply(labels, names)
    except UsageError:
        is_known = set(rename) <= set(names) and set(keep) | set(drop) <= set(new_names)
        stay = [n for n in set(new_names) if n not in drop and (not keep or n in keep)]
        assert not is_known or len(stay) < 2
        return
    assert len(set(kept)) == len(kept) >= 2
    for old, new in zip(labels, found, strict=True):
        name = new_names[old] if old >= 0 else None
        assert (kept[new] if new >= 0 else None) == (name if name in kept else None)
        if name is not None and new < 0:
            assert name in drop or (keep and name not in keep)


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({"drop": ("birt",)}, "--drop: there is no class 'birt': did you mean bird"),
        ({"keep": ("bird", "xyzzy")}, "--classes: there is no class 'xyzzy': there are airplane"),
        ({"rename": {"car": "automobile"}}, "--map: there is no class 'car'"),
        ({"keep": ("bird",)}, "1 of 4 classes stay: a classifier needs two"),
        ({"drop": tuple(NAMES)}, "0 of 4 classes stay"),
        ({"rename": dict.fromkeys(NAMES, "thing")}, "1 of 1 classes stay"),
    ],
)
def test_choices_that_do_not_fit(choice, text):
    with pytest.raises(UsageError, match=text):
        apply(**choice)


def test_many_classes_are_not_all_listed():
    names = [f"class {i}" for i in range(50)]
    with pytest.raises(UsageError, match=r"class 11 and 38 more") as caught:
        ClassChoice(drop=("§",)).apply(np.zeros(0, np.int64), names)
    assert len(str(caught.value)) < 300


def test_kept_and_dropped_at_once():
    with pytest.raises(UsageError, match="'bird' is both kept and dropped"):
        ClassChoice(keep=("bird",), drop=("bird",))


def test_words_of_the_command_line():
    choice = ClassChoice.parse(["a"], ["b"], ["old=new", "x=y=z"])
    assert choice == ClassChoice(("a",), ("b",), {"old": "new", "x": "y=z"})
    assert ClassChoice.parse() == ClassChoice()
    for word in ("car", "=car", "car=", "="):
        with pytest.raises(UsageError, match="--map takes OLD=NEW"):
            ClassChoice.parse(rename=[word])
    with pytest.raises(UsageError, match="names 'a' twice"):
        ClassChoice.parse(rename=["a=b", "a=c"])


def test_the_tag_names_the_choice():
    choices = [
        ClassChoice(keep=("a", "b")),
        ClassChoice(keep=("b", "a")),
        ClassChoice(drop=("a", "b")),
        ClassChoice(rename={"a": "b"}),
    ]
    assert len({choice.tag for choice in choices}) == 4
    assert ClassChoice().tag == ""
    assert ClassChoice().is_everything
    assert not any(choice.is_everything for choice in choices)
    assert (
        ClassChoice(rename={"a": "x", "b": "y"}).tag == ClassChoice(rename={"b": "y", "a": "x"}).tag
    )


def source(labels):
    n = len(labels)
    pixels = np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    return ArraySource(
        name="zoo",
        split="train",
        class_names=tuple(NAMES),
        labels=np.array(labels, np.int64),
        paths=tuple(f"{i}" for i in range(n)),
        pixels=pixels,
        rows=np.arange(n),
    )


def test_a_source_keeps_the_rows_of_its_classes_with_their_images():
    chosen = ClassChoice(keep=("frog", "bird")).apply_to(source([0, 2, 3, -1, 3]))
    assert chosen.paths == ("1", "2", "4")
    assert chosen.labels.tolist() == [1, 0, 0]
    assert chosen.class_names == ("frog", "bird")
    assert [int(chosen.read(row)[0, 0, 0]) for row in range(3)] == [1, 2, 4]


def test_a_source_without_change_or_without_labels_keeps_its_rows():
    whole = source([0, 1, -1])
    assert ClassChoice().apply_to(whole) is whole
    unlabelled = ClassChoice(drop=("frog",)).apply_to(source([-1, -1]))
    assert len(unlabelled) == 2
    assert unlabelled.class_names == ("airplane", "automobile", "bird")
    renamed = ClassChoice(rename={"bird": "hen"}).apply_to(source([0, 2, -1]))
    assert renamed.labels.tolist() == [0, 2]
    assert renamed.class_names[2] == "hen"
