"""The perceptron: the network that scikit-learn fitted, applied to raw features."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from head_data import features
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from featx.heads import FitOptions, RowSpace
from featx.heads.mlp import MLP, MlpHead


@pytest.mark.parametrize("shape", [(60, 300, 3), (60, 300, 2), (90, 20, 3)], ids=str)
def test_predictions_are_those_of_the_network_on_coordinates(shape):
    X, y = features(*shape, noise=1.0)
    space = RowSpace.of(X)
    fit = MLP.fit(space, y, FitOptions(seed=3))
    rows, dual = space.centred
    scale = 1 / np.sqrt(np.mean(rows**2))
    plain = MLPClassifier(alpha=MLP.alpha, random_state=3, max_iter=MLP.max_iter)
    new, _ = features(40, *shape[1:], seed=0, noise=1.0)
    axes = np.eye(shape[1]) if dual is None else space.combine(dual)
    projected = (new - X.mean(axis=0, dtype=np.float64)) @ axes
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ConvergenceWarning)
        plain.fit((rows * scale).astype(np.float32), y)
    assert fit.converged == (not told)  # the last epoch may be the one that converges
    assert fit.n_iter == plain.n_iter_
    assert np.array_equal(
        fit.model.predict(new), plain.predict((projected * scale).astype(np.float32))
    )
    logits = fit.model.decision_function(new)
    chances = plain.predict_proba((projected * scale).astype(np.float32))
    if shape[2] == 2:
        assert np.allclose(1 / (1 + np.exp(-logits)), chances[:, 1], atol=1e-4)
    else:
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        assert np.allclose(odds / odds.sum(axis=1, keepdims=True), chances, atol=1e-4)
    assert np.mean(fit.model.predict(X) == y) > 0.9


def test_a_fit_that_stops_early_says_so():
    X, y = features(60, 300, 3)
    fit = MlpHead(max_iter=2).fit(RowSpace.of(X), y, FitOptions())
    assert not fit.converged
    assert fit.n_iter == 2
    assert fit.notes == (
        "not converged: max_iter=2 epochs are too few (--clf 'mlp(max_iter=10)' goes on)",
    )


def test_every_setting_is_scikit_learns_own():
    theirs = MLPClassifier()
    assert MLP.settings == {
        "hidden": theirs.hidden_layer_sizes,
        "alpha": theirs.alpha,
        "max_iter": theirs.max_iter,
    }


def test_the_seed_decides():
    X, y = features(60, 300, 3)
    space = RowSpace.of(X)
    first, again, other = (MLP.fit(space, y, FitOptions(seed=s)).model for s in (1, 1, 2))
    assert np.array_equal(first.coefs_[0], again.coefs_[0])
    assert not np.array_equal(first.coefs_[0], other.coefs_[0])
    assert first.coefs_[0].shape == (300, 100)
