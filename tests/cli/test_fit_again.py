"""``featx fit`` asked again, and killed in the middle."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from small_caches import CIFAR, write

from featx.cli import main
from featx.evaluate.results_folder import read_results

WORDS = ["fit", "--clf", "svm", "logreg", "--per-class", "4", "8", "--repeats", "3", "--quiet"]
N_FITS = 12
TIMES = ["fit_seconds", "predict_seconds", "created"]

KILLED = """
import os, signal, sys
from featx.cli import main
from featx.evaluate.results_folder import read_results
from featx.evaluate import results_folder
name, left = sys.argv[1], [int(sys.argv[2])]
real = getattr(results_folder, name)
def die(*words):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*words)
setattr(results_folder, name, die)
main(sys.argv[3:])
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cache"
    folder.mkdir()
    write(folder, "cifar", "train", CIFAR, 60, 1)
    write(folder, "cifar", "test", CIFAR, 30, 2)
    return folder


def table_of(text):
    """All but the times."""
    lines = [line for line in text.splitlines() if "  " in line]
    return [re.split(r"\s{2,}", line)[:-1] for line in lines]


def results(folder):
    return pd.read_csv(Path(folder) / "results.csv").drop(columns=TIMES).sort_values("fit_id")


@pytest.mark.parametrize(
    ("step", "n", "n_kept"),
    [("write_record", 1, 0), ("write_record", 6, 4), ("part_of", 5, 5), ("part_of", 1, 1)],
)
def test_a_killed_command_goes_on_and_gives_the_same_table(cache, capsys, forks, step, n, n_kept):
    """write_record 1 are the leaks; a fit whose JSON is there and whose line is not counts."""
    assert main([*WORDS, "--reports", "whole"]) == 0
    expected = capsys.readouterr().out
    assert forks.run(KILLED, step, str(n), *WORDS).returncode == -9
    assert len(list(Path("reports").glob("fits/*.json"))) == n_kept
    assert main(WORDS) == 0
    out = capsys.readouterr().out
    assert table_of(out) == table_of(expected)
    if n_kept:
        fits = "fit" if n_kept == 1 else "fits"
        assert f"{n_kept} {fits} answered from reports/, {N_FITS - n_kept} added to" in out
    pd.testing.assert_frame_equal(
        results("reports").reset_index(drop=True), results("whole").reset_index(drop=True)
    )


def test_asked_again_nothing_is_read_or_added(cache, capsys, monkeypatch):
    assert main(WORDS) == 0
    first = capsys.readouterr().out
    assert f"{N_FITS} fits added to reports/results.csv, details in reports/fits" in first
    text = Path("reports/results.csv").read_bytes()
    names = sorted(Path("reports").rglob("*"))

    def refuse(*words):
        raise AssertionError("features were read")

    for where in ("featx.evaluate.run.hold_rows", "featx.evaluate.leaks.sketch_rows"):
        monkeypatch.setattr(where, refuse)
    monkeypatch.setattr("featx.heads.base.check_finite", refuse)
    assert main(WORDS) == 0
    again = capsys.readouterr().out
    assert f"{N_FITS} fits answered from reports/, 0 added to reports/results.csv" in again
    assert again.splitlines()[:-1] == first.splitlines()[:-1]
    assert Path("reports/results.csv").read_bytes() == text
    assert sorted(Path("reports").rglob("*")) == names


def test_more_is_added_to_what_is_there_and_refit_computes_again(cache, capsys):
    assert main(WORDS) == 0
    assert main([*WORDS, "--repeats", "4"]) == 0
    assert "12 fits answered from reports/, 4 added to" in capsys.readouterr().out
    assert main([*WORDS, "--refit"]) == 0
    out = capsys.readouterr().out
    assert "12 fits added to" in out
    assert "answered" not in out
    assert len(list(Path("reports/fits").iterdir())) == 28


def test_scale_and_class_weight_are_columns(cache, capsys):
    words = ["fit", "--per-class", "4", "--C", "1", "--repeats", "2", "--quiet"]
    assert main(words) == 0
    assert "scale" not in capsys.readouterr().out
    assert main([*words, "--scale", "power", "--class-weight", "balanced", "--n-jobs", "2"]) == 0
    frame = pd.read_csv("reports/results.csv")
    assert frame["scale"].tolist() == ["none"] * 2 + ["power"] * 2
    assert frame["class_weight"].fillna("").tolist() == [""] * 2 + ["balanced"] * 2
    record = json.loads(sorted(Path("reports/fits").iterdir())[0].read_text(encoding="utf-8"))
    assert len(record["predictions"]) == 30


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--scale", "l1"], "unknown scale 'l1'"),
        (["--class-weight", "equal"], "'equal' is not 'balanced'"),
        (["--n-jobs", "0"], "n_jobs is 0"),
    ],
)
def test_wrong_words(cache, capsys, words, text):
    assert main(["fit", "--per-class", "4", *words]) == 2
    assert text in capsys.readouterr().err


MINE = """
from pathlib import Path
from sklearn.neighbors import KNeighborsClassifier
from choice import K

def make():
    weights = Path("weights.txt").read_text()
    return KNeighborsClassifier(K + 0, weights=weights)
"""
CHANGES = {
    "the function": ("mine.py", MINE.replace("K + 0", "K + 2")),
    "a module that it imports": ("choice.py", "K = 3"),
    "parameters from elsewhere": ("weights.txt", "distance"),
    "nothing": ("mine.py", MINE),
    "another module": ("other.py", "K = 3"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_classifier_of_ones_own_is_fitted_again(cache, capsys, monkeypatch, change):
    monkeypatch.setattr(sys, "path", [part for part in sys.path if part])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    words = ["fit", "--clf", "mine:make", "--per-class", "4", "--repeats", "2", "--quiet"]
    for name, text in (("mine.py", MINE), ("choice.py", "K = 1"), ("weights.txt", "uniform")):
        Path(name).write_text(text)

    def fit(*more):
        for name in ("mine", "choice"):  # as in a new process
            sys.modules.pop(name, None)
        assert main([*words, *more]) == 0
        return capsys.readouterr().out

    first = fit()
    assert "2 fits added" in first
    name, text = CHANGES[change]
    Path(name).write_text(text)
    again = fit()
    if change in ("nothing", "another module"):
        assert "2 fits answered from reports/, 0 added" in again
        assert table_of(again) == table_of(first)
    else:
        assert "answered" not in again
        assert table_of(again) == table_of(fit("--reports", "fresh"))
    for name in ("mine", "choice"):
        sys.modules.pop(name, None)


def test_a_classifier_of_an_installed_package_keeps_its_name(cache, capsys):
    """The same names as before featx looked at code: old reports go on answering."""
    words = ["fit", "--clf", "sklearn.neighbors:NearestCentroid", "--per-class", "all"]
    assert main([*words, "--repeats", "1", "--quiet"]) == 0
    assert read_results("reports/results.csv")["fit_id"].tolist() == ["5c106e09dabdb020"]
