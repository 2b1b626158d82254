"""Nearest neighbours against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from head_data import features
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from featx.errors import ProtocolError, UsageError
from featx.heads import FitOptions, RowSpace
from featx.heads.base import RowsView
from featx.heads.knn import KNN, KNN_DINO

SHAPES = [(60, 300, 3), (60, 300, 2), (90, 20, 3), (200, 20, 2), (75, 74, 15)]
SCALERS = {"none": "passthrough", "l2": Normalizer(), "standard": StandardScaler()}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", SCALERS)
@pytest.mark.parametrize("k", [1, 4, 5])
def test_votes_are_those_of_scikit_learn(shape, scale, k):
    X, y = features(*shape, noise=4.0)
    new, _ = features(150, *shape[1:], seed=1, noise=4.0)
    model = KNN.with_settings(n_neighbors=k).fit(RowSpace.of(X), y, FitOptions(scale=scale)).model
    plain = make_pipeline(SCALERS[scale], KNeighborsClassifier(k)).fit(X.astype(np.float64), y)
    new64 = new.astype(np.float64)
    assert np.array_equal(model.predict(new), plain.predict(new64))
    chances = model.probabilities(model.decision_function(new))
    assert np.allclose(chances, plain.predict_proba(new64), atol=1e-15)


@pytest.mark.parametrize("shape", SHAPES[1:4], ids=str)
@pytest.mark.parametrize("scale", SCALERS)
def test_k_is_the_one_that_grid_search_finds(shape, scale):
    X, y = features(*shape, noise=4.0)
    fit = KNN.fit(RowSpace.of(X), y, FitOptions(seed=2, scale=scale))
    folds = StratifiedKFold(min(5, shape[0] // shape[2]), shuffle=True, random_state=2)
    plain = make_pipeline(SCALERS[scale], KNeighborsClassifier())
    grid = {"kneighborsclassifier__n_neighbors": [int(k) for k in fit.cv.C]}
    search = GridSearchCV(plain, grid, cv=folds, refit=False).fit(X.astype(np.float64), y)
    assert fit.cv.C == (1, 3, 5, 9, 15, 25)
    assert np.allclose(fit.cv.mean, search.cv_results_["mean_test_score"], atol=1e-12)
    assert [fit.model.n_neighbors] == list(search.best_params_.values())
    assert fit.notes == (f"n_neighbors={fit.model.n_neighbors} by cross-validation",)
    assert fit.cv.parameter == "n_neighbors"
    assert fit.C is None


def test_the_first_of_equal_rows_votes_and_the_smallest_of_equal_classes_wins():
    X = np.array([[0.0, 1], [0, 1], [0, -1], [5, 5], [5, 6]])
    model = KNN.with_settings(n_neighbors=1).fit(
        RowSpace.of(X), np.array([8, 3, 3, 4, 4]), FitOptions()
    )
    assert model.model.predict(np.array([[0.0, 0.0]])).tolist() == [8]
    two = KNN.with_settings(n_neighbors=2).fit(
        RowSpace.of(X), np.array([8, 3, 3, 4, 4]), FitOptions()
    )
    assert two.model.predict(np.array([[0.0, 0.0], [5.0, 5.0]])).tolist() == [3, 4]


def test_values_of_k_that_do_not_fit_are_left_out():
    X, y = features(10, 30, 2)
    fit = KNN.fit(RowSpace.of(X), y, FitOptions())
    assert fit.cv.C == (1, 3, 5)
    single = KNN.fit(RowSpace.of(X[:2]), y[:2], FitOptions())
    assert single.cv is None
    assert single.model.n_neighbors == 1
    assert single.notes[0].startswith("n_neighbors not searched, n_neighbors=1: ")
    with pytest.raises(ProtocolError, match="n_neighbors=11 but there are 10 training rows"):
        KNN.with_settings(n_neighbors=11).fit(RowSpace.of(X), y, FitOptions())
    with pytest.raises(UsageError, match=r"must be in \[1, inf\)"):
        KNN.with_settings(n_neighbors=0)


def test_the_search_reads_no_more_than_its_rows_of_a_pool():
    X, y = features(80, 100, 2)
    rows = np.arange(10, 70)
    space = RowSpace(RowSpace.of(X).pool, rows)
    fit = KNN.fit(space, y[rows], FitOptions())
    alone = KNN.fit(RowSpace.of(X[rows]), y[rows], FitOptions())
    assert fit.cv == alone.cv
    assert np.array_equal(fit.model.rows, X[rows])


def test_wrong_rows_are_told():
    X, y = features(40, 10, 2)
    model = KNN.fit(RowSpace.of(X), y, FitOptions()).model
    with pytest.raises(ProtocolError, match="fitted on 10 features, these rows have 9"):
        model.predict(X[:, :9])
    X[7, 3] = np.nan
    with pytest.raises(ProtocolError, match="rows 7"):
        model.predict(RowsView(X, np.array([3, 7])))


def test_whole_groups_are_left_out():
    """Noise whose rows come four times each can be learnt by heart, and only so."""
    rng = np.random.default_rng(0)
    X, y = np.repeat(rng.normal(size=(40, 200)), 4, axis=0), np.repeat(np.arange(40) % 2, 4)
    space = RowSpace.of(X)
    by_heart = KNN.fit(space, y, FitOptions())
    grouped = KNN.fit(space, y, FitOptions(groups=np.arange(160) // 4))
    assert max(by_heart.cv.mean) == 1
    assert max(grouped.cv.mean) < 0.75


def votes_of_dino(train, codes, new, k, n_classes, temperature=0.07):
    """Write eval_knn.py of DINO in NumPy."""
    train, new = (X / np.linalg.norm(X, axis=1, keepdims=True) for X in (train, new))
    similarity = new @ train.T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    weights = np.exp(np.take_along_axis(similarity, nearest, axis=1) / temperature)
    one_hot = np.eye(n_classes)[codes[nearest]]
    return (one_hot * weights[:, :, None]).sum(axis=1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("k", [1, 10, 20])
def test_weighted_votes_are_those_of_dino(shape, k):
    X, y = features(*shape, noise=4.0)
    new, _ = features(150, *shape[1:], seed=1, noise=4.0)
    head = KNN_DINO.with_settings(n_neighbors=k)
    model = head.fit(RowSpace.of(X), y, FitOptions()).model
    classes, codes = np.unique(y, return_inverse=True)
    votes = votes_of_dino(
        *(A.astype(np.float64) for A in (X,)), codes, new.astype(np.float64), k, len(classes)
    )
    assert np.array_equal(model.predict(new), classes[votes.argmax(axis=1)])
    chances = model.probabilities(model.decision_function(new))
    assert np.allclose(chances, votes / votes.sum(axis=1, keepdims=True), atol=1e-9)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]], ids=str)
def test_the_k_of_dino_is_chosen_inside_the_subset(shape):
    X, y = features(*shape, noise=4.0)
    fit = KNN_DINO.fit(RowSpace.of(X), y, FitOptions(seed=2))
    folds = StratifiedKFold(5, shuffle=True, random_state=2)
    _, codes = np.unique(y, return_inverse=True)
    expected = [
        np.mean(
            [
                np.mean(
                    votes_of_dino(
                        X[fitted].astype(np.float64),
                        codes[fitted],
                        X[out].astype(np.float64),
                        k,
                        shape[2],
                    ).argmax(axis=1)
                    == codes[out]
                )
                for fitted, out in folds.split(X, y)
            ]
        )
        for k in (10, 20)
    ]
    assert fit.cv.C == (10, 20)
    assert np.allclose(fit.cv.mean, expected, atol=1e-12)


@pytest.mark.parametrize("scale", ["l2", "standard"])
def test_cosines_are_those_of_scaled_features(scale):
    X, y = features(80, 30, 3, noise=4.0)
    new, _ = features(50, 30, 3, seed=1, noise=4.0)
    fit = KNN_DINO.with_settings(n_neighbors=10).fit(RowSpace.of(X), y, FitOptions(scale=scale))
    scaler = SCALERS[scale].fit(X.astype(np.float64))
    classes, codes = np.unique(y, return_inverse=True)
    scaled = (scaler.transform(A.astype(np.float64)) for A in (X, new))
    train, test = scaled
    votes = votes_of_dino(train, codes, test, 10, 3)
    assert np.array_equal(fit.model.predict(new), classes[votes.argmax(axis=1)])


def test_fewer_rows_than_neighbours_all_vote():
    X, y = features(6, 30, 2)
    assert KNN_DINO.fit(RowSpace.of(X), y, FitOptions()).model.n_neighbors == 6
    with pytest.raises(ProtocolError, match="n_neighbors=7"):
        KNN_DINO.with_settings(n_neighbors=7).fit(RowSpace.of(X), y, FitOptions())


def test_the_smallest_temperature_leaves_the_nearest_row():
    X, y = features(90, 40, 3, noise=4.0)
    new, _ = features(50, 40, 3, seed=1, noise=4.0)
    cold = KNN_DINO.with_settings(n_neighbors=20, temperature=1e-6)
    one = KNN_DINO.with_settings(n_neighbors=1)
    models = [head.fit(RowSpace.of(X), y, FitOptions()).model for head in (cold, one)]
    assert np.array_equal(models[0].predict(new), models[1].predict(new))
