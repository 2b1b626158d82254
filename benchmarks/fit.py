"""How fast linear heads are fitted, against scikit-learn on the raw features.

    python benchmarks/fit.py --train TRAIN.h5 --test TEST.h5 [--head svm] [--parts single protocol]

`single`: one fit with a given penalty, Gram matrix and coefficients included, against the
estimator of scikit-learn at its default and at a tight tolerance. `agreement`: the whole search on
one draw of the smaller size, against `GridSearchCV` on the same folds: penalties and predictions.
`protocol`: draws x sizes x penalties x folds through `featx.evaluate`, against `GridSearchCV`, of
which one fold of one draw a size is run and multiplied (all penalties; the fits of other folds
and draws cost the same). `memory`: the peak of that run beside its training rows. Prints tables
for RESULTS.md; more than 1 means that featx is faster.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import sklearn
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import LinearSVC

import featx
from featx.evaluate import Pair, Settings, evaluate
from featx.fewshot import draw_subset, name_images
from featx.heads import FitOptions, Pool, RowSpace, get_head

PLAIN = {"svm": LinearSVC(random_state=0), "logreg": LogisticRegression(max_iter=1000)}
TIGHT = {
    "svm": LinearSVC(random_state=0, tol=1e-8, max_iter=1_000_000),
    "logreg": LogisticRegression(max_iter=100_000, tol=1e-8),
}


def clock(call: Any) -> tuple[float, Any]:
    """Seconds that a call takes, and what it gives."""
    began = time.perf_counter()
    found = call()
    return time.perf_counter() - began, found


def plain_fit(estimator: Any, X: Any, y: Any, **settings: Any) -> Any:
    """Fit a copy, without scikit-learn's warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return clone(estimator).set_params(**settings).fit(X, y)


def subset(cache: Any, per_class: int, seed: int) -> tuple[Any, Any]:
    """Draw as `featx fit` does: features as stored, and labels."""
    rows = rows_of(cache, per_class, seed)
    return cache.X.stored[rows], np.asarray(cache.y)[rows]


def rows_of(cache: Any, per_class: int, seed: int) -> Any:
    """Rows that `featx fit` draws."""
    images = name_images(cache.image_digests, cache.paths)
    names = cache.class_names
    return draw_subset(
        cache.y, per_class, seed=seed, valid=cache.status == 1, class_names=names, images=images
    )


def single(args: argparse.Namespace, train: Any, test: Any) -> None:
    """Fit once, with a penalty near the best one."""
    print("| rows | fit | seconds | ratio | largest difference of decision values |")
    print("|---|---|---|---|---|")
    new = test.X[:]
    for per_class in args.per_class:
        X, y = subset(train, per_class, 0)
        C = float(1.0 / np.mean(np.square(X[:200].astype(np.float64)).sum(axis=1)))
        took, fit = clock(
            lambda X=X, y=y, C=C: get_head(args.head).fit(RowSpace.of(X), y, FitOptions(C=C))
        )
        ours = fit.model.decision_function(new)
        print(f"| {len(y):,} | featx | {took:.2f} | | |", flush=True)
        # In float32 scikit-learn's lbfgs ends far from the minimum.
        X = X.astype(np.float32 if args.head == "svm" else np.float64)
        for name, estimators in (("default", PLAIN), ("tight", TIGHT)):
            if name == "tight" and args.head == "logreg" and per_class > args.per_class[0]:
                continue
            seconds, plain = clock(
                lambda X=X, y=y, C=C, e=estimators: plain_fit(e[args.head], X, y, C=C)
            )
            theirs = plain.decision_function(new)
            apart = np.abs(ours - theirs).max() / np.abs(theirs).max()
            row = f"| | scikit-learn, {name} tolerance | {seconds:.2f} | {seconds / took:.1f}"
            print(f"{row} | {apart:.0e} |", flush=True)


def agreement(args: argparse.Namespace, train: Any, test: Any) -> None:
    """Run the whole search on one draw."""
    per_class = args.per_class[0]
    X, y = subset(train, per_class, 0)
    took, fit = clock(
        lambda: get_head(args.head).fit(RowSpace(Pool(X), np.arange(len(X))), y, FitOptions())
    )
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    search = GridSearchCV(PLAIN[args.head], {"C": fit.cv.C}, cv=folds)
    X = X.astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        seconds, _ = clock(lambda: search.fit(X, y))
    curve = search.cv_results_["mean_test_score"]
    new = test.X[:]
    same = (search.predict(new) == fit.model.predict(new)).mean()
    ratio = f"ratio {seconds / took:.0f}"
    print(
        f"whole search, {len(y):,} rows: featx {took:.1f} s, GridSearchCV {seconds:.1f} s, {ratio}"
    )
    print(f"penalties: {fit.C:.3g} and {search.best_params_['C']:.3g}")
    print(f"equal predictions: {same:.1%} of {len(new):,}")
    apart = np.abs(curve - fit.cv.mean).max()
    print(f"largest difference of the curve: {apart:.4f} ({len(y):,} rows)", flush=True)


def ours(args: argparse.Namespace) -> tuple[float, list[Any]]:
    """Run the whole protocol through featx."""
    train, test = featx.load(args.train), featx.load(args.test)
    settings = Settings(
        heads=(args.head,), per_class=tuple(args.per_class), repeats=args.repeats, near="off"
    )
    return clock(lambda: evaluate(Pair(train, test), settings))


def protocol(args: argparse.Namespace, train: Any, test: Any) -> None:
    """Draws x sizes x penalties x folds."""
    took, fits = ours(args)
    total = 0.0
    print(
        "| per class | featx, a draw | scikit-learn, one fold | scikit-learn, a draw (multiplied) |"
    )
    print("|---|---|---|---|")
    for per_class in args.per_class:
        of_size = [fit for fit in fits if fit.per_class == str(per_class)]
        X, y = subset(train, per_class, 0)
        X = X.astype(np.float32)
        grid = of_size[0].detail["cv"]["C"]
        fitted, _ = next(iter(StratifiedKFold(5, shuffle=True, random_state=0).split(X, y)))
        seconds = 0.0
        for C in grid:
            each, _ = clock(
                lambda X=X, y=y, C=C, fitted=fitted: plain_fit(
                    PLAIN[args.head], X[fitted], y[fitted], C=C
                )
            )
            print(f"  C {C:.2g}: {each:.1f} s", file=sys.stderr, flush=True)
            seconds += each
        # Five folds, and the last fit of all rows, which is a quarter larger than one of a fold.
        draw = seconds * 5 + seconds / len(grid) * 1.25
        total += draw * args.repeats
        mean = np.mean([fit.fit_seconds for fit in of_size])
        print(f"| {per_class} | {mean:.1f} | {seconds:.0f} | {draw:.0f} |", flush=True)
    print(f"\n{args.repeats} draws x {args.per_class} x 9 penalties x 5 folds, {args.head}:")
    print(
        f"featx {took:.0f} s, reading, Gram matrix and scoring of {len(test.y):,} images included"
    )
    print(f"GridSearchCV {total:.0f} s (multiplied); **ratio {total / took:.0f}**", flush=True)


def peak_memory() -> int:
    """Largest memory of this process so far, in KB (that of `getrusage` begins with a parent's)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def memory(args: argparse.Namespace, train: Any, test: Any) -> None:
    """Peak of the whole protocol, in a process of its own."""
    del test
    command = [sys.executable, __file__, *sys.argv[1:], "--measure-memory"]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    before, peak = (int(word) for word in found.stdout.split()[-2:])
    rows = np.unique(
        np.concatenate([rows_of(train, max(args.per_class), seed) for seed in range(args.repeats)])
    )
    held = len(rows) * train.X.shape[1] * 2
    grown = (peak - before) * 1024
    print(
        f"memory: {len(rows):,} training rows are {held / 1e9:.2f} GB as stored; the run took "
        f"{grown / 1e9:.2f} GB, {grown / held:.2f} times as much",
        flush=True,
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--head", default="svm", choices=list(PLAIN))
    parser.add_argument("--per-class", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--repeats", type=int, default=5)
    parts = {f.__name__: f for f in (single, agreement, protocol, memory)}
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=list(parts))
    parser.add_argument("--measure-memory", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure_memory:
        before = peak_memory()
        ours(args)
        print(before, peak_memory())
        return
    print(
        f"`python {shlex.join(sys.argv)}`, load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, "
        f"{platform.machine()}; Python {platform.python_version()}, NumPy {np.__version__}, "
        f"SciPy {scipy.__version__}, scikit-learn {sklearn.__version__}\n"
    )
    with featx.load(args.train) as train, featx.load(args.test) as test:
        for part in args.parts:
            parts[part](args, train, test)
            print()


if __name__ == "__main__":
    main()
