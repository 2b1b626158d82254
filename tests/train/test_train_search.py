from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from featx.errors import ProtocolError
from featx.fewshot import split_holdout
from featx.networks import SEARCH_SPACE, get_network
from featx.progress import SILENT
from featx.train import TrainPlan, run_train
from featx.train.search import space_of


def plan(tmp_path: Path, **options: Any) -> TrainPlan:
    usual: dict[str, Any] = {
        "network": "auto-cnn(filters=4 blocks=2)",
        "data": "digits",
        "per_class": (10,),
        "test_per_class": 4,
        "epochs": 2,
        "patience": 0,
        "validation": 0.0,
        "search": 4,
        "workers": 0,
        "device": "cpu",
        "reports_dir": str(tmp_path / "reports"),
    }
    return TrainPlan(**{**usual, **options})


def test_the_best_of_the_search_is_trained_and_tested_once(tmp_path: Path) -> None:
    lines: list[str] = []
    (result,) = run_train(plan(tmp_path), SILENT, lines.append)
    found = result.fit.detail["search"]
    tried = found["tried"]
    assert len(tried) == 4
    accuracies = [line["accuracy"] if line["accuracy"] is not None else -1 for line in tried]
    assert accuracies == sorted(accuracies, reverse=True)
    assert all(0.001 <= line["lr"] <= 0.1 for line in tried)
    assert {line["optimizer"] for line in tried} <= {"Nesterov", "Adam", "RMSprop"}
    assert (found["n_fitted"], found["n_watching"]) == (80, 20)
    assert result.trained.n_fitted == 100
    assert result.curves[0]["lr"] == tried[0]["lr"]
    assert "search=4" in result.fit.clf
    (table,) = (tmp_path / "reports" / "searches").glob("*.csv")
    assert len(pd.read_csv(table)) == 4
    assert any("judged on 20 training images" in line for line in lines)
    (again,) = run_train(plan(tmp_path), SILENT, lines.append)
    assert again.is_known


def test_candidates_never_see_the_test_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featx.train import search
    from featx.train.question import TrainQuestion

    seen: list[int] = []
    test_images = TrainQuestion.test_images

    def forbidden(self: TrainQuestion) -> Any:
        assert len(seen) == 1  # the search is over
        return test_images.func(self)

    def watched(*args: Any) -> Any:
        found = original(*args)
        seen.append(1)
        return found

    original = search.search_settings
    monkeypatch.setattr("featx.train.run.search_settings", watched)
    monkeypatch.setattr(TrainQuestion, "test_images", property(forbidden))
    run_train(plan(tmp_path, search=2), SILENT, lambda line: None)
    assert seen == [1]


def test_hoogasians_space_is_searched_for_its_network() -> None:
    asked = TrainPlan(network="cnn-search", search=1)
    texts = space_of(asked)["module__text"]
    assert len(set(texts)) == len(texts) == np.prod([len(v) for v in SEARCH_SPACE.values()])
    made = [get_network(text).settings for text in texts]
    for name, values in SEARCH_SPACE.items():
        assert {settings[name] for settings in made} == set(values)
    rates = space_of(asked)["lr"].rvs(2000, random_state=0)
    assert 0.001 <= rates.min() < 0.0012
    assert 0.08 < rates.max() <= 0.1
    assert "module__text" not in space_of(TrainPlan(network="auto-cnn", search=1))


def test_a_search_whose_trainings_all_diverge_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featx.train.search._RATES", (1e30, 1e31))
    monkeypatch.setattr("featx.train.search._OPTIMIZERS", ("Nesterov",))
    with pytest.raises(ProtocolError, match="diverged"):
        run_train(plan(tmp_path, search=2), SILENT, lambda line: None)


def test_the_part_that_judges_is_a_fifth_of_each_class() -> None:
    labels = np.repeat(np.arange(3), 10)
    _, judging = split_holdout(labels, 0.2, seed=0)
    assert np.bincount(labels[judging]).tolist() == [2, 2, 2]
