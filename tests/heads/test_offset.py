"""Features with an offset that all share: heads that do not care about it must not notice it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.svm import LinearSVC

from featx.heads import FitOptions, RowSpace, find_head

OFFSETS = [0, 100, 10_000]
SHAPES = {"wide": (20, 300), "narrow": (20, 40)}
PERCEPTRONS = [
    "mlp",
    "mlp-torch(hidden=32 max_epochs=25)",
    "mlp-torch(hidden=32 max_epochs=25 inputs=features)",
    "mlp-torch(hidden=32 max_epochs=25 batch_norm=input)",
]


def classes_apart(n_per_class, n_features, offset, *, distance=1.0, seed=0):
    """Five Gaussian classes, moved; sixteenths, which float32 adds to the offset exactly."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(5, n_features)) * distance
    y = np.arange(5 * n_per_class) % 5
    X = np.round((centres[y] + rng.normal(size=(len(y), n_features))) * 16) / 16
    return (X + offset).astype(np.float32), y


def fitted(name, X, y, **options):
    return find_head(name, ()).fit(RowSpace.of(X), y, FitOptions(**options)).model


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("name", PERCEPTRONS)
def test_perceptrons_learn(name, offset, shape):
    X, y = classes_apart(*SHAPES[shape], offset)
    new, truth = classes_apart(*SHAPES[shape], offset, seed=1)
    assert np.mean(fitted(name, X, y).predict(new) == truth) > 0.95


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", ["none", "l2", "standard", "whiten=15"])
@pytest.mark.parametrize("n_classes", [2, 5])
@pytest.mark.parametrize(
    "name",
    [
        *("svm", "logreg", "ridge", "lda", "knn", "knn-dino", "linear-probe(max_iter=50)", "mlp"),
        *PERCEPTRONS[1:],
    ],
)
def test_scores_of_fitted_rows_that_a_fit_knows_are_those_of_its_model(
    name, n_classes, scale, shape
):
    X, y = classes_apart(*SHAPES[shape], 3, distance=0.1)
    X, y = X[y < n_classes], y[y < n_classes]
    fit = find_head(name, ()).fit(RowSpace.of(X), y, FitOptions(scale=scale))
    scores = fit.model.decision_function(X)
    assert fit.train_scores.shape == scores.shape
    assert np.abs(fit.train_scores - scores).max() <= 1e-4 * np.abs(scores).max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize(
    ("name", "plain", "C"),
    [
        ("lda(shrinkage=0.3)", LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3), None),
        ("logreg", LogisticRegression(C=0.01, solver="newton-cg", tol=1e-10, max_iter=9999), 0.01),
        ("ridge", RidgeClassifier(alpha=50), 0.01),
        ("knn(n_neighbors=3)", KNeighborsClassifier(3, algorithm="brute"), None),
        ("ncm", NearestCentroid(), None),
    ],
)
def test_what_is_blind_to_it_is_scikit_learn_on_centred_rows(name, plain, C, offset, shape):
    X, y = classes_apart(*SHAPES[shape], offset, distance=0.2)
    new, _ = classes_apart(*SHAPES[shape], offset, distance=0.2, seed=1)
    mean = X.mean(axis=0, dtype=np.float64)
    plain.fit(X - mean, y)
    model = fitted(name, X, y, C=C)
    guess, expected = model.predict(new), plain.predict(new - mean)
    assert len(np.unique(expected)) == 5
    assert np.mean(guess == expected) > 0.99  # of a tie, rounding decides
    if name.startswith(("lda", "logreg")):
        chances = model.probabilities(model.decision_function(new))
        np.testing.assert_allclose(chances, plain.predict_proba(new - mean), atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", OFFSETS)
def test_the_svm_is_scikit_learns_which_sees_it(offset, shape):
    """Its intercept is penalised, so that the offset is a part of the question."""
    X, y = classes_apart(*SHAPES[shape], offset, distance=0.2)
    new, _ = classes_apart(*SHAPES[shape], offset, distance=0.2, seed=1)
    X, new = X.astype(np.float64), new.astype(np.float64)
    C = 1 / np.einsum("ij,ij->i", X, X).mean()
    expected = LinearSVC(C=C, dual=False, tol=1e-12, max_iter=10**6).fit(X, y)
    scores = fitted("svm", X, y, C=C).decision_function(new)
    np.testing.assert_allclose(scores, expected.decision_function(new), atol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "mlp-torch"])
@pytest.mark.parametrize("value", [0.0, 7.0])
@pytest.mark.parametrize("n_features", [3, 30])
def test_equal_rows_teach_which_class_is_the_most_frequent(name, value, n_features):
    X, y = np.full((10, n_features), value, np.float32), np.arange(10) % 3 // 2
    np.testing.assert_array_equal(fitted(name, X, y).predict(X), 0)
