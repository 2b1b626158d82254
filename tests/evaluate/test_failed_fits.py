"""One fit that fails is a row with its reason; the others go on, and it is tried again."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from memory_cache import make_cache

from featx.errors import ProtocolError, UsageError
from featx.evaluate import Pair, ResultsFolder, Settings, compare, evaluate, format_table, summarise
from featx.evaluate.systems import find_idle
from featx.heads import FitOptions, canonical_name
from featx.progress import Reporter
from featx.records import record_text

EVERY = ("svm", "logreg", "ridge", "mlp", "mlp-torch(device=cpu)", "knn", "ncm", "lda")
LARGEST = 2**32 - 1


def ask(pair, folder=None, **options):
    usual = {"repeats": 1, "per_class": (4,), "near": "off"}
    results = None if folder is None else ResultsFolder(folder)
    settings = Settings(**{**usual, **options})
    sink = None if results is None else lambda result, fit: results.add(result)
    return evaluate(pair, settings, sink=sink, known=results)


def changed(change, n=90):
    """A pair whose features are changed, with more rows than the solvers' small cases."""
    parts = make_cache(n), make_cache(45, split="test")
    for part in parts:
        part.X = change(np.asarray(part.X, dtype=np.float64)).astype(np.float32)
    return Pair(*parts)


@pytest.mark.parametrize("value", [0.0, 0.37, 3.0])
@pytest.mark.parametrize("scale", ["none", "standard"])
def test_features_that_say_nothing_give_one_class_and_no_error(value, scale):
    pair = changed(lambda X: np.full_like(X, value), n=600)
    results = ask(pair, heads=EVERY, per_class=("all",), scale=scale)
    assert [r.error for r in results] == [""] * len(EVERY)
    assert {r.acc1 for r in results} == {1 / 3}


@pytest.mark.parametrize("factor", [1e-10, 1e30])
def test_the_scale_of_the_features_does_not_end_a_run(factor):
    plain = ask(changed(lambda X: X), heads=EVERY)
    results = ask(changed(lambda X: X * factor), heads=EVERY)
    assert [r.error for r in results] == [""] * len(EVERY)
    assert all(r.acc1 > 0.7 for r in (*plain, *results))


def test_scores_beyond_all_numbers_are_a_reason(pair, tmp_path):
    for part in (pair.train, pair.test):
        part.X = np.asarray(part.X, dtype=np.float64) * 1e-160
    svm, knn = ask(pair, tmp_path, heads=("svm", "knn"))
    assert "mean squared norm" in svm.error
    assert svm.acc1 is None
    assert knn.error == ""


def test_a_system_whose_fits_all_failed_is_not_called_unknown(pair, tmp_path):
    heads = ("svm", "knn(n_neighbors=9)")
    results = ask(pair, tmp_path, heads=heads, per_class=(2,))
    for place in (tmp_path, results):
        with pytest.raises(ProtocolError, match=r"all 1 fits of 'knn\(n_neighbors=9\)' failed \("):
            compare(list(heads), place)
        with pytest.raises(UsageError, match="no fit has 'ncm'"):
            compare(["svm", "ncm"], place)


def test_a_failed_fit_is_recorded_is_no_answer_and_is_tried_again(pair, tmp_path, monkeypatch):
    heads = ("svm", "knn(n_neighbors=9)")
    results = ask(pair, tmp_path, heads=heads, per_class=(2, 5))
    assert [bool(r.error) for r in results] == [False, True, False, False]
    failed = results[1]
    (record,) = (
        json.loads(p.read_text()) for p in tmp_path.glob("fits/*.json") if failed.fit_id in p.name
    )
    assert record["error"] == failed.error
    assert record["fit"]["acc1"] is None
    assert "FitError" in record["traceback"]
    assert list(ResultsFolder(tmp_path).find(failed.fit_id)) == []
    assert [r.error for r in ResultsFolder(tmp_path).fits()] == [r.error for r in results]
    text = format_table(summarise(results))
    assert "knn(n_neighbors=9): failed: n_neighbors=9 but there are 6 training rows" in text
    again = ask(pair, tmp_path, heads=heads, per_class=(2, 5))
    assert [r.created for r in again if not r.error] == [r.created for r in results if not r.error]
    assert again[1].error
    assert len(compare(["svm", "knn(n_neighbors=9)"], tmp_path)) == 1


def test_a_failure_never_stands_before_a_fit_that_worked(pair, tmp_path, monkeypatch):
    from featx.heads.lda import LdaHead

    def fail(self, space, y, options):
        raise ZeroDivisionError

    (good,) = ask(pair, tmp_path, heads=("lda",))
    monkeypatch.setattr(LdaHead, "fit", fail)
    settings = Settings(heads=("lda",), repeats=1, per_class=(4,), near="off")
    for _ in range(3):  # as with --refit
        results = ResultsFolder(tmp_path)
        evaluate(pair, settings, sink=lambda result, fit, to=results: to.add(result))
    assert len(list(tmp_path.glob("fits/*"))) == 2
    results = ResultsFolder(tmp_path)
    assert list(results.fits()) == [good]
    results.remove(find_idle(results))
    assert list(ResultsFolder(tmp_path).find(good.fit_id)) == [good]


def test_what_the_machine_lacks_is_no_property_of_a_fit(pair, tmp_path, monkeypatch):
    from featx.heads.lda import LdaHead

    def lacks(error):
        def fit(self, space, y, options):
            raise error

        return fit

    class OutOfMemoryError(RuntimeError):
        """Called as torch's."""

    for error, raised in (
        (MemoryError("8 GB"), MemoryError),
        (OutOfMemoryError("CUDA"), MemoryError),
        (OSError(28, "No space left"), OSError),
        (SystemExit(3), SystemExit),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):
        monkeypatch.setattr(LdaHead, "fit", lacks(error))
        with pytest.raises(raised):
            ask(pair, tmp_path, heads=("lda",))
        assert not list(tmp_path.glob("fits/*"))
    monkeypatch.setattr(LdaHead, "fit", lacks(ZeroDivisionError()))
    (result,) = ask(pair, tmp_path, heads=("lda",), n_jobs=2)
    assert result.error == "ZeroDivisionError"


def test_a_training_that_a_library_gave_up_is_no_fit(pair, monkeypatch):
    """Off the main thread no signal is raised: what libraries swallow is seen all the same."""
    import skorch
    from sklearn.neural_network import MLPClassifier

    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(MLPClassifier, "_update_no_improvement_count", stop)
    monkeypatch.setattr(skorch.NeuralNet, "train_step", stop)
    for head in ("mlp", "mlp-torch(device=cpu)"):
        for repeats in (1, 2):
            with pytest.raises(KeyboardInterrupt):
                ask(pair, heads=(head,), repeats=repeats, n_jobs=repeats)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("C", value) for value in (float("inf"), float("nan"), 0, -1, "1", True)),
        *(("seed", value) for value in (-1, 2**32, 1.5, "0", True)),
        *(("holdout_seed", value) for value in (-1, 2**32)),
        *(("repeats", value) for value in (0, 1.5)),
        *(("folds", value) for value in (1, float("nan"))),
        *(("holdout", value) for value in (float("nan"), 0, 1)),
    ],
)
def test_numbers_that_no_fit_can_take_are_refused_at_once(option, value):
    with pytest.raises(UsageError, match=f"^{option} is "):
        Settings(**{option: value})
    if option in ("C", "seed", "folds"):
        with pytest.raises(UsageError, match=f"^{option} is "):
            FitOptions(**{option: value})


def test_the_seed_of_the_last_draw_counts():
    assert Settings(seed=LARGEST - 4, repeats=5).seed == LARGEST - 4
    with pytest.raises(UsageError, match=f"at most {LARGEST - 4}"):
        Settings(seed=LARGEST - 3, repeats=5)


def test_the_largest_seed_can_be_fitted(pair):
    assert not any(r.error for r in ask(pair, heads=EVERY, seed=LARGEST))


def test_one_head_has_one_name():
    allowed = ("sklearn.svm:LinearSVC",)
    for typed, name in {
        "mlp(hidden=100)": "mlp",
        "mlp()": "mlp",
        "mlp(max_iter=200 hidden=64)": "mlp(hidden=64)",
        "mlp(max_iter=9 hidden=64,32)": "mlp(hidden=64,32 max_iter=9)",
        "mlp-torch(lr=1e-2)": "mlp-torch(lr=0.01)",
        "knn(n_neighbors=1,3)": "knn(n_neighbors=1,3)",
        "sklearn.svm:LinearSVC(C=1.0)": "sklearn.svm:LinearSVC",
        "sklearn.svm:LinearSVC(tol=1e-3 C=2)": "sklearn.svm:LinearSVC(C=2 tol=1e-3)",
    }.items():
        assert canonical_name(typed, allowed) == name
        assert canonical_name(name, allowed) == name
    assert Settings(heads=("mlp", "svm", "mlp(hidden=100)", "svm")).heads == ("mlp", "svm")


class Heard(Reporter):
    def warn(self, text):
        HEARD.append(text)


HEARD: list[str] = []


def rewrite(path, kind, change):
    record = json.loads(path.read_text())
    values = {k: v for k, v in record.items() if k not in ("featx", "version", "sha256")}
    path.write_text(record_text(kind, change(values)))


@pytest.mark.parametrize(
    "change",
    [
        lambda values: {"key": values["key"]},
        lambda values: values | {"found": 3},
        lambda values: values | {"found": [[1]]},
        lambda values: values | {"near": {"rule": {}}},
        lambda values: {},
    ],
)
def test_leaks_of_another_content_are_told_and_searched_again(pair, tmp_path, change):
    (before,) = ask(pair, tmp_path)
    (path,) = tmp_path.glob("leaks/*.json")
    rewrite(path, "leaks", change)
    HEARD.clear()
    results = ResultsFolder(tmp_path, Heard())
    settings = Settings(repeats=1, per_class=(4,), near="off")
    (found,) = evaluate(pair, settings, known=results, reporter=Heard())
    assert found == before
    assert not change({"key": 1}) or any("not used" in line for line in HEARD)


def test_records_nested_too_deep_are_told(pair, tmp_path):
    (before,) = ask(pair, tmp_path)
    (path,) = tmp_path.glob("fits/*.json")
    for depth in (900, 980, 3000, 100_000):
        path.write_text('{"featx": "fit", "version": 1, "a": ' + "[" * depth + "]" * depth + "}")
        HEARD.clear()
        results = ResultsFolder(tmp_path, Heard())
        assert list(results.find(before.fit_id)) == []
        assert len(HEARD) == 1
    settings = Settings(repeats=1, per_class=(4,), near="off")
    (found,) = evaluate(pair, settings, known=ResultsFolder(tmp_path, Heard()))
    assert replace(
        found, **dict.fromkeys(("fit_seconds", "predict_seconds", "created"), 0)
    ) == replace(before, **dict.fromkeys(("fit_seconds", "predict_seconds", "created"), 0))
