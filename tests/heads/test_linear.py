"""The linear heads against scikit-learn's estimators on the raw features."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from head_data import features
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from sklearn.svm import LinearSVC

from featx.errors import ProtocolError, UsageError
from featx.heads import (
    FitOptions,
    Pool,
    RowSpace,
    available_heads,
    get_head,
    rowspace,
)
from featx.heads.base import RowsView
from featx.heads.device import TorchMatrix, choose_device
from featx.heads.linear import LOGREG, SVM, geometry, newton_system, path
from featx.heads.linear import space as linear_space
from featx.heads.linear.space import LinearSpace
from featx.heads.select import fold_rows

# rows, features, classes: wide, square, tall, tall with dead columns, binary, many classes
SHAPES = [
    (60, 300, 3),
    (50, 50, 2),
    (200, 600, 2),
    (120, 20, 2),
    (300, 20, 4),
    (150, 150, 5),
    (90, 120, 15),
]


HEADS = ["svm", "logreg", "ridge"]


def space_of(X):
    return RowSpace.of(X)


def mean_square(X):
    return np.mean(np.sum(X.astype(np.float64) ** 2, axis=1))


def estimator(name, C=1.0, class_weight=None, *, wide=True):
    if name == "svm":
        return LinearSVC(
            C=C,
            tol=1e-10,
            max_iter=1_000_000,
            dual=wide,
            random_state=0,
            class_weight=class_weight,
        )
    if name == "ridge":
        return RidgeClassifier(alpha=1 / (2 * C), solver="cholesky", class_weight=class_weight)
    return LogisticRegression(
        C=C, tol=1e-12, solver="newton-cholesky", max_iter=1000, class_weight=class_weight
    )


def oracle(name, C, X, y, class_weight=None):
    """Decision function and labels of scikit-learn's estimator, run as tightly as it can.

    LogisticRegression's lbfgs stops at errors of 1e-5 whatever its `tol`; its Newton method does
    not, but needs few unknowns: wide rows are rotated into their span first, by QR.
    """
    wide = X.shape[1] > len(X)
    axes = np.eye(X.shape[1])
    if name != "svm" and wide:
        axes = np.linalg.qr(X.astype(np.float64).T)[0]
    plain = estimator(name, C, class_weight, wide=wide)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # tighter than float64 may reach
        plain.fit(X.astype(np.float64) @ axes, y)
    return plain, axes


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scaled", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("name", HEADS)
def test_scores_are_those_of_scikit_learn(name, scaled, shape):
    X, y = features(*shape)
    space = space_of(X)
    C = scaled / mean_square(X)
    fit = get_head(name).fit(space, y, FitOptions(C=C))
    plain, axes = oracle(name, C, X, y)
    new, _ = features(40, *shape[1:], seed=1)
    assert fit.converged
    assert fit.notes == ()
    assert np.allclose(fit.train_scores, fit.model.decision_function(X), rtol=1e-6, atol=1e-7)
    for rows in (X, new):
        expected = plain.decision_function(rows.astype(np.float64) @ axes)
        found = fit.model.decision_function(rows)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
        guess = plain.predict(rows.astype(np.float64) @ axes)
        assert np.array_equal(fit.model.predict(rows), guess)
    coef = np.atleast_2d(plain.coef_) @ axes.T
    assert fit.model.coef_.shape == coef.shape
    assert np.abs(fit.model.coef_ - coef).max() <= 1e-5 * np.abs(coef).max()
    assert np.allclose(fit.model.intercept_, plain.intercept_, rtol=1e-5, atol=1e-7)
    assert np.array_equal(fit.model.classes_, plain.classes_)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(
    ("shape", "scaled"),
    [((80, 400, 4), 1e5), ((200, 15, 3), 1e5), ((200, 400, 100), 1.0)],
    ids=str,
)
def test_the_gradient_of_the_plain_objective_vanishes(name, shape, scaled):
    """Also for huge penalties, which is what `C=1` means on raw features."""
    X, y = features(*shape)
    space = space_of(X)
    C = scaled / mean_square(X)
    model = get_head(name).fit(space, y, FitOptions(C=C)).model
    rows = X.astype(np.float64)
    scores = rows @ model.coef_.T + model.intercept_
    targets = np.eye(shape[2])[y]
    if name == "svm":
        signs = 2 * targets - 1
        slopes = -2 * C * signs * np.maximum(0, 1 - signs * scores)
        of_intercept = model.intercept_ + slopes.sum(axis=0)
    elif name == "ridge":
        slopes = 2 * C * (scores - (2 * targets - 1))
        of_intercept = slopes.sum(axis=0)
    else:
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        slopes = C * (odds / odds.sum(axis=1, keepdims=True) - targets)
        of_intercept = slopes.sum(axis=0)
    gradient = model.coef_ + slopes.T @ rows
    size = np.abs(slopes).T @ np.abs(rows)
    # The slopes of ridge are differences of nearly equal numbers where it interpolates.
    assert np.abs(gradient).max() <= (1e-5 if name == "ridge" else 1e-6) * size.max()
    assert np.abs(of_intercept).max() <= 1e-6 * np.abs(slopes).sum()


def test_two_points_by_hand():
    """x = +1 and -1: LinearSVC minimises w^2/2 + 2C (1 - w)^2, so w = 4C / (1 + 4C)."""
    X, y = np.array([[1.0], [-1.0]]), np.array([7, 3])
    model = SVM.fit(space_of(X), y, FitOptions(C=0.5)).model
    assert model.classes_.tolist() == [3, 7]
    assert model.coef_ == pytest.approx(np.array([[2 / 3]]))
    assert model.intercept_ == pytest.approx(0, abs=1e-9)
    assert model.predict(X).tolist() == [7, 3]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("shape", [(60, 120, 3), (70, 200, 2), (160, 30, 4)], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_penalty_is_the_one_that_grid_search_finds(name, shape, seed):
    X, y = features(*shape, seed=seed, noise=4.0)
    fit = get_head(name).fit(space_of(X), y, FitOptions(seed=seed))
    plain = estimator(name, wide=shape[1] > shape[0])
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    grid = {"alpha": [1 / (2 * C) for C in fit.cv.C]} if name == "ridge" else {"C": fit.cv.C}
    search = GridSearchCV(plain, grid, cv=folds, refit=False)
    search.fit(X.astype(np.float64), y)
    assert np.allclose(fit.cv.mean, search.cv_results_["mean_test_score"], atol=1e-12)
    assert search.best_index_ == fit.cv.best
    assert fit.cv.mean[fit.cv.best] == max(fit.cv.mean)
    each = [search.cv_results_[f"split{i}_test_score"] for i in range(5)]
    assert np.allclose(np.array(fit.cv.accuracy).T, each)


@pytest.mark.parametrize("name", HEADS)
def test_the_faster_search_for_many_rows_finds_the_same(name, monkeypatch):
    X, y = features(200, 500, 4, noise=4.0)
    slow = get_head(name).fit(space_of(X), y, FitOptions())
    monkeypatch.setattr(path, "_MANY_ROWS", 10)
    fast = get_head(name).fit(space_of(X), y, FitOptions())
    assert np.abs(np.array(fast.cv.mean) - slow.cv.mean).max() <= 1.01 / 200
    assert fast.cv.C == slow.cv.C


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("scale", ["none", "l2", "power"])
@pytest.mark.parametrize("shape", [(60, 120, 3), (70, 200, 2), (160, 30, 4)], ids=str)
def test_folds_that_see_their_own_rows_alone_find_the_same(name, scale, shape, monkeypatch):
    X, y = features(*shape, noise=4.0)
    options = FitOptions(seed=2, scale=scale)
    together = get_head(name).fit(space_of(X), y, options)
    monkeypatch.setattr(path, "_MANY_OUTPUTS", 1)
    seen = []
    solve = path.solve
    monkeypatch.setattr(
        path, "solve", lambda g, *a, **k: seen.append(g.n_rows) or solve(g, *a, **k)
    )
    alone = get_head(name).fit(space_of(X), y, options)
    assert max(seen[:-1]) < len(X) == seen[-1]
    assert alone.cv == together.cv
    expected = together.model.decision_function(X)
    found = alone.model.decision_function(X)
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize(("name", "n_features"), [("svm", 20), ("svm", 400), ("logreg", 15)])
def test_many_classes_of_few_images(name, n_features):
    """Far more outputs than rows of a class: curve and scores are scikit-learn's."""
    X, y = features(210, n_features, 70)
    steps = []
    fit = get_head(name).fit(space_of(X), y, FitOptions(tick=steps.append))
    assert {f"{name}: fold {i} of 3, penalty {c} of 9" for i in (1, 2, 3) for c in (1, 9)} <= set(
        steps
    )
    for C, found in zip(fit.cv.C[2:7:2], fit.cv.accuracy[2:7:2], strict=True):
        for (fitted, left_out), share in zip(fold_rows(y, 5, 0), found, strict=True):
            plain, axes = oracle(name, C, X[fitted], y[fitted])
            assert plain.score(X[left_out].astype(np.float64) @ axes, y[left_out]) == share
    plain, axes = oracle(name, fit.C, X, y)
    expected = plain.decision_function(X.astype(np.float64) @ axes)
    assert np.abs(fit.train_scores - expected).max() <= 1e-6 * np.abs(expected).max()


def test_the_smallest_of_equal_penalties_wins_and_an_edge_is_told():
    X = np.repeat(np.eye(2) * 10, 10, axis=0) + np.random.default_rng(0).normal(size=(20, 2))
    fit = LOGREG.fit(space_of(X), np.arange(20) // 10, FitOptions())
    assert set(fit.cv.mean) == {1.0}
    assert fit.C == fit.cv.C[0] == min(fit.cv.C)
    assert "C at the lower edge of the grid" in fit.notes


@pytest.mark.parametrize(("k", "folds"), [(1, None), (2, 2), (3, 3), (9, 5)])
def test_few_images_make_fewer_folds(k, folds):
    X, y = features(3 * k, 50, 3)
    fit = SVM.fit(space_of(X), y, FitOptions())
    if folds is None:
        assert fit.cv is None
        assert fit.C * mean_square(X) == pytest.approx(1.0)
        assert "not searched" in fit.notes[0]
    else:
        assert len(fit.cv.accuracy[0]) == folds


def test_a_fixed_penalty_turns_the_search_off():
    X, y = features(30, 60, 3)
    fit = SVM.fit(space_of(X), y, FitOptions(C=0.25))
    assert fit.C == 0.25
    assert fit.cv is None
    with pytest.raises(UsageError, match="C is -1"):
        SVM.fit(space_of(X), y, FitOptions(C=-1))


def test_a_scale_of_the_features_changes_c_and_nothing_else():
    X, y = features(60, 200, 3, dtype=np.float64)
    small, large = (SVM.fit(space_of(X * s), y, FitOptions()) for s in (1.0, 1000.0))
    # LinearSVC's penalised intercept is the one thing that does not scale along.
    assert pytest.approx(large.C * 1e6) == small.C
    assert LOGREG.fit(space_of(X), y, FitOptions()).cv.mean == pytest.approx(
        LOGREG.fit(space_of(X * 1000), y, FitOptions()).cv.mean
    )


def test_fits_repeat_to_the_last_bit():
    X, y = features(300, 700, 3)
    first, second = (LOGREG.fit(space_of(X), y, FitOptions(seed=4)) for _ in range(2))
    assert np.array_equal(first.model.coef_, second.model.coef_)
    assert first.cv == second.cv


def test_degenerate_rows():
    X, y = np.zeros((6, 10), dtype=np.float32), np.array([0, 1, 0, 1, 0, 1])
    for name in HEADS:
        assert np.isfinite(get_head(name).fit(space_of(X), y, FitOptions(C=1.0)).model.coef_).all()
    for name in available_heads():
        with pytest.raises(ProtocolError, match="two classes"):
            get_head(name).fit(space_of(X), np.zeros(6, dtype=np.int64), FitOptions())


def test_unknown_heads_name_their_neighbours():
    with pytest.raises(UsageError, match="did you mean svm"):
        get_head("svn")


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("shape", [(90, 300, 3), (90, 300, 2), (200, 15, 4), (120, 20, 2)], ids=str)
def test_balanced_class_weights_are_scikit_learns(name, shape):
    X, y = features(*shape)
    some = np.flatnonzero((y > 0) | (np.arange(len(y)) % 16 == 0))  # the first class is rare
    X, y = X[some], y[some]
    C = 0.3 / mean_square(X)
    fit = get_head(name).fit(space_of(X), y, FitOptions(C=C, class_weight="balanced"))
    plain, axes = oracle(name, C, X, y, "balanced")
    expected = plain.decision_function(X.astype(np.float64) @ axes)
    unweighted = get_head(name).fit(space_of(X), y, FitOptions(C=C)).model.decision_function(X)
    found = fit.model.decision_function(X)
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    assert np.abs(found - unweighted).max() >= 1e-2 * np.abs(expected).max()


SCALERS = {
    "none": FunctionTransformer(),
    "l2": Normalizer(),
    "standard": StandardScaler(),
    "power": make_pipeline(
        FunctionTransformer(lambda X: np.sign(X) * np.abs(X) ** 0.5), Normalizer()
    ),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("scale", SCALERS)
@pytest.mark.parametrize("shape", [(50, 70, 3), (160, 20, 4)], ids=str)
def test_scalings_are_pipelines_fitted_inside_each_fold(name, scale, shape):
    X, y = features(*shape, noise=4.0)
    X[:, 1] *= 30
    X[:, 3] -= 5
    X[5] = 0
    fit = get_head(name).fit(space_of(X), y, FitOptions(seed=1, scale=scale))
    plain = estimator(name, wide=shape[1] > shape[0])
    parameter = "alpha" if name == "ridge" else "C"
    values = [1 / (2 * C) if name == "ridge" else C for C in fit.cv.C]
    model = Pipeline([("scale", SCALERS[scale]), ("head", plain)])
    folds = StratifiedKFold(5, shuffle=True, random_state=1)
    search = GridSearchCV(model, {f"head__{parameter}": values}, cv=folds)
    search.fit(X.astype(np.float64), y)
    assert np.allclose(fit.cv.mean, search.cv_results_["mean_test_score"], atol=1e-12)
    assert search.best_index_ == fit.cv.best
    new, _ = features(40, *shape[1:], seed=1)
    expected = search.decision_function(new.astype(np.float64))
    assert (
        np.abs(fit.model.decision_function(new) - expected).max() <= 1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("scale", ["none", "l2", "standard", "power"])
@pytest.mark.parametrize("shape", [(80, 150, 3), (160, 30, 2)], ids=str)
def test_rows_that_do_not_fit_into_memory_are_read_in_blocks(name, scale, shape, monkeypatch):
    X, y = features(*shape)
    options = FitOptions(scale=scale)
    within = get_head(name).fit(space_of(X), y, options)
    for module in (linear_space, rowspace):
        monkeypatch.setattr(module, "available_bytes", lambda: 2 * 8 * 30)
    monkeypatch.setattr(linear_space, "_BLOCK_BYTES", 8 * shape[1] * 17)
    on_disk = RowsView(np.vstack([X, X]), np.arange(len(X)) + len(X))
    space = RowSpace(Pool(on_disk), np.arange(len(X)))
    assert LinearSpace(space.scaled(scale), is_free=True).is_streamed
    without = get_head(name).fit(space, y, options)
    assert without.cv.accuracy == within.cv.accuracy
    assert pytest.approx(within.C) == without.C
    found, expected = (fit.model.decision_function(X) for fit in (without, within))
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("name", HEADS)
def test_with_many_rows_all_eigenpairs_save_most_products(name, monkeypatch):
    rng = np.random.default_rng(0)
    X, y = features(1500, 40, 4, noise=4.0)
    X = X * np.logspace(0, -2, 40, dtype=np.float32)[rng.permutation(40)]
    products = []
    product = geometry.RowGeometry.normal_product
    monkeypatch.setattr(
        geometry.RowGeometry,
        "normal_product",
        lambda self, u, middle: products.append(1) or product(self, u, middle),
    )
    counts, scores = [], []
    for whole in (linear_space._WHOLE, 0):
        monkeypatch.setattr(linear_space, "_WHOLE", whole)
        products.clear()
        fit = get_head(name).fit(space_of(X), y, FitOptions(C=100 / mean_square(X)))
        counts.append(len(products))
        scores.append(fit.model.decision_function(X))
    assert np.abs(scores[0] - scores[1]).max() <= 1e-6 * np.abs(scores[1]).max()
    assert counts[0] < counts[1] / 2


@pytest.mark.parametrize("k", [3, 10, 80])
def test_an_intercept_s_eigenvalue_of_0_stays_0_in_float32(k):
    rng = np.random.default_rng(k)
    p = rng.dirichlet(np.ones(k), 500).astype(np.float32)
    total = np.diag(p.sum(axis=0)) - p.T @ p
    rounded = (total + 1e-6 * rng.normal(size=(k, k)) * total.max()).astype(np.float32)
    inverse = newton_system._inverse((rounded + rounded.T)[None].astype(np.float64) / 2)[0]
    sums = rng.normal(size=k)
    sums -= sums.mean()
    expected = np.linalg.pinv(total.astype(np.float64), rcond=1e-4) @ sums
    assert np.abs(inverse @ sums - expected).max() <= 1e-2 * np.abs(expected).max()


def test_settings_are_part_of_a_head_s_name():
    assert get_head("mlp(hidden=7,5 alpha=0.5)").hidden == (7, 5)
    assert get_head("svm()") is SVM
    with pytest.raises(UsageError, match="hiden"):
        get_head("mlp(hiden=7)")
    with pytest.raises(UsageError, match="svm has no settings"):
        get_head("svm(hidden=7)")


DEVICES = ["cpu:0", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)  # cpu:0 is torch's CPU, by the path of a GPU
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("shape", [(80, 150, 3), (160, 30, 4)], ids=str)
def test_on_a_device_of_torch_fits_are_the_same(name, shape, device, monkeypatch):
    X, y = features(*shape, noise=4.0)
    options = FitOptions(scale="standard" if name == "ridge" else "none")
    within = get_head(name).fit(space_of(X), y, options)
    products = []
    times = TorchMatrix.times
    monkeypatch.setattr(
        TorchMatrix, "times", lambda self, v: products.append(v.shape) or times(self, v)
    )
    there = get_head(name).fit(RowSpace(Pool(X, device), np.arange(len(X))), y, options)
    assert len(products) > 10
    assert there.cv.accuracy == within.cv.accuracy
    expected = within.model.decision_function(X)
    assert (
        np.abs(there.model.decision_function(X) - expected).max() <= 1e-6 * np.abs(expected).max()
    )


def test_a_device_that_is_not_there_is_told():
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") in ("cpu", "cuda")
    with pytest.raises(UsageError, match=r"'cuda:99' is not there: choose from cpu"):
        choose_device("cuda:99")
