"""Recompute every number of a report with h5py, NumPy and scikit-learn alone.

    python recompute.py reports/ cache/

For each JSON of ``reports/fits`` whose head is svm or logreg: the digest of the file, the subset
and its hash, that no image is on both sides, the cross-validation curve by GridSearchCV, the
chosen C, the fit at a tight tolerance, every prediction, and every measure. featx is not imported.
Prints a line for each fit and ends with 1 if a number is another one.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import h5py
import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
    top_k_accuracy_score,
)
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from sklearn.svm import LinearSVC

TOLERANCE = 1e-5


def signed_root(X):
    return np.sign(X) * np.sqrt(np.abs(X))


def pipeline(fit):
    scaling = {
        "none": [],
        "l2": [Normalizer()],
        "standard": [StandardScaler()],
        "power": [FunctionTransformer(signed_root), Normalizer()],
        "whiten=20": [PCA(20, whiten=True, svd_solver="full")],
    }[fit["scale"]]
    weight = fit["class_weight"]
    if fit["clf"] == "svm":
        head = LinearSVC(dual=False, tol=1e-10, max_iter=100_000, class_weight=weight)
    else:
        head = LogisticRegression(
            solver="newton-cg", tol=1e-10, max_iter=100_000, class_weight=weight
        )
    return make_pipeline(*scaling, head), f"{type(head).__name__.lower()}__C"


def read(path):
    with h5py.File(path) as file:
        names = [name.decode() if isinstance(name, bytes) else name for name in file["class_names"]]
        return file["features"][:].astype(np.float64), file["labels"][:], names


def calibration_error(right, confidence):
    """Guo et al. 2017, equation 5, with 15 bins."""
    bins = np.digitize(confidence, np.arange(1, 15) / 15, right=True)
    return sum(
        (bins == m).mean() * abs(right[bins == m].mean() - confidence[bins == m].mean())
        for m in np.unique(bins)
    )


def recompute(record, cache):
    """Yield the name of each number with what is stored and what it should be."""
    fit, settings = record["fit"], record["settings"]
    whole = {key: value for key, value in record.items() if key != "sha256"}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    yield "sha256", record["sha256"], hashlib.sha256(text.encode()).hexdigest()

    train_path, test_path = (
        cache / Path(record[f"{part}_cache"]).name for part in ("train", "test")
    )
    X, y, names = read(train_path)
    X_test, y_test, _ = read(test_path)
    rows = np.array(record["train_rows"])
    tested = np.arange(len(y_test)) if record["test_rows"] == "all" else record["test_rows"]
    if train_path == test_path:
        yield "rows on both sides", len(np.intersect1d(rows, tested)), 0
    yield "n_train", fit["n_train"], len(rows)
    yield "n_test", fit["n_test"], len(tested)
    subset = hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
    yield "subset_sha256", fit["subset_sha256"], subset
    if fit["per_class"] != "all":
        yield "per class", [int(fit["per_class"])] * len(names), np.bincount(y[rows]).tolist()
    X, y, X_test, truth = X[rows], y[rows], X_test[tested], y_test[tested]
    yield "test labels", record["test_labels"], truth.tolist()

    model, name = pipeline(fit)
    C = settings["C"]
    if record["cv"] is not None:
        folds = StratifiedKFold(settings["folds"], shuffle=True, random_state=fit["seed"])
        grid = GridSearchCV(model, {name: record["cv"]["C"]}, cv=folds, refit=False).fit(X, y)
        of_fold = [grid.cv_results_[f"split{i}_test_score"] for i in range(settings["folds"])]
        yield "cv curve", record["cv"]["accuracy"], np.transpose(of_fold).tolist()
        yield "cv_accuracy", fit["cv_accuracy"], grid.best_score_
        C = grid.best_params_[name]
    yield "C", fit["C"], C
    model.set_params(**{name: C}).fit(X, y)
    yield "train_acc1", fit["train_acc1"], model.score(X, y)

    guess, scores = model.predict(X_test), model.decision_function(X_test)
    yield "predictions", record["predictions"], guess.tolist()
    yield "acc1", fit["acc1"], accuracy_score(truth, guess)
    top5 = top_k_accuracy_score(truth, scores, k=5) if len(names) > 5 else None
    yield "acc5", fit["acc5"], top5
    yield "recall", fit["recall"], balanced_accuracy_score(truth, guess)
    yield "macro_f1", fit["macro_f1"], f1_score(truth, guess, average="macro")
    one_hot = np.eye(len(names))[truth] if len(names) > 2 else truth
    yield "auroc", fit["auroc"], roc_auc_score(one_hot, scores)
    yield "average_precision", fit["average_precision"], average_precision_score(one_hot, scores)
    yield "confusion_matrix", record["confusion_matrix"], confusion_matrix(truth, guess).tolist()
    each = precision_recall_fscore_support(truth, guess, zero_division=0)
    for key, values in zip(("precision", "recall", "f1", "support"), each, strict=True):
        yield f"{key} of every class", record["per_class"][key], values.tolist()
    has_probabilities = fit["clf"] == "logreg"
    p = model.predict_proba(X_test) if has_probabilities else None
    yield "log_loss", fit["log_loss"], log_loss(truth, p) if has_probabilities else None
    ece = calibration_error(guess == truth, p.max(axis=1)) if has_probabilities else None
    yield "ece", fit["ece"], ece


def agrees(stored, computed):
    if stored is None or computed is None or isinstance(stored, str):
        return stored == computed
    return np.shape(stored) == np.shape(computed) and np.allclose(
        stored, computed, rtol=TOLERANCE, atol=TOLERANCE
    )


def main(reports, cache):
    n_bad = 0
    for path in sorted(Path(reports, "fits").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["fit"]["clf"] not in ("svm", "logreg"):
            print(f"{path.name}: not recomputed")
            continue
        numbers = list(recompute(record, Path(cache)))
        bad = [(name, a, b) for name, a, b in numbers if not agrees(a, b)]
        print(f"{path.name}: {len(numbers) - len(bad)} of {len(numbers)} agree")
        for name, stored, computed in bad:
            print(f"  {name}: stored {stored}, computed {computed}")
        n_bad += len(bad)
    return min(n_bad, 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
