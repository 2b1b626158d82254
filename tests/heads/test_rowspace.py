"""Gram matrices, isometric coordinates and lazy products."""

from __future__ import annotations

import numpy as np
import pytest
from head_data import features
from sklearn.decomposition import PCA

from featx.errors import ProtocolError
from featx.heads import FitOptions, base, rowspace
from featx.heads.base import RowsView, check_finite, raw_product
from featx.heads.linear import SVM
from featx.heads.rowspace import Pool, RowSpace, require_memory
from featx.heads.scaling import UNSCALED


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(rowspace, "_BLOCK_BYTES", 8 * 40 * 13)
    monkeypatch.setattr(base, "_BLOCK_BYTES", 8 * 200 * 7)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_gram_matrix_is_that_of_the_exact_rows(dtype):
    X, _ = features(40, 500, 4, dtype=dtype)
    exact = X.astype(np.longdouble) @ X.astype(np.longdouble).T
    assert np.abs(Pool(X).gram(UNSCALED) - exact).max() <= 1e-14 * exact.max()
    some = np.array([3, 5, 30])
    assert np.allclose(
        RowSpace(Pool(X), some).gram, exact[np.ix_(some, some)].astype(float), rtol=1e-13
    )


def test_a_subset_of_the_pool_fits_as_if_it_were_alone():
    X, y = features(60, 300, 3)
    rows = np.array([i for i in range(60) if i % 4])
    of_pool = SVM.fit(RowSpace(Pool(X), rows), y[rows], FitOptions())
    alone = SVM.fit(RowSpace.of(X[rows]), y[rows], FitOptions())
    assert pytest.approx(alone.C) == of_pool.C
    assert np.allclose(of_pool.model.coef_, alone.model.coef_, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_blocks_take_the_memory_of_the_block_before(dtype):
    X, _ = features(40, 100, 4, dtype=dtype)
    blocks = RowSpace.of(X).blocks()
    columns, first = next(blocks)
    assert not np.shares_memory(first, X)
    assert np.array_equal(first, X[:, columns])
    columns, second = next(blocks)
    assert np.shares_memory(first, second)
    assert np.array_equal(second, X[:, columns])


def test_coordinates_are_an_isometry_without_null_directions():
    X, _ = features(40, 200, 4)
    X[7], X[8] = X[6], 0
    space = RowSpace.of(X)
    rows, dual = space.coordinates
    assert rows.shape == (40, np.linalg.matrix_rank(X.astype(np.float64)))
    assert np.allclose(rows @ rows.T, space.gram, atol=1e-9 * space.gram.max())
    axes = space.combine(dual)
    assert np.allclose(axes.T @ axes, np.eye(rows.shape[1]), atol=1e-8)
    assert np.allclose(X.astype(np.float64) @ axes, rows, atol=1e-8)


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
@pytest.mark.parametrize("n_rows", [40, 240])
def test_centred_coordinates_are_those_of_principal_components(offset, n_rows):
    X = features(n_rows, 200, 4, dtype=np.float64)[0] + offset
    space = RowSpace.of(X)
    rows, dual = space.centred
    centred = X - X.mean(axis=0)
    rank = np.linalg.matrix_rank(centred, tol=1e-6)
    if dual is None:
        assert np.allclose(rows, centred)
    else:
        plain = PCA(rank).fit_transform(X)
        assert rows.shape == plain.shape
        assert np.allclose(np.abs(rows[:, :9]), np.abs(plain[:, :9]), atol=1e-4)
        assert np.allclose(rows @ rows.T, centred @ centred.T, atol=1e-3)
    weights = np.random.default_rng(0).normal(size=(rows.shape[1], 3))
    of_features, shift = space.from_centred(weights)
    assert np.allclose(X @ of_features + shift, rows @ weights, atol=1e-3)


def test_products_read_lazily_and_name_bad_rows():
    class Lazy:
        shape = (50, 200)
        reads = 0

        def __getitem__(self, key):
            Lazy.reads += 1
            return features(50, 200, 5)[0][key]

    weights = np.random.default_rng(0).normal(size=(200, 3))
    X = features(50, 200, 5)[0].astype(np.float64)
    assert np.allclose(raw_product(Lazy(), weights), X @ weights)
    assert Lazy.reads == 8
    view = RowsView(Lazy(), np.array([4, 9, 20, 21]))
    assert np.allclose(raw_product(view, weights), X[[4, 9, 20, 21]] @ weights)
    X[21, 3] = np.nan
    with pytest.raises(ProtocolError, match=r"rows 21\)"):
        raw_product(RowsView(X, np.array([20, 21])), weights)
    with pytest.raises(ProtocolError, match="fitted on 200 features, these rows have 199"):
        raw_product(X[:, 1:], weights)


def test_large_finite_values_are_not_taken_for_infinity():
    block = np.full((2, 100), 60_000, dtype=np.float16)
    check_finite(block, 0)
    block[1, 5] = np.inf
    with pytest.raises(ProtocolError, match=r"rows 11\)"):
        check_finite(block, 10)


def test_what_cannot_fit_into_memory_is_refused_before_it_starts():
    require_memory(1000, "a little")
    with pytest.raises(ProtocolError, match=r"20 rows: 1000000000.0 GB of memory needed"):
        require_memory(10**18, "20 rows")
