"""Every head as a scikit-learn classifier, and what every head must take."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from head_data import features
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import featx
from featx.errors import ProtocolError, UsageError
from featx.heads import FitOptions, RowSpace, available_heads, get_head, with_settings
from featx.heads.classifier import Classifier

FOREIGN = "sklearn.linear_model:LogisticRegression"
QUICK = {
    "linear-probe": {"max_iter": 300, "lr": (0.01, 0.1)},
    "mlp-torch": {
        "hidden": (16,),
        "dropout": 0.0,
        "max_epochs": 25,
        "lr": 0.03,
        "batch_size": 16,
        "device": "cpu",
        "early_stopping": False,
    },
}
HEADS = [*available_heads(), FOREIGN]
EVERY = {name: with_settings(get_head(name), QUICK.get(name, {})) for name in HEADS}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Layers this small are slower on two threads, and much slower beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def classifier(name, **options):
    return Classifier(name, settings=QUICK.get(name), **options)


def expected_failures(estimator):
    if estimator.head == FOREIGN:
        return {}
    return {"check_class_weight_classifiers": "class_weight is None or 'balanced', not a mapping"}


@parametrize_with_checks(
    [classifier(name) for name in HEADS], expected_failed_checks=expected_failures
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", HEADS)
def test_it_is_the_head_on_the_same_rows(name):
    X, y = features(60, 80, 3)
    names = np.array(["zebra", "ant", "cow"])
    fitted = classifier(name, scale="l2", random_state=2).fit(X, names[y])
    # Sorted by name, the labels are ant, cow, zebra.
    codes = np.array([2, 0, 1])[y]
    fit = EVERY[name].fit(RowSpace.of(X), codes, FitOptions(scale="l2", seed=2))
    assert fitted.classes_.tolist() == ["ant", "cow", "zebra"]
    assert np.array_equal(fitted.decision_function(X), fit.model.decision_function(X))
    assert np.array_equal(fitted.predict(X), fitted.classes_[fit.model.predict(X)])
    assert fit.C == fitted.C_
    assert fitted.n_iter_ == fit.n_iter
    chances = fit.model.probabilities(fit.model.decision_function(X))
    assert hasattr(fitted, "predict_proba") == (chances is not None)
    assert hasattr(classifier(name), "predict_proba") == (chances is not None)
    if chances is not None:
        assert np.array_equal(fitted.predict_proba(X), chances)
        assert np.allclose(chances.sum(axis=1), 1)


@pytest.mark.parametrize("scale", ["none", "standard"])
@pytest.mark.parametrize("n_features", [5, 60])
@pytest.mark.parametrize("name", HEADS)
def test_labels_may_have_gaps_and_a_class_a_single_row(name, n_features, scale):
    rng = np.random.default_rng(0)
    y = np.array([7] * 12 + [0] * 12 + [3])
    X = rng.normal(size=(25, n_features)) + 3 * rng.normal(size=(8, n_features))[y]
    model = EVERY[name].fit(RowSpace.of(X), y, FitOptions(scale=scale)).model
    assert model.classes_.tolist() == [0, 3, 7]
    assert model.classes_.dtype == np.int64
    assert set(model.predict(X)) <= {0, 3, 7}
    assert np.mean(model.predict(X) == y) > 0.9
    assert model.decision_function(X).shape == (25, 3)
    two = EVERY[name].fit(RowSpace.of(X[:24]), y[:24], FitOptions(scale=scale)).model
    assert two.decision_function(X).shape == (25,)
    assert two.predict(X[:24]).tolist() == y[:24].tolist()


@pytest.mark.parametrize("name", HEADS)
def test_one_class_and_rows_with_nan_are_told(name):
    X, y = features(20, 10, 2)
    space = RowSpace.of(X)
    with pytest.raises(ProtocolError, match="two classes or more, these rows have 1"):
        EVERY[name].fit(space, np.zeros(20, dtype=np.int64), FitOptions())
    model = EVERY[name].fit(space, y, FitOptions()).model
    broken = X.copy()
    broken[3, 4] = np.nan
    with pytest.raises(ProtocolError, match=r"rows hold NaN or infinity \(rows 3\)"):
        model.predict(broken)
    with pytest.raises(ValueError, match="NaN"):
        classifier(name).fit(broken, y)


@pytest.mark.parametrize("name", HEADS)
def test_one_row_a_class(name):
    X, _ = features(4, 30, 4)
    y = np.array([9, 5, 2, 1])
    model = EVERY[name].fit(RowSpace.of(X), y, FitOptions()).model
    assert set(model.predict(X)) <= {9, 5, 2, 1}


def test_pipelines_and_searches_take_it():
    X, y = features(60, 30, 3, noise=1.0)
    pipeline = make_pipeline(StandardScaler(), Classifier("knn"))
    grid = {"classifier__head": ["knn", "ncm"], "classifier__scale": ["none", "l2"]}
    search = GridSearchCV(pipeline, grid, cv=3).fit(X, y)
    assert search.score(X, y) > 0.8
    copy = clone(Classifier("mlp", settings={"hidden": (4,)}))
    assert copy.settings == {"hidden": (4,)}
    assert copy.fit(X, y).model_.coefs_[0].shape == (30, 4)


def test_it_is_public_and_lazy():
    assert featx.Classifier is Classifier


def test_wrong_parameters_are_told():
    X, y = features(20, 10, 2)
    with pytest.raises(UsageError, match="did you mean svm"):
        Classifier("svn").fit(X, y)
    with pytest.raises(UsageError, match="did you mean hidden"):
        Classifier("mlp", settings={"hiden": 3}).fit(X, y)
    with pytest.raises(ValueError, match="unknown scale"):
        Classifier("ncm", scale="log").fit(X, y)
    with pytest.raises(NotFittedError):
        Classifier().predict(X)


def test_the_seed_may_be_a_generator():
    X, y = features(40, 10, 2)
    state = np.random.RandomState(0)
    fitted = [classifier("mlp", random_state=s).fit(X, y).model_ for s in (state, state, None)]
    assert not np.array_equal(fitted[0].coefs_[0], fitted[1].coefs_[0])
