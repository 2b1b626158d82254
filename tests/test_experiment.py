"""`featx.fit`: the experiment of ``featx fit`` in Python, and the caches that both choose."""

from __future__ import annotations

import pandas as pd
import pytest

import featx
from featx.cli import main
from featx.errors import CacheError, UsageError
from featx.predict import load_model

QUESTION = ["--clf", "svm", "ncm", "--per-class", "4", "--repeats", "2"]


@pytest.fixture
def cache(digits_folder):
    return featx.load("squeezenet1_1", folder=digits_folder / "cache")


def ask(caches, reports, **more):
    return featx.fit(caches, clf=("svm", "ncm"), per_class=4, repeats=2, reports=reports, **more)


def test_python_and_the_command_give_the_same_fits_and_files(digits_folder, cache, tmp_path):
    folder = str(digits_folder / "cache")
    words = ["fit", *QUESTION, "--cache", folder, "--reports", str(tmp_path / "command"), "-q"]
    assert main(words) == 0
    typed = featx.results(tmp_path / "command")
    test = featx.load("squeezenet1_1", split="test", folder=folder)
    same = [name for name in typed if name not in {"created", "fit_seconds", "predict_seconds"}]
    for i, caches in enumerate((folder, cache, cache.path, [cache, test])):
        found = ask(caches, tmp_path / f"python{i}")
        pd.testing.assert_frame_equal(found[same], typed[same])
        files = {path.name for path in (tmp_path / f"python{i}" / "fits").glob("*.json")}
        assert files == set(typed["file"])


def test_what_is_there_is_read_and_only_its_own_rows_are_given(cache, tmp_path):
    first = ask(cache, tmp_path)
    featx.fit(cache, clf="knn", per_class=4, repeats=1, reports=tmp_path)
    again = ask(cache, tmp_path)
    assert len(featx.results(tmp_path)) == 5
    assert list(again["created"]) == list(first["created"])
    assert list(ask(cache, tmp_path, refit=True)["created"]) != list(first["created"])


def test_models_are_saved_where_it_is_asked(cache, tmp_path):
    featx.fit(cache, clf="ncm", per_class=4, repeats=1, reports=tmp_path, save_models=True)
    (file,) = (tmp_path / "models").iterdir()
    assert load_model(file).predict(cache.X[:3]).shape == (3,)


def test_a_cache_to_test_on_is_not_fitted_on(digits_folder, cache, tmp_path):
    test = featx.load("squeezenet1_1", split="test", folder=digits_folder / "cache")
    with pytest.raises(CacheError, match=f"not a cache to fit on.*{cache.path.name}"):
        ask(test, tmp_path)
    with pytest.raises(CacheError, match="holds no finished caches to fit and test on"):
        ask([cache], tmp_path)
    with pytest.raises(UsageError, match="repeats"):
        featx.fit(cache, repeats=0, reports=tmp_path)


@pytest.mark.parametrize(
    ("option", "there", "else_"),
    [
        ("--layer", "classifier.2", "classifier.1"),
        ("--pool", "avg", "max"),
        ("--input-size", "32", "48"),
    ],
)
def test_the_command_chooses_caches_by_their_feature_point(
    digits_folder, cache, tmp_path, capsys, option, there, else_
):
    there = str(cache.meta["layer"]) if option == "--layer" else there
    words = ["fit", *QUESTION, "--cache", str(digits_folder / "cache"), "--reports", str(tmp_path)]
    assert main([*words, option, there]) == 0
    assert main([*words, option, else_]) == CacheError("").exit_code
    assert there in capsys.readouterr().err.splitlines()[-1]
