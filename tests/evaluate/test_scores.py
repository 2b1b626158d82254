"""Measures against scikit-learn's, and a calibration error written out."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass

import numpy as np
import pytest
from memory_cache import make_cache
from scipy.special import softmax
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    roc_auc_score,
    top_k_accuracy_score,
)
from statistics_by_hand import calibration_error

from featx.evaluate import Pair, Settings, evaluate
from featx.evaluate.scores import confusion_of, expected_calibration_error, score
from featx.progress import Reporter
from featx.records import record_text


@dataclass
class Softmax:
    classes_: np.ndarray
    has_probabilities: bool = True

    def probabilities(self, scores):
        logits = np.column_stack([0 * scores, scores]) if scores.ndim == 1 else scores
        return softmax(logits, axis=1) if self.has_probabilities else None


def question(n_classes, n_rows=200, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, n_classes, n_rows)
    decisions = rng.normal(size=(n_rows, n_classes)) + 1.5 * np.eye(n_classes)[truth]
    return truth, decisions, [f"c{i}" for i in range(n_classes)]


@pytest.mark.parametrize("n_classes", [3, 5, 6, 12])
def test_every_measure_is_scikit_learns(n_classes):
    truth, decisions, names = question(n_classes)
    found = score(truth, decisions, Softmax(np.arange(n_classes)), names)
    guess, p = decisions.argmax(axis=1), softmax(decisions, axis=1)
    assert found.guess.tolist() == guess.tolist()
    assert found.acc1 == accuracy_score(truth, guess)
    if n_classes > 5:
        assert found.acc5 == pytest.approx(top_k_accuracy_score(truth, decisions, k=5))
    else:
        assert found.acc5 is None
    assert found.recall == pytest.approx(balanced_accuracy_score(truth, guess))
    assert found.macro_f1 == pytest.approx(f1_score(truth, guess, average="macro"))
    one_hot = np.eye(n_classes)[truth]
    assert found.auroc == pytest.approx(roc_auc_score(one_hot, decisions, average="macro"))
    of_scores = average_precision_score(one_hot, decisions, average="macro")
    assert found.average_precision == pytest.approx(of_scores)
    assert found.log_loss == pytest.approx(log_loss(truth, p))
    assert found.ece == pytest.approx(calibration_error(truth == guess, p.max(axis=1)))
    assert 0 < found.ece < 1


def test_rankings_with_many_equal_scores_are_scikit_learns():
    truth, decisions, names = question(7, 300)
    decisions = np.round(decisions)
    found = score(truth, decisions, Softmax(np.arange(7)), names)
    columns = [(truth == label, decisions[:, label]) for label in range(7)]
    assert found.auroc == pytest.approx(np.mean([roc_auc_score(*c) for c in columns]))
    averages = [average_precision_score(*c) for c in columns]
    assert found.average_precision == pytest.approx(np.mean(averages))


@pytest.mark.parametrize(("n_classes", "form"), [(12, "matrix"), (500, "cells")])
def test_confusions_take_the_shorter_form_and_read_the_same(n_classes, form):
    truth, decisions, names = question(n_classes)
    detail = score(truth, decisions, Softmax(np.arange(n_classes)), names).detail
    assert [name for name in detail if name.startswith("confusion_")] == [f"confusion_{form}"]
    counted = confusion_matrix(truth, decisions.argmax(axis=1), labels=np.arange(n_classes))
    older = {"class_names": names, "confusion_matrix": counted.tolist()}
    for record in (json.loads(json.dumps(detail)), older):
        assert np.array_equal(confusion_of(record).toarray(), counted)
    # 500 x 500 numbers take 750 kB.
    assert len(json.dumps(detail)) < 70_000


def test_two_classes_have_one_column_of_scores():
    truth, both, names = question(2)
    decisions = both[:, 1] - both[:, 0]
    found = score(truth, decisions, Softmax(np.arange(2)), names)
    assert found.auroc == pytest.approx(roc_auc_score(truth, decisions))
    assert found.average_precision == pytest.approx(average_precision_score(truth, decisions))
    of_network = score(truth, both, Softmax(np.arange(2)), names)
    assert of_network.auroc == pytest.approx(found.auroc)
    assert of_network.average_precision == pytest.approx(found.average_precision)
    p = softmax(np.column_stack([np.zeros(200), decisions]), axis=1)
    assert found.acc1 == accuracy_score(truth, decisions > 0)
    assert found.log_loss == pytest.approx(log_loss(truth, p))
    assert found.ece == pytest.approx(calibration_error(truth == (decisions > 0), p.max(axis=1)))


def test_without_probabilities_there_is_no_loss():
    found = score(*question(3)[:2], Softmax(np.arange(3), False), ["a", "b", "c"])
    assert found.log_loss is None
    assert found.ece is None


def test_a_class_without_test_images_and_one_never_fitted():
    truth = np.array([0, 0, 3, 3])
    decisions = np.array([[3.0, 0, 0], [0, 2.0, 0], [0, 0, 1.0], [0, 1.0, 0]])
    found = score(truth, decisions, Softmax(np.array([0, 1, 2])), list("abcd"))
    assert found.recall == 0.25  # (1/2 + 0) / 2
    per_class = [roc_auc_score(truth == 0, decisions[:, 0]), 0.5]  # no score for the last class
    assert found.auroc == pytest.approx(np.mean(per_class))
    precision = [average_precision_score(truth == 0, decisions[:, 0]), 0.5]
    assert found.average_precision == pytest.approx(np.mean(precision))
    guess = [0, 1, 2, 1]
    assert found.macro_f1 == pytest.approx(f1_score(truth, guess, average="macro", zero_division=0))
    p = np.column_stack([softmax(decisions, axis=1), np.zeros(4)])
    by_hand = -np.log(np.maximum(p[range(4), truth], np.finfo(float).eps)).mean()
    assert found.log_loss == pytest.approx(by_hand)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_with_one_class_tested_there_is_no_ranking(n_classes):
    _, decisions, names = question(n_classes)
    decisions = decisions[:, 1] if n_classes == 2 else decisions
    found = score(np.ones(200, np.int64), decisions, Softmax(np.arange(n_classes)), names)
    assert (found.auroc, found.average_precision) == (None, None)
    assert found.acc1 > 0


def test_the_most_confident_mistakes_are_named_and_confidence_is_counted():
    truth = np.array([0, 1, 2, 0, 1])
    decisions = np.array([[5.0, 0, 0], [3, 1, 0], [0, 0, 9.0], [0, 4, 0], [1, 0.9, 0]])
    with_chances = score(truth, decisions, Softmax(np.arange(3)), list("abc")).detail
    p = softmax(decisions, axis=1).max(axis=1)
    wrong = with_chances["most_confident_wrong"]
    assert wrong == {"confidence": "probability", "test_rows": [[3, p[3]], [1, p[1]], [4, p[4]]]}
    calibration = with_chances["calibration"]
    assert sum(calibration["images"]) == 5
    assert sum(calibration["right"]) == 2
    assert sum(calibration["confidence"]) == pytest.approx(p.sum())
    plain = score(
        truth, decisions, Softmax(np.arange(3), has_probabilities=False), list("abc")
    ).detail
    assert "calibration" not in plain
    assert plain["most_confident_wrong"]["test_rows"] == [
        [3, 4.0],
        [1, 2.0],
        [4, pytest.approx(0.1)],
    ]
    two = score(
        truth[:2], np.array([0.5, -2.0]), Softmax(np.arange(2), has_probabilities=False), list("ab")
    ).detail
    assert two["most_confident_wrong"]["test_rows"] == [[1, 2.0], [0, 0.5]]


def test_calibration_by_hand():
    """Two bins: (0.8, 0.867] has 1 of 2 right, (0.933, 1] has 3 of 3."""
    right = np.array([True, False, True, True, True])
    confidence = np.array([0.85, 0.86, 1.0, 0.95, 0.99])
    by_hand = 2 / 5 * abs(0.5 - 0.855) + 3 / 5 * abs(1 - 2.94 / 3)
    assert expected_calibration_error(right, confidence) == pytest.approx(by_hand)
    assert expected_calibration_error(np.array([True, False]), np.array([0.5, 0.5])) == 0
    edge = np.array([1 / 15, 2 / 15, 0.0])
    assert expected_calibration_error(np.zeros(3, bool), edge) == pytest.approx(edge.mean())


@pytest.fixture
def fits(pair):
    settings = Settings(heads=("svm", "logreg", "mlp"), per_class=(9,), repeats=1)
    kept = []
    evaluate(pair, settings, sink=lambda *both: kept.append(both))
    return kept


def test_the_columns_of_a_fit_are_those_of_its_model(pair, fits):
    for result, fit in fits:
        decisions = fit.model.decision_function(pair.test.X)
        guess = fit.model.classes_[decisions.argmax(axis=1)]
        assert result.acc1 == np.mean(guess == pair.test.y)
        assert result.recall == pytest.approx(balanced_accuracy_score(pair.test.y, guess))
        assert result.acc5 is None
        one_hot = np.eye(len(fit.model.classes_))[pair.test.y]
        assert result.auroc == pytest.approx(roc_auc_score(one_hot, decisions))
        precision = average_precision_score(one_hot, decisions)
        assert result.average_precision == pytest.approx(precision)
        p = fit.model.probabilities(decisions)
        assert (p is None) == (result.log_loss is None) == (result.ece is None)
        assert (p is None) == (result.clf == "svm")
        if p is not None:
            assert result.log_loss == pytest.approx(log_loss(pair.test.y, p))
            right = guess == pair.test.y
            assert result.ece == pytest.approx(calibration_error(right, p.max(axis=1)))
        record = json.loads(record_text("fit", result.record()))
        assert record["predictions"] == guess.tolist()
        assert record["test_labels"] == pair.test.y.tolist()


def test_a_training_score_is_called_that(pair, fits):
    for result, fit in fits:
        rows = result.detail["train_rows"]
        assert result.train_acc1 == np.mean(
            fit.model.predict(pair.train.X[rows]) == pair.train.y[rows]
        )
        assert result.detail["train_acc1_is"].startswith("TRAINING score")


@pytest.mark.parametrize("settings", [{}, {"on_leak": "drop"}, {"holdout": 0.05}, {"holdout": 0.9}])
@pytest.mark.parametrize("per_class", [2, "all"])
def test_no_setting_scores_a_head_on_training_rows(settings, per_class):
    """One cache is both sides: what is tested is held out, whatever is asked."""
    whole = make_cache(90, split="train")
    for test in (whole, make_cache(90, split="train")):
        chosen = Settings(per_class=(per_class,), C=0.01, repeats=2, **settings)
        reporter = Reporter(quiet=True, stream=io.StringIO())
        for result in evaluate(Pair(whole, test), chosen, reporter=reporter):
            assert result.detail["is_holdout"]
            assert not set(result.detail["train_rows"]) & set(result.detail["test_rows"])
