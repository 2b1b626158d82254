"""Tall rows that are read in blocks: sums against NumPy, and heads against rows in memory."""

from __future__ import annotations

import numpy as np
import pytest
from head_data import features
from scipy.spatial.distance import cdist
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from featx.heads import FitOptions, Pool, RowSpace, get_head, moments, rowspace
from featx.heads.moments import class_means, moments_of

N, D = 700, 30


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    for module in (moments, rowspace):
        monkeypatch.setattr(module, "_BLOCK_BYTES", 8 * D * 50)


class OnDisk:
    """Rows that are counted as they are read."""

    def __init__(self, X):
        self._X, self.shape, self.sizes = X, X.shape, []

    def __getitem__(self, key):
        rows = self._X[key]
        self.sizes.append(len(rows))
        return rows


def test_sums_are_those_of_numpy_whatever_the_offset():
    X, y = features(N, D, 4, dtype=np.float64)
    member = np.arange(N) % 3
    for offset in (0.0, 1e4):
        parts = moments_of(RowSpace.of(X + offset), y, member)
        for number, part in enumerate(parts):
            rows, codes = X[member == number] + offset, y[member == number]
            means = np.array([rows[codes == c].mean(axis=0) for c in range(4)])
            assert np.array_equal(part.counts, np.bincount(codes))
            assert np.allclose(part.sums / part.counts[:, None] + part.origin, means, rtol=1e-12)
            scatter = (rows - means[codes]).T @ (rows - means[codes])
            found = np.tril(part.scatter)
            assert np.abs(found - np.tril(scatter)).max() <= 1e-10 * scatter.max()
    whole = parts[0].plus(parts[1]).plus(parts[2])
    back = whole.less(parts[2])
    assert np.allclose(np.tril(back.products), np.tril(parts[0].plus(parts[1]).products))
    assert np.allclose(class_means(RowSpace.of(X), y)[2], X[y == 2].mean(axis=0))


@pytest.mark.parametrize("scale", ["none", "l2", "standard"])
@pytest.mark.parametrize("head", ["lda", "ncm"])
def test_rows_on_the_disk_give_what_rows_in_memory_give(head, scale):
    X, y = features(N, D, 4, dtype=np.float16, noise=6.0)
    disk, options = OnDisk(X), FitOptions(scale=scale)
    far = get_head(head).fit(RowSpace(Pool(disk), np.arange(N)), y, options)
    near = get_head(head).fit(RowSpace.of(X), y, options)
    assert far.cv == near.cv
    scores = near.model.decision_function(X)
    assert np.abs(far.model.decision_function(X) - scores).max() <= 1e-9 * np.abs(scores).max()
    assert max(disk.sizes) < N
    if head == "lda" and scale != "standard":
        # A sample for the origin; products, folds, and scores of the training rows.
        assert sum(disk.sizes) <= 400 + 3 * N


def test_scores_are_those_of_scikit_learn():
    X, y = features(N, D, 4, dtype=np.float16, noise=6.0)
    far = RowSpace(Pool(OnDisk(X)), np.arange(N))
    X = X.astype(np.float64)
    found = get_head("lda").with_settings(shrinkage=0.1).fit(far, y, FitOptions()).model
    plain = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1).fit(X, y)
    expected = plain.decision_function(X)
    assert np.abs(found.decision_function(X) - expected).max() <= 1e-6 * np.abs(expected).max()
    nearest = get_head("ncm").fit(far, y, FitOptions()).model
    means = np.array([X[y == label].mean(axis=0) for label in range(4)])
    assert np.array_equal(nearest.predict(X), cdist(X, means).argmin(axis=1))


def test_products_that_do_not_fit_into_memory_are_refused(monkeypatch):
    monkeypatch.setattr(moments, "require_memory", refuse := Refuse())
    X, y = features(N, D, 4)
    get_head("lda").fit(RowSpace.of(X), y, FitOptions())
    # Five folds and what none leaves out, and copies.
    assert refuse.n_bytes == [8 * D**2 * (6 + moments._COPIES)]


class Refuse:
    def __init__(self):
        self.n_bytes = []

    def __call__(self, n_bytes, what):
        self.n_bytes.append(n_bytes)
        assert "products of 30 features" in what
