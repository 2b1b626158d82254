"""Fits of workers of a local Ray cluster are those of this process."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sklearn.neighbors import KNeighborsClassifier

from featx.cli import main
from featx.errors import UsageError
from featx.evaluate import Settings, evaluate, read_results

pytest.importorskip("ray", reason="needs featx[ray]")

# Times, and where in the text of an error the code lay.
_APART = {"fit_seconds": 0, "predict_seconds": 0, "created": ""}


def _both(pair, **settings):
    asked = Settings(near="off", **settings)
    here = evaluate(pair, asked)
    there = evaluate(pair, replace(asked, engine="ray"))
    return [[replace(fit, **_APART) for fit in fits] for fits in (here, there)]


def test_fits_there_equal_fits_here(local_ray, pair):
    """Of draws that have each a pool of their own."""
    heads = ("svm", "logreg", "ridge", "lda", "mlp", "knn")
    here, there = _both(pair, heads=heads, per_class=(2, 4), repeats=2, folds=3)
    assert there == here
    assert len(here) == 24


def test_fits_that_share_a_pool_equal_those_here(local_ray, pair):
    here, there = _both(
        pair, heads=("svm", "ridge"), per_class=(15,), scale="whiten", class_weight="balanced"
    )
    assert there == here


class Failing(KNeighborsClassifier):
    def fit(self, X, y):
        raise ValueError("this one never fits")


def test_a_fit_that_fails_there_is_a_row(local_ray, pair):
    name = "test_on_ray:Failing"
    settings = Settings(
        heads=(name, "ncm"), per_class=(4,), repeats=1, near="off", engine="ray", allow_code=(name,)
    )
    failed, good = evaluate(pair, settings)
    assert failed.error == "ValueError: this one never fits"
    assert good.acc1 is not None


def test_the_command_answers_what_was_fitted_without_a_cluster(
    local_ray, digits_folder, tmp_path, monkeypatch, capsys
):
    words = ["fit", "--cache", str(digits_folder / "cache"), "--per-class", "5", "--repeats", "2"]
    words += ["--clf", "svm", "knn", "-q", "--reports"]
    assert main([*words, str(tmp_path / "here")]) == 0
    assert main([*words, str(tmp_path / "there"), "--engine", "ray", "--save-models"]) == 0
    here, there = (
        read_results(tmp_path / name).drop(columns=[*_APART]) for name in ("here", "there")
    )
    assert there.equals(here)
    assert len([*(tmp_path / "there" / "models").iterdir()]) == 4
    capsys.readouterr()
    monkeypatch.setattr("featx.evaluate.on_ray.connected", None)
    assert main([*words, str(tmp_path / "there"), "--engine", "ray"]) == 0
    assert "4 fits answered" in capsys.readouterr().out


def test_an_address_wants_the_engine():
    with pytest.raises(UsageError, match="give  --engine ray  too"):
        Settings(address="auto")
    with pytest.raises(UsageError, match="leave it out with engine ray"):
        Settings(engine="ray", n_jobs=4)
