"""The nearest class mean against scikit-learn's."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from head_data import features
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler

from featx.errors import UsageError
from featx.heads import FitOptions, Pool, RowSpace, rowspace
from featx.heads.base import RowsView
from featx.heads.centroid import NCM

SHAPES = [(60, 300, 3), (60, 300, 2), (90, 20, 3), (200, 20, 2), (10, 50, 10)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", ["none", "standard", "l2", "power"])
def test_labels_are_those_of_scikit_learn(shape, scale):
    X, y = features(*shape)
    new, _ = features(200, *shape[1:], seed=1)
    model = NCM.fit(RowSpace.of(X), y, FitOptions(scale=scale)).model
    scaler = {
        "none": FunctionTransformer(),
        "standard": StandardScaler(),
        "l2": Normalizer(),
        "power": make_pipeline(FunctionTransformer(np.sqrt), Normalizer()),  # none is negative
    }[scale]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant columns and single rows, in what is not used
        plain = NearestCentroid().fit(scaler.fit_transform(X.astype(np.float64)), y)
    scaled = scaler.transform(new.astype(np.float64))
    assert np.array_equal(model.predict(new), plain.predict(scaled))
    if shape[2] > 2:
        assert np.allclose(model.coef_, plain.centroids_)


@pytest.mark.parametrize("scale", ["none", "standard", "l2", "power"])
def test_rows_on_the_disk_are_read_in_blocks(scale, monkeypatch):
    X, y = features(90, 40, 3)
    monkeypatch.setattr(rowspace, "_BLOCK_BYTES", 8 * 40 * 17)
    on_disk = RowsView(np.vstack([X, X]), np.arange(90) + 90)
    some = np.arange(0, 90, 2)
    options = FitOptions(scale=scale)
    found = NCM.fit(RowSpace(Pool(on_disk), some), y[some], options).model
    wanted = NCM.fit(RowSpace(Pool(X), some), y[some], options).model
    assert np.allclose(found.coef_, wanted.coef_)
    assert np.allclose(found.intercept_, wanted.intercept_)


def test_scores_by_hand():
    """Means 0 and 4: the border is at 2, and the score of the second minus the first 4x - 8."""
    X, y = np.array([[-1.0], [1.0], [3.0], [5.0]]), np.array([5, 5, 9, 9])
    model = NCM.fit(RowSpace.of(X), y, FitOptions()).model
    assert model.decision_function(np.array([[2.0], [3.0]])).tolist() == [0, 4]
    assert model.predict(np.array([[2.0], [2.1]])).tolist() == [5, 9]
    assert model.probabilities(np.zeros(2)) is None


def test_class_weights_are_refused():
    X, y = features(20, 5, 2)
    with pytest.raises(UsageError, match="ncm cannot weight its classes"):
        NCM.fit(RowSpace.of(X), y, FitOptions(class_weight="balanced"))
