"""Folds of the cross-validation inside a subset."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from featx.heads import FitOptions, RowSpace, get_head
from featx.heads.select import fold_rows


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
