"""``featx fit`` asked again, and killed in the middle."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from small_caches import CIFAR, write

from featx.cli import main

WORDS = ["fit", "--clf", "svm", "logreg", "--per-class", "4", "8", "--repeats", "3", "--quiet"]
N_FITS = 12
TIMES = ["fit_seconds", "predict_seconds", "created"]

KILLED = """
import os, signal, sys
from featx.cli import main
from featx.evaluate import output
name, left = sys.argv[1], [int(sys.argv[2])]
real = getattr(output, name)
def die(*words):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*words)
setattr(output, name, die)
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
    [("write_record", 1, 0), ("write_record", 6, 4), ("_append", 5, 5), ("_append", 1, 1)],
)
def test_a_killed_command_goes_on_and_gives_the_same_table(cache, capsys, step, n, n_kept):
    """write_record 1 are the leaks; a fit whose JSON is there and whose line is not counts."""
    assert main([*WORDS, "--reports", "whole"]) == 0
    expected = capsys.readouterr().out
    done = subprocess.run([sys.executable, "-c", KILLED, step, str(n), *WORDS], check=False)
    assert done.returncode == -9
    assert len(list(Path("reports").glob("fits/*.json"))) == n_kept
    assert main(WORDS) == 0
    out = capsys.readouterr().out
    assert table_of(out) == table_of(expected)
    if n_kept:
        assert f"{n_kept} fits answered from reports/, {N_FITS - n_kept} added to" in out
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
