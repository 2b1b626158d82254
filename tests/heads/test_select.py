"""Folds of the cross-validation inside a subset."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

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
