"""Linear discriminants against scikit-learn's on the raw features."""

from __future__ import annotations

import numpy as np
import pytest
from head_data import features
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from featx.errors import UsageError
from featx.heads import FitOptions, RowSpace
from featx.heads.lda import LDA

SHAPES = [(60, 300, 3), (60, 300, 2), (50, 50, 5), (90, 20, 3), (300, 20, 2), (40, 45, 10)]
SCALERS = {"none": "passthrough", "l2": Normalizer(), "standard": StandardScaler()}


def unequal(n, d, n_classes, **options):
    """Classes of different sizes, so that the shares matter."""
    X, y = features(n, d, n_classes, **options)
    kept = (y > 0) | (np.arange(n) % 2 == 0)
    return X[kept], y[kept]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("shrinkage", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("scale", SCALERS)
def test_scores_are_those_of_scikit_learn(shape, shrinkage, scale):
    X, y = unequal(*shape)
    new, _ = features(100, *shape[1:], seed=1)
    head = LDA.with_settings(shrinkage=shrinkage)
    model = head.fit(RowSpace.of(X), y, FitOptions(scale=scale)).model
    plain = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
    pipeline = make_pipeline(SCALERS[scale], plain).fit(X.astype(np.float64), y)
    expected = pipeline.decision_function(new.astype(np.float64))
    found = model.decision_function(new)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    assert np.array_equal(model.predict(new), pipeline.predict(new.astype(np.float64)))
    assert np.abs(model.coef_ - plain.coef_).max() <= 1e-6 * np.abs(plain.coef_).max()
    assert np.allclose(model.intercept_, plain.intercept_, rtol=1e-6)
    chances = pipeline.predict_proba(new.astype(np.float64))
    assert np.allclose(model.probabilities(found), chances, atol=1e-6)


@pytest.mark.parametrize("shape", [(60, 300, 3), (60, 300, 2), (90, 20, 3)], ids=str)
@pytest.mark.parametrize("scale", SCALERS)
def test_the_shrinkage_is_the_one_that_grid_search_finds(shape, scale):
    X, y = unequal(*shape, noise=4.0)
    fit = LDA.fit(RowSpace.of(X), y, FitOptions(seed=1, scale=scale))
    plain = LinearDiscriminantAnalysis(solver="lsqr")
    search = GridSearchCV(
        make_pipeline(SCALERS[scale], plain),
        {"lineardiscriminantanalysis__shrinkage": LDA.shrinkage},
        cv=StratifiedKFold(5, shuffle=True, random_state=1),
    ).fit(X.astype(np.float64), y)
    assert np.allclose(fit.cv.mean, search.cv_results_["mean_test_score"], atol=1e-12)
    (best,) = search.best_params_.values()
    assert fit.notes == (f"shrinkage={best:g} by cross-validation",)
    assert LDA.shrinkage == fit.cv.C
    assert fit.cv.parameter == "shrinkage"


def test_by_hand():
    """Means -2 and 2, variance 1: log odds 4 x, and no intercept with equal shares."""
    X, y = np.array([[-3.0], [-1.0], [1.0], [3.0]]), np.array([0, 0, 7, 7])
    model = LDA.with_settings(shrinkage=0.5).fit(RowSpace.of(X), y, FitOptions()).model
    assert model.coef_ == pytest.approx(np.array([[4.0]]))
    assert model.intercept_ == pytest.approx(0, abs=1e-12)
    assert model.classes_.tolist() == [0, 7]


@pytest.mark.parametrize("d", [3, 30])
def test_rows_without_spread_give_the_nearest_class_mean(d):
    X = np.random.default_rng(0).normal(size=(5, d))
    fit = LDA.fit(RowSpace.of(X), np.arange(5), FitOptions())
    assert fit.cv is None
    assert "shrinkage not searched" in fit.notes[0]
    assert "nearest class mean" in fit.notes[1]
    assert fit.model.predict(X + 1e-3).tolist() == [0, 1, 2, 3, 4]


def test_wrong_settings_are_told():
    for wrong in (0, 1.5, (0.5, -1)):
        with pytest.raises(UsageError, match=r"must be in \(0, 1\]"):
            LDA.with_settings(shrinkage=wrong)


def test_whole_groups_are_left_out():
    """Noise whose rows come four times each can be learnt by heart, and only so."""
    rng = np.random.default_rng(0)
    X, y = np.repeat(rng.normal(size=(40, 200)), 4, axis=0), np.repeat(np.arange(40) % 2, 4)
    space = RowSpace.of(X)
    by_heart = LDA.fit(space, y, FitOptions())
    grouped = LDA.fit(space, y, FitOptions(groups=np.arange(160) // 4))
    assert max(by_heart.cv.mean) == 1
    assert max(grouped.cv.mean) < 0.75
