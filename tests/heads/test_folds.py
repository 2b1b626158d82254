"""Folds of the cross-validation inside a subset."""

from __future__ import annotations

import numpy as np
import pytest
from head_data import features
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from featx.heads import FitOptions, RowSpace, get_head
from featx.heads.select import fold_rows, has_lone_classes


def same(first, second):
    return len(first) == len(second) and all(
        np.array_equal(a, c) and np.array_equal(b, d)
        for (a, b), (c, d) in zip(first, second, strict=True)
    )


def test_without_groups_folds_are_scikit_learns():
    codes = np.arange(40) % 4
    plain = StratifiedKFold(5, shuffle=True, random_state=3)
    assert same(fold_rows(codes, 5, 3), list(plain.split(codes, codes)))
    assert len(fold_rows(codes[:12], 5, 0)) == 3
    assert fold_rows(codes[:4], 5, 0) == []


def test_with_groups_folds_are_scikit_learns():
    codes = np.arange(120) % 4
    groups = np.arange(120) // 4
    plain = StratifiedGroupKFold(5, shuffle=True, random_state=3)
    assert same(fold_rows(codes, 5, 3, groups), list(plain.split(codes, codes, groups)))


def test_groups_of_one_row_make_as_many_folds_as_none():
    codes = np.arange(40) % 4
    assert len(fold_rows(codes, 5, 0, np.arange(40))) == len(fold_rows(codes, 5, 0)) == 5


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 8)), min_size=6, max_size=60),
    st.integers(2, 6),
    st.integers(0, 99),
)
def test_no_group_straddles_and_every_fit_has_every_class(rows, folds, seed):
    groups = np.array([g for _, g in rows] + [20, 21, 22, 23, 24, 25])
    codes = np.array([c for c, _ in rows] + [0, 1, 2, 0, 1, 2])
    found = fold_rows(codes, folds, seed, groups)
    assert len(found) <= folds
    for fitted, left_out in found:
        assert not set(groups[fitted]) & set(groups[left_out])
        assert sorted([*fitted, *left_out]) == list(range(len(codes)))
        assert set(codes[fitted]) == {0, 1, 2}
        assert len(left_out)


@pytest.mark.parametrize("counts", [(9, 6, 1), (1, 8, 1, 4), (1, 5, 2)])
def test_a_class_of_one_row_is_fitted_in_every_fold_and_the_others_are_scikit_learns(counts):
    codes = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    many = np.flatnonzero(np.array(counts)[codes] > 1)
    found = fold_rows(codes, 5, 3)
    plain = StratifiedKFold(min(5, *(n for n in counts if n > 1)), shuffle=True, random_state=3)
    assert [b.tolist() for _, b in found] == [
        many[b].tolist() for _, b in plain.split(many, codes[many])
    ]
    for fitted, left_out in found:
        assert sorted([*fitted, *left_out]) == list(range(len(codes)))
        assert set(codes[fitted]) == set(codes)
    assert has_lone_classes(codes, None)


def test_a_group_that_a_lone_class_needs_stays_whole():
    # Class 2 has group 0 alone, which leaves class 1 with group 1 alone: that stays too.
    codes = np.array([2, 1, 0, 1, 0, 0, 0, 3, 3, 3])
    groups = np.array([0, 0, 0, 1, 1, 2, 3, 2, 3, 4])
    found = fold_rows(codes, 3, 0, groups)
    assert found
    assert {g for _, left_out in found for g in groups[left_out]} <= {2, 3, 4}
    assert has_lone_classes(codes, groups)
    assert not has_lone_classes(np.arange(8) % 4, None)
    assert not has_lone_classes(np.arange(4), None)


@pytest.mark.parametrize("name", ["svm", "logreg", "ridge", "knn", "lda"])
def test_one_lone_class_does_not_turn_the_search_off(name):
    X, y = features(61, 20, 3)
    y = np.where(y == 2, 1, y)
    y[-1] = 2
    fit = get_head(name).fit(RowSpace.of(X), y, FitOptions())
    assert fit.cv is not None
    assert any("judged on 2 of 3 classes" in note for note in fit.notes)


@pytest.mark.parametrize("groups", [[0] * 8, [0, 0, 0, 0, 1, 1, 2, 2]])
def test_a_class_of_one_group_leaves_nothing_out(groups):
    codes = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    assert fold_rows(codes, 5, 0, np.array(groups)) == []


def test_a_fold_without_a_class_among_its_fitted_rows_is_left_out():
    """StratifiedGroupKFold fits one of these two folds on a single class."""
    codes, groups = np.array([1, 1, 0, 0]), np.array([2, 4, 3, 2])
    splits = list(StratifiedGroupKFold(2, shuffle=True, random_state=0).split(codes, codes, groups))
    n_classes = [len(set(codes[fitted])) for fitted, _ in splits]
    assert 1 in n_classes
    assert len(fold_rows(codes, 2, 0, groups)) == n_classes.count(2)


@pytest.mark.parametrize("name", ["svm", "logreg"])
def test_heads_choose_their_penalty_on_whole_groups(name):
    """Noise whose rows come four times each can be learnt by heart, and only so."""
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(40, 200)), 4, axis=0)
    y = np.repeat(np.arange(40) % 2, 4)
    space = RowSpace.of(X)
    by_heart = get_head(name).fit(space, y, FitOptions())
    grouped = get_head(name).fit(space, y, FitOptions(groups=np.arange(160) // 4))
    assert max(by_heart.cv.mean) == 1
    assert max(grouped.cv.mean) < 0.75


def test_groups_that_leave_nothing_out_are_told():
    X, y = np.random.default_rng(0).normal(size=(8, 30)), np.arange(8) % 2
    fit = get_head("svm").fit(RowSpace.of(X), y, FitOptions(groups=y))
    assert fit.cv is None
    assert "one group per class leaves nothing out" in fit.notes[0]
