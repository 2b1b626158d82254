"""Classifiers that a user brings."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import pytest
from head_data import features
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from featx import Classifier, plugins
from featx.errors import FitError, UsageError
from featx.heads import FitOptions, RowSpace, available_heads, configure, foreign, get_head
from featx.heads.boundary import fit_errors


@pytest.fixture(autouse=True)
def _current_folder(monkeypatch):
    """`my_heads` is found in the current folder, as the installed program finds it."""
    monkeypatch.chdir(Path(__file__).parent)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_classifier_gets_scaled_rows_in_float32(n_classes):
    X, y = features(60, 40, n_classes, dtype=np.float16)
    head = get_head("my_heads:Nearest")
    model = head.fit(RowSpace.of(X), 3 * y, FitOptions(scale="standard")).model
    rows = StandardScaler().fit_transform(X.astype(np.float64)).astype(np.float32)
    plain = head.make().fit(rows, 3 * y)
    assert model.estimator.dtype_ == np.float32
    assert np.array_equal(model.predict(X), plain.predict(rows))
    assert model.via == "predict"
    assert set(model.decision_function(X).ravel()) == ({-0.5, 0.5} if n_classes == 2 else {0, 1})
    assert model.probabilities(model.decision_function(X)) is None
    double = head.fit(RowSpace.of(X.astype(np.float64)), y, FitOptions()).model
    assert double.estimator.dtype_ == np.float64


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(
    ("name", "via"),
    [
        ("sklearn.linear_model:LogisticRegression", "decision_function"),
        ("sklearn.discriminant_analysis:LinearDiscriminantAnalysis", "decision_function"),
        ("sklearn.ensemble:RandomForestClassifier", "predict_proba"),
        ("sklearn.naive_bayes:GaussianNB", "predict_proba"),
    ],
)
def test_labels_scores_and_probabilities_are_those_of_the_estimator(name, via, n_classes):
    X, y = features(90, 20, n_classes, dtype=np.float64)
    new, _ = features(40, 20, n_classes, seed=1, dtype=np.float64)
    options = FitOptions(seed=3)
    fit = get_head(name).fit(RowSpace.of(X), y, options)
    model, plain = fit.model, fit.model.estimator
    scores = model.decision_function(new)
    assert model.via == via
    assert scores.shape == ((40,) if n_classes == 2 else (40, 3))
    if via == "decision_function":
        assert np.array_equal(scores, plain.decision_function(new))
    assert np.array_equal(model.predict(new), plain.predict(new))
    assert np.allclose(model.probabilities(scores), plain.predict_proba(new))
    assert getattr(plain, "random_state", 3) in (3, None)


def test_options_and_settings_reach_the_estimator():
    X, y = features(60, 10, 2)
    space = RowSpace.of(X)
    head = get_head("my_heads:strong")
    assert head.settings["C"] == 100
    assert head.fit(space, y, FitOptions()).model.estimator.C == 100
    fit = head.fit(space, y, FitOptions(C=0.5, class_weight="balanced", seed=4))
    assert fit.C == fit.model.estimator.C == 0.5
    assert fit.model.estimator.class_weight == "balanced"
    assert fit.model.estimator.random_state == 4
    assert fit.n_iter == fit.model.estimator.n_iter_[0]
    words = ["n_estimators=7", "max_features=sqrt", "bootstrap=false", "max_depth=None"]
    forest = configure("sklearn.ensemble:RandomForestClassifier", words).make()
    plain = RandomForestClassifier(7, bootstrap=False)
    assert forest.get_params() == plain.get_params()
    with pytest.raises(UsageError, match="unknown setting of .*did you mean n_estimators"):
        configure("sklearn.ensemble:RandomForestClassifier", ["n_estimator=7"])
    with pytest.raises(UsageError, match="cannot weight its classes"):
        get_head("my_heads:Nearest").fit(space, y, FitOptions(class_weight="balanced"))


def test_scores_of_pairs_of_classes_are_not_taken():
    X, y = features(80, 10, 4)
    model = get_head("my_heads:one_against_one").fit(RowSpace.of(X), y, FitOptions()).model
    assert model.via == "predict"
    assert np.array_equal(model.predict(X), model.estimator.predict(X))


def test_probabilities_that_do_not_follow_from_the_scores_are_none():
    X, y = features(80, 10, 3)
    head = get_head("sklearn.ensemble:AdaBoostClassifier")
    model = head.fit(RowSpace.of(X), y, FitOptions()).model
    assert model.via == "decision_function"
    assert model.probabilities(model.decision_function(X)) is None


def test_warnings_become_notes():
    X, y = features(30, 10, 3)
    fit = get_head("my_heads:Warns").fit(RowSpace.of(X), y, FitOptions())
    assert fit.notes == ("not yet",)
    assert not fit.converged
    assert fit.n_iter == 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:Thing", "cannot be imported: ModuleNotFoundError"),
        ("my_heads:Nearst", "unknown class of my_heads 'Nearst': did you mean Nearest"),
        ("my_heads:NUMBER", "is a int, not a class"),
        ("my_heads:Regressor", "gives a LinearRegression, which is no classifier"),
        ("my_heads:Needy", "cannot be made without arguments: TypeError"),
        ("my_heads:", "unknown class of my_heads ''"),
        ("nearestt", "unknown head"),
    ],
)
def test_what_is_wrong_is_told_on_one_line(name, message):
    with pytest.raises(UsageError, match=message) as caught:
        get_head(name)
    assert "\n" not in str(caught.value)


ODD = {
    "Fails": "ValueError: no luck",
    "Nothing": "its fit gives NoneType",
    "NoNumbers": "its predict_proba gives .* nan",
    "TooMuch": r"its predict_proba gives \[1\. 1\. 1\.\]",
    "Negative": r"its predict_proba gives .*-0.5",
    "OneColumn": r"its predict_proba gives float64 of shape \(30, 1\)",
    "OneMore": r"its predict_proba gives float64 of shape \(30, 4\)",
    "Beyond": r"its predict gives .*3.*, it was fitted on the labels 0 to 2",
    "Half": r"its predict gives .*0.5",
    "Names": r"its predict gives .*cat",
    "Short": r"its predict gives .* of shape \(29,\)",
    "Backwards": r"its classes_ are \[2, 1, 0\]",
}


@pytest.mark.parametrize("name", ODD)
def test_a_classifier_that_gives_nonsense_fails_and_says_whose_it_was(name):
    X, y = features(30, 10, 3)
    head = get_head(f"my_heads:{name}")
    with (
        pytest.raises(FitError, match=f"^my_heads:{name} failed: .*{ODD[name]}") as caught,
        fit_errors(head.name),
    ):
        head.fit(RowSpace.of(X), y, FitOptions()).model.decision_function(X)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=f"my_heads:{name} failed"):
        Classifier(head.name).fit(X, y).predict(X)


def test_an_entry_point_is_a_head_like_any_other(monkeypatch):
    points = [
        importlib.metadata.EntryPoint("mine", "my_heads:strong", foreign.GROUP),
        importlib.metadata.EntryPoint("svm", "my_heads:Fails", foreign.GROUP),
    ]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    plugins.offered.cache_clear()
    try:
        assert available_heads()["mine"] == "my_heads:strong"
        assert isinstance(get_head("mine").make(), LogisticRegression)
        # An installed package takes no name away from featx.
        assert get_head("svm").estimator == available_heads()["svm"] == "sklearn.svm.LinearSVC"
    finally:
        plugins.offered.cache_clear()
