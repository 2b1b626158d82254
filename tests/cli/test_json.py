"""``--json``: what scripts read, against what the files themselves say."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest

import featx
from featx.cli import main


@pytest.fixture
def ask(capsys):
    def run(*words):
        code = main([*words, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def reports(digits_folder, tmp_path, capsys):
    words = ["fit", "--clf", "ncm", "svm", "--per-class", "4", "8", "--repeats", "2", "-q"]
    assert main([*words, "--cache", str(digits_folder / "cache"), "--reports", str(tmp_path)]) == 0
    capsys.readouterr()
    return tmp_path


def test_fits_are_the_rows_of_the_table(digits_folder, reports, ask):
    words = ["fit", "--clf", "ncm", "svm", "--per-class", "4", "8", "--repeats", "2"]
    places = ["--cache", str(digits_folder / "cache"), "--reports", str(reports)]
    code, rows = ask(*words, *places, "-q")
    assert code == 0
    table = featx.results(reports)
    assert [row["fit_id"] for row in rows] == table["fit_id"].tolist()
    assert [row["acc1"] for row in rows] == table["acc1"].tolist()
    assert all(row["log_loss"] is None or math.isfinite(row["log_loss"]) for row in rows)


def test_comparisons_are_those_of_the_csv(reports, ask, capsys):
    words = ["compare", "ncm", "svm", "--reports", str(reports)]
    code, rows = ask(*words)
    assert code == 0
    assert main([*words, "--format", "csv"]) == 0
    assert len(rows) == len(pd.read_csv(pd.io.common.StringIO(capsys.readouterr().out))) == 2
    assert {"A", "B", "difference_points", "p_holm", "statement"} <= set(rows[0])


def test_a_cache_is_described_and_listed(digits_folder, ask, tmp_path, capsys):
    (file,) = (digits_folder / "cache").glob("*train*.h5")
    code, told = ask("info", str(file))
    cache = featx.Cache.open(file)
    assert code == 0
    assert told["fingerprint"] == cache.fingerprint
    assert told["meta"] == json.loads(json.dumps(cache.meta))
    assert (told["n_rows"], told["complete"]) == (len(cache), True)
    code, rows = ask("list", "caches", "--cache", str(file.parent))
    assert {row["file"] for row in rows} == {path.name for path in file.parent.glob("*.h5")}
    assert main(["info", "--data", "digits", "--json"]) != 0
    assert "name the file" in capsys.readouterr().err


def test_an_extraction_prints_its_files_and_nothing_else(tmp_path, ask):
    words = ["extract", "--backbone", "squeezenet1_1", "--weights", "random", "--data", "digits"]
    words += ["--input-size", "32", "--per-class", "2", "--test-per-class", "1", "-j", "0", "-q"]
    code, files = ask(*words, "--cache", str(tmp_path))
    assert code == 0
    assert [file["n_images"] for file in files] == [20, 10]
    assert all(featx.Cache.open(file["path"]).n_features == file["n_features"] for file in files)
    _, again = ask(*words, "--cache", str(tmp_path))
    assert [file["n_computed"] for file in again] == [0, 0]
