"""Whole evaluations on small caches, recomputed with plain scikit-learn."""

from __future__ import annotations

import io
import json
import re
from threading import current_thread

import numpy as np
import pytest
from memory_cache import make_cache
from sklearn.decomposition import PCA
from sklearn.metrics import confusion_matrix, f1_score, precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from sklearn.svm import LinearSVC

from featx.errors import ProtocolError, UsageError
from featx.evaluate import Pair, Settings, evaluate
from featx.evaluate.run import require_unseen
from featx.heads import rowspace
from featx.progress import Reporter
from featx.records import record_text


def run(pair, **settings):
    stream = io.StringIO()
    results = evaluate(pair, Settings(**settings), reporter=Reporter(quiet=True, stream=stream))
    return results, stream.getvalue()


@pytest.mark.parametrize("k", [4, 15], ids=["draws apart", "draws that share a pool"])
@pytest.mark.parametrize("split", ["test", "all"])
def test_a_reported_score_can_be_computed_again_from_what_was_stored(pair, split, k):
    if split == "all":
        whole = make_cache(90, split="all")
        pair = Pair(whole, whole)
    results, _ = run(pair, per_class=(k,), repeats=2, seed=3)
    record = json.loads(record_text("fit", results[1].record()))
    rows, test_rows = np.array(record["train_rows"]), record["test_rows"]
    test_rows = np.arange(45) if test_rows == "all" else np.array(test_rows)
    assert len(rows) == 3 * k
    if split == "all":
        assert not set(rows) & set(test_rows)
        assert len(test_rows) == 18
    plain = LinearSVC(C=record["fit"]["C"], tol=1e-8, max_iter=100_000)
    plain.fit(pair.train.X[rows].astype(float), pair.train.y[rows])
    guess = plain.predict(pair.test.X[test_rows].astype(float))
    truth = pair.test.y[test_rows]
    assert record["fit"]["acc1"] == np.mean(guess == truth)
    assert record["fit"]["macro_f1"] == pytest.approx(f1_score(truth, guess, average="macro"))
    assert record["confusion_matrix"] == confusion_matrix(truth, guess).tolist()
    assert record["per_class"]["precision"] == pytest.approx(
        precision_score(truth, guess, average=None, zero_division=0)
    )
    assert record["per_class"]["support"] == np.bincount(truth).tolist()
    assert record["fit"]["cv_accuracy"] == max(np.mean(record["cv"]["accuracy"], axis=1))
    assert record["fit"]["seed"] == 4


def test_one_class_for_all_test_images_is_told(pair):
    """Rows of another kind than those that were fitted."""
    results, _ = run(pair, heads=("svm", "ncm"), near="off", per_class=(4,))
    assert not any("predicts one class" in result.notes for result in results)
    pair.test.X[:] = -pair.train.X[0]
    results, _ = run(pair, heads=("svm", "ncm"), near="off", per_class=(4,))
    for result in results:
        (only,) = set(result.detail["predictions"])
        told = f"predicts one class for all test images: {pair.train.class_names[only]}"
        assert told in result.notes.split("; ")


def test_one_result_for_every_head_size_and_draw(pair):
    seen = []
    settings = Settings(heads=("svm", "logreg", "mlp"), per_class=(2, 5), repeats=2)
    results = evaluate(pair, settings, sink=lambda result, fit: seen.append((result, fit)))
    assert [result for result, _ in seen] == results
    assert len({r.fit_id for r in results}) == len(results) == 12
    assert all(fit.model.predict(pair.test.X).shape == (45,) for _, fit in seen)
    for result in results:
        assert (result.C is None) == (result.clf == "mlp")
        assert result.n_train == 3 * int(result.per_class)
        assert result.n_features == 100
        assert min(result.fit_seconds, result.predict_seconds) > 0


@pytest.mark.parametrize("n_jobs", [3, -1])
def test_fits_side_by_side_give_the_same_in_the_same_order(pair, n_jobs):
    threads = []
    settings = {"heads": ("svm", "mlp", "logreg"), "per_class": (4, 9), "repeats": 2}

    def fits(n_jobs):
        models = []

        def sink(result, fit):
            threads.append(current_thread())
            models.append(fit.model.decision_function(pair.test.X))

        return evaluate(pair, Settings(**settings, n_jobs=n_jobs), sink=sink), models

    (one, of_one), (many, of_many) = fits(1), fits(n_jobs)
    assert set(threads) == {current_thread()}
    assert [r.fit_id for r in one] == [r.fit_id for r in many]
    for a, b in zip(of_one, of_many, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    for a, b in zip(one, many, strict=True):
        assert (a.acc1, a.C, a.cv_accuracy, a.notes) == (b.acc1, b.C, b.cv_accuracy, b.notes)


def test_an_error_in_a_thread_is_raised_here(pair):
    def sink(result, fit):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(pair, Settings(per_class=(4,), repeats=4, n_jobs=2), sink=sink)
    pair.test.X[:] = np.nan
    with pytest.raises(ProtocolError, match="NaN"):
        run(pair, per_class=(4,), n_jobs=2, near="off")


@pytest.mark.parametrize("scale", ["l2", "standard", "power", "whiten=5"])
def test_scaling_is_that_of_scikit_learn_and_has_its_own_fits(pair, scale):
    steps = {
        "l2": [Normalizer()],
        "standard": [StandardScaler()],
        "power": [FunctionTransformer(np.sqrt), Normalizer()],  # no feature is negative
        "whiten=5": [PCA(5, whiten=True, svd_solver="full")],
    }
    (plain,), _ = run(pair, per_class=(9,), repeats=1)
    (result,), _ = run(pair, per_class=(9,), repeats=1, scale=scale)
    assert result.scale == scale
    assert plain.fit_id != result.fit_id
    rows = result.detail["train_rows"]
    model = make_pipeline(*steps[scale], LinearSVC(C=result.C, tol=1e-8, max_iter=100_000))
    model.fit(pair.train.X[rows].astype(float), pair.train.y[rows])
    assert result.acc1 == model.score(pair.test.X.astype(float), pair.test.y)


@pytest.mark.parametrize("scale", ["none", "l2", "power", "whiten"])
@pytest.mark.parametrize(
    ("heads", "is_needed"),
    [
        (
            ("ncm", "sklearn.naive_bayes:GaussianNB", "mlp-torch(inputs=features max_epochs=1)"),
            False,
        ),
        (("ncm", "ridge"), True),
    ],
)
def test_a_gram_matrix_is_made_once_where_a_head_or_whitening_needs_it(
    pair, monkeypatch, scale, heads, is_needed
):
    made = []

    def counted(*args):
        made.append(args)
        return gram_of(*args)

    gram_of = rowspace.gram_of
    monkeypatch.setattr(rowspace, "gram_of", counted)
    results, _ = run(
        pair, heads=heads, per_class=(9,), repeats=1, scale=scale, allow_code=(heads[1],)
    )
    assert not any(result.error for result in results)
    assert len(made) == (is_needed or scale == "whiten")


def test_the_test_split_has_no_part_in_the_fit(pair):
    before, _ = run(pair, per_class=(5,), repeats=1)
    pair.test.y[:] = pair.test.y[::-1].copy()
    after, _ = run(pair, per_class=(5,), repeats=1)
    assert (before[0].C, before[0].cv_accuracy) == (after[0].C, after[0].cv_accuracy)
    assert before[0].acc1 != after[0].acc1


def test_unusable_rows_take_no_part_and_are_counted(pair):
    for cache, rows in ((pair.train, [0, 7]), (pair.test, [3])):
        cache.status[rows] = 2
        cache.X[rows] = np.nan
    pair.test.y[5] = -1
    results, text = run(pair, per_class=("all",))
    assert results[0].n_train == 58
    assert results[0].n_test == 43
    assert "2 rows of cache/farm-train.h5 are unusable" in text
    assert "2 rows of cache/farm-test.h5" in text
    assert 0 not in results[0].detail["train_rows"]
    assert results[0].detail["test_rows"] == [i for i in range(45) if i not in (3, 5)]


def test_nan_in_a_used_row_is_an_error_that_names_it(pair):
    pair.test.X[17, 4] = np.nan
    with pytest.raises(ProtocolError, match=r"NaN or infinity \(rows 17\)"):
        run(pair, per_class=("all",))
    pair.test.X[17, 4] = 0
    pair.train.X[[31, 40], 4] = np.inf
    pair.train.status[0] = 2  # so that a row's number is not its place in what is read
    with pytest.raises(ProtocolError, match=r"2 rows .* \(rows 31, 40\)"):
        run(pair, per_class=("all",))


def test_a_head_is_never_scored_on_rows_it_was_fitted_on(pair, monkeypatch):
    require_unseen(("a", np.array([1, 2])), ("b", np.array([2, 3])))
    require_unseen(("a", np.array([1, 2])), ("a", np.array([3])))
    with pytest.raises(ProtocolError, match="1 rows would be scored .* first is 2"):
        require_unseen(("a", np.array([1, 2])), ("a", np.array([2, 3])))
    same = Pair(pair.train, pair.train)
    monkeypatch.setattr(Pair, "split", lambda *_: (np.ones(60, bool), np.arange(60)))
    with pytest.raises(ProtocolError, match="would be scored"):
        run(same, per_class=(5,))


def test_too_few_images_name_the_class(pair):
    with pytest.raises(ProtocolError, match="'ant' has 20 .* largest number that works is 20"):
        run(pair, per_class=(21,))


def test_no_test_rows(pair):
    pair.test.y[:] = -1
    with pytest.raises(ProtocolError, match="no test image"):
        run(pair)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"heads": ("swm",)}, "did you mean svm"),
        ({"per_class": (0,)}, "per_class is 0"),
        ({"per_class": ("some",)}, "per_class is 'some'"),
        ({"scale": "l1"}, "unknown scale 'l1'"),
        ({"class_weight": "equal"}, "class_weight is 'equal': give 'balanced'"),
        ({"n_jobs": 0}, "n_jobs is 0: give 1 or more, or -1"),
    ],
)
def test_settings_that_do_not_fit(settings, text):
    with pytest.raises(UsageError, match=text):
        Settings(**settings)


def test_class_weights_are_refused_before_the_first_fit_where_a_head_has_none():
    assert Settings(heads=("svm", "mlp-torch"), class_weight="balanced").class_weight
    with pytest.raises(UsageError, match="knn cannot weight its classes"):
        Settings(heads=("svm", "knn"), class_weight="balanced")


def test_a_fit_says_what_it_does_while_it_goes_on(pair, monkeypatch):
    monkeypatch.setattr("featx.progress._SECONDS_BETWEEN_LINES", 0.0)
    stream = io.StringIO()
    settings = Settings(heads=("svm",), per_class=(5,), repeats=1)
    evaluate(pair, settings, reporter=Reporter(stream=stream))
    said = stream.getvalue()
    assert re.search(r"0/1.*\(svm: folds 1 to \d of \d, penalty 1 of 9\)", said)
    assert "(svm: last fit)" in said
