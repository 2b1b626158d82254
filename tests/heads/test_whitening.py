from __future__ import annotations

import numpy as np
import pytest
from head_data import features
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import LinearSVC

from featx import Classifier
from featx.errors import FitError, ModelError, UsageError
from featx.heads import FitOptions, RowSpace, get_head
from featx.heads.saving import pack_model, unpack_model
from featx.heads.scaling import SCALES, check_scale

SHAPES = [(60, 90, 3), (160, 20, 4), (60, 90, 2)]
ESTIMATORS = {
    "svm": lambda C: LinearSVC(C=C, tol=1e-10, max_iter=1_000_000),
    "logreg": lambda C: LogisticRegression(C=C, tol=1e-10, max_iter=100_000),
    "ridge": lambda C: RidgeClassifier(alpha=1 / (2 * C)),
}


def fit(name, X, y, **options):
    return get_head(name).fit(RowSpace.of(X), y, FitOptions(**options))


def whitened(n_components, X, offset=0.0):
    return PCA(n_components, whiten=True, svd_solver="full").fit(X.astype(np.float64) + offset)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_rows_are_those_of_pca(shape, offset):
    X, _ = features(*shape, noise=3.0)
    X = X + np.float32(offset)
    space = RowSpace.of(X).scaled("whiten=7", np.arange(5, len(X)))
    pca = whitened(7, X[5:])
    expected, found = pca.transform(X.astype(np.float64)), space.dense
    signs = np.sign(np.sum(found * expected, axis=0))  # an axis has no sign
    assert np.abs(found * signs - expected).max() < 1e-7 * np.abs(expected).max()
    again = space.full_scaling.apply(space.stored)
    assert np.abs(again - found).max() < 1e-7 * np.abs(found).max()


def test_all_axes_are_those_that_rows_have():
    X, _ = features(60, 90, 3)  # two rows are equal
    rows = X.astype(np.float64)
    rank = np.linalg.matrix_rank(rows - rows.mean(axis=0))
    assert RowSpace.of(X).scaled("whiten").n_features == rank == 58
    X, _ = features(160, 20, 3)  # every seventh column is 0
    assert RowSpace.of(X).scaled("whiten").n_features == 17


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_search_is_that_of_a_pipeline(name, shape):
    X, y = features(*shape, noise=4.0)
    found = fit(name, X, y, seed=1, scale="whiten=9")
    pca = PCA(9, whiten=True, svd_solver="full")
    plain = ESTIMATORS[name](1.0)
    values = [1 / (2 * C) if name == "ridge" else C for C in found.cv.C]
    grid = {f"head__{'alpha' if name == 'ridge' else 'C'}": values}
    folds = StratifiedKFold(5, shuffle=True, random_state=1)
    search = GridSearchCV(Pipeline([("pca", pca), ("head", plain)]), grid, cv=folds)
    search.fit(X.astype(np.float64), y)
    assert np.allclose(found.cv.mean, search.cv_results_["mean_test_score"], atol=1e-12)
    new, _ = features(40, *shape[1:], seed=1)
    expected = search.decision_function(new.astype(np.float64))
    scores = found.model.decision_function(new)
    assert np.abs(scores - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("name", "estimator"),
    [
        ("ncm", NearestCentroid()),
        ("knn(n_neighbors=5)", KNeighborsClassifier(5)),
        ("lda(shrinkage=0.3)", LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3)),
    ],
)
def test_other_heads_are_pipelines_too(name, estimator, shape):
    X, y = features(*shape, noise=4.0)
    model = make_pipeline(PCA(9, whiten=True, svd_solver="full"), estimator)
    new, _ = features(40, *shape[1:], seed=1)
    expected = model.fit(X.astype(np.float64), y).predict(new.astype(np.float64))
    assert fit(name, X, y, scale="whiten=9").model.predict(new).tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["mlp", "mlp-torch(max_epochs=20)", "linear-probe(max_iter=200)"])
def test_networks_learn_from_whitened_rows(name):
    X, y = features(120, 90, 3, noise=1.0)
    new, truth = features(60, 90, 3, seed=0, noise=1.0)
    found = fit(name, X, y, scale="whiten=20")
    assert np.mean(found.model.predict(new) == truth) > 0.9
    # The model takes features as they are stored: the axes are in its first weights.
    space = RowSpace.of(X).scaled("whiten=20")
    assert found.model.scaling.name == "none"
    assert space.n_features == 20


def test_scikit_learn_s_classifiers_of_one_s_own_see_the_whitened_rows():
    X, y = features(60, 90, 3, noise=4.0)
    head = get_head("sklearn.neighbors:KNeighborsClassifier")
    found = head.fit(RowSpace.of(X), y, FitOptions(scale="whiten=9"))
    new, _ = features(40, 90, 3, seed=1)
    model = make_pipeline(PCA(9, whiten=True, svd_solver="full"), KNeighborsClassifier())
    assert found.model.predict(new).tolist() == model.fit(X, y).predict(new).tolist()


@pytest.mark.parametrize("name", ["svm", "knn", "mlp"])
def test_a_saved_model_is_the_same_model(name):
    X, y = features(60, 90, 3, noise=4.0)
    model = fit(name, X, y, scale="whiten=9").model
    plain, arrays = pack_model(model)
    again = unpack_model(plain, arrays)
    assert np.array_equal(again.decision_function(X), model.decision_function(X))
    if name == "knn":
        arrays["scaling.axes"] = arrays["scaling.axes"][:, :-1]
        with pytest.raises(ModelError, match="axes"):
            unpack_model(plain, arrays)
    else:
        assert "scaling.axes" not in arrays


def test_more_axes_than_rows_have_are_refused_with_what_is_allowed():
    X, y = features(30, 90, 3)
    with pytest.raises(FitError, match=r"24 training rows .* have 2\d axes: take whiten=2\d or"):
        fit("svm", X, y, scale="whiten=28")
    fit("svm", X, y, scale="whiten=28", C=1.0)
    with pytest.raises(FitError, match="all equal"):
        fit("svm", np.ones((30, 90), np.float32), y, scale="whiten", C=1.0)


@pytest.mark.parametrize("number", ["0", "09", "-3", "all", "", "1.5"])
def test_a_wrong_number_is_refused_where_it_is_typed(number):
    name = f"whiten={number}"
    with pytest.raises(UsageError, match="whole number of at least 1"):
        check_scale(name)
    with pytest.raises(UsageError, match=r"did you mean whiten"):
        check_scale("whitten")
    assert "whiten" in SCALES


def test_the_scikit_learn_classifier_takes_it():
    X, y = features(60, 90, 3, noise=4.0)
    found = Classifier("ridge", C=0.5, scale="whiten=9").fit(X, y)
    model = make_pipeline(PCA(9, whiten=True, svd_solver="full"), RidgeClassifier(alpha=1.0))
    assert found.predict(X).tolist() == model.fit(X.astype(np.float64), y).predict(X).tolist()
