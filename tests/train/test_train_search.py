from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from featx.errors import ProtocolError
from featx.fewshot import split_holdout
from featx.networks import SEARCH_SPACE, get_network
from featx.progress import SILENT, Reporter
from featx.train import TrainPlan, TrainResult, run_train
from featx.train.classifier import DivergedError, NetworkClassifier
from featx.train.search import space_of

fit = NetworkClassifier.fit


def outcomes(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text())["outcomes"].values())


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
    texts = space_of(asked)["network"]
    assert len(set(texts)) == len(texts) == np.prod([len(v) for v in SEARCH_SPACE.values()])
    made = [get_network(text).settings for text in texts]
    for name, values in SEARCH_SPACE.items():
        assert {settings[name] for settings in made} == set(values)
    rates = space_of(asked)["lr"].rvs(2000, random_state=0)
    assert 0.001 <= rates.min() < 0.0012
    assert 0.08 < rates.max() <= 0.1
    assert "network" not in space_of(TrainPlan(network="auto-cnn", search=1))


def test_a_search_whose_trainings_all_diverge_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featx.train.search._RATES", (1e30, 1e31))
    monkeypatch.setattr("featx.train.search._OPTIMIZERS", ("Nesterov",))
    with pytest.raises(ProtocolError, match="diverged"):
        run_train(plan(tmp_path, search=2), SILENT, lambda line: None)


# It waits in its fifth training: a loaded machine might look away until the search is over.
HELD = """
import time
from featx.cli import main
from featx.train.classifier import NetworkClassifier
trained = []
def hold(net, *args, real=NetworkClassifier.fit):
    trained.append(net)
    if len(trained) == 5:
        time.sleep(3600)
    return real(net, *args)
NetworkClassifier.fit = hold
raise SystemExit(main())
"""
SEARCHED: dict[str, Any] = {"per_class": (40,), "epochs": 4, "search": 5}


def told(result: TrainResult) -> tuple[Any, ...]:
    tried = [{**line, "seconds": 0.0} for line in result.fit.detail["search"]["tried"]]
    return tried, [line["train_loss"] for line in result.curves], result.fit.acc1


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_search_goes_on_and_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (wanted,) = run_train(plan(tmp_path / "whole", **SEARCHED), SILENT, lambda line: None)
    words = [sys.executable, "-c", HELD, "train", "--reports", str(tmp_path / "broken/reports")]
    words += ["--network", "auto-cnn(filters=4 blocks=2)", "--data", "digits", "--per-class", "40"]
    words += ["--test-per-class", "4", "--epochs", "4", "--patience", "0", "--validation", "0"]
    words += ["--search", "5", "-j", "0", "--device", "cpu", "--quiet"]
    process = subprocess.Popen(words, stdout=-3)

    def done() -> int:
        found = (tmp_path / "broken/reports/searches").glob("*.unfinished/outcomes.json")
        return sum(len(outcomes(path)) for path in found)

    try:
        while process.poll() is None and done() < 2:
            time.sleep(0.01)
        assert process.poll() is None, "it failed"
    finally:
        process.kill()
        process.wait()
    n_done, trained = done(), []

    def counted(net: NetworkClassifier, *args: Any) -> Any:
        trained.append(net)
        return fit(net, *args)

    monkeypatch.setattr(NetworkClassifier, "fit", counted)
    (found,) = run_train(plan(tmp_path / "broken", **SEARCHED), SILENT, lambda line: None)
    assert 2 <= n_done <= 4
    # Those that were not done, and the best one on all images.
    assert len(trained) == 5 - n_done + 1
    assert told(found) == told(wanted)
    assert not list((tmp_path / "broken/reports/searches").glob("*.unfinished"))


@pytest.mark.parametrize("what", ["_train", "decision_function"])
def test_settings_that_diverged_are_the_last_and_are_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    real, called = getattr(NetworkClassifier, what), []

    def diverging(net: NetworkClassifier, *args: Any) -> Any:
        called.append(net)
        if len(called) == 2:
            raise DivergedError("training diverged")
        return real(net, *args)

    with monkeypatch.context() as patch:
        patch.setattr(NetworkClassifier, what, diverging)
        patch.setattr("featx.train.run._EpochBar", None)  # the search ends, no more
        with pytest.raises(TypeError):
            run_train(plan(tmp_path, search=3), SILENT, lambda line: None)
    (path,) = (tmp_path / "reports/searches").glob("*.unfinished/outcomes.json")
    accuracies = [line["accuracy"] for line in outcomes(path)]
    assert [value is None for value in accuracies] == [False, True, False]
    assert [file.name for file in path.parent.iterdir()] == ["outcomes.json"]

    lines: list[str] = []
    called.clear()
    with monkeypatch.context() as patch:
        patch.setattr(
            NetworkClassifier, "fit", lambda net, *args: called.append(net) or fit(net, *args)
        )
        (result,) = run_train(plan(tmp_path, search=3), SILENT, lines.append)
    assert len(called) == 1  # the best one, on all images
    tried = result.fit.detail["search"]["tried"]
    assert [line["accuracy"] for line in tried] == sorted(
        accuracies, key=lambda value: -(value or 0.0)
    )
    assert "diverged" in lines[0].splitlines()[-1]


def test_settings_that_do_not_fit_are_told_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    monkeypatch.setattr(Reporter, "warn", lambda reporter, text: heard.append(text))
    monkeypatch.setattr(
        "featx.networks.scratch.SearchCnn.n_halvings", property(lambda net: 2 * net.convs)
    )
    asked = plan(tmp_path, network="cnn-search(convs=1)", search=4, input_size=8, epochs=1)
    (result,) = run_train(asked, SILENT, lambda line: None)
    n_tried = len(result.fit.detail["search"]["tried"])
    assert 0 < n_tried < 4
    assert len(heard) == 4 - n_tried
    assert all("halves its images too often" in text for text in heard)


@pytest.mark.parametrize("is_older", [False, True])
def test_outcomes_that_do_not_verify_are_told_kept_and_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_older: bool
) -> None:
    heard: list[str] = []
    kept: list[bytes] = []

    class Heard(Reporter):
        def warn(self, text: str) -> None:
            heard.append(text)
            kept.extend(path.read_bytes() for path in folder.glob("*.unused-1"))

    with monkeypatch.context() as patch:
        patch.setattr("featx.train.run._EpochBar", None)  # the search ends, no more
        with pytest.raises(TypeError):
            run_train(plan(tmp_path, search=2), SILENT, lambda line: None)
    (folder,) = (tmp_path / "reports/searches").glob("*.unfinished")
    path = folder / "outcomes.json"
    record = json.loads(path.read_text())
    wanted = {line["lr"]: line["accuracy"] for line in record["outcomes"].values()}
    # The worst one would win.
    worst = min(record["outcomes"].values(), key=lambda line: line["accuracy"] or 0.0)
    worst["accuracy"] = 1.0
    path.write_text(json.dumps(record["outcomes"] if is_older else record))
    content = path.read_bytes()
    (found,) = run_train(plan(tmp_path, search=2), Heard(quiet=True), lambda line: None)
    tried = found.fit.detail["search"]["tried"]
    assert {line["lr"]: line["accuracy"] for line in tried} == wanted
    assert kept == [content]
    (text,) = heard
    assert text.startswith(f"{path} is not used")


def test_the_part_that_judges_is_a_fifth_of_each_class() -> None:
    labels = np.repeat(np.arange(3), 10)
    _, judging = split_holdout(labels, 0.2, seed=0)
    assert np.bincount(labels[judging]).tolist() == [2, 2, 2]
