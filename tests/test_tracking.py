"""``--log``: what the trackers themselves say they were given."""

from __future__ import annotations

import sys

import pytest

import featx
from featx.cli import main
from featx.cli.options import TRACKERS as NAMES
from featx.tracking import TRACKERS

pytestmark = [
    # Of the trackers, not of featx.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def fit(digits_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--clf", "ncm", "svm", "--per-class", "4", "--repeats", "2"]

    def run(*more):
        assert main([*words, "--cache", str(digits_folder / "cache"), *more]) == 0
        return featx.results("reports").set_index("fit_id")

    return run


def test_the_command_knows_all_trackers():
    assert set(NAMES) == set(TRACKERS)


def test_mlflow_has_each_fit_once(fit, tmp_path, monkeypatch, capsys):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    fits = fit("--log", "mlflow")
    assert "4 fits are new in mlflow" in capsys.readouterr().err
    fit("--log", "mlflow")
    assert "0 fits are new in mlflow" in capsys.readouterr().err
    runs = mlflow.search_runs(experiment_names=["featx"], output_format="list")
    assert {run.data.tags["fit_id"] for run in runs} == set(fits.index)
    for run in runs:
        row = fits.loc[run.data.tags["fit_id"]]
        assert run.data.metrics["acc1"] == row["acc1"]
        assert run.data.params["backbone"] == row["backbone"]
        assert "log_loss" in run.data.metrics or row["clf"] != "logreg"


def test_tensorboard_reads_what_was_logged(fit, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fits = fit("--log", "tensorboard", "-q")
    fit("--log", "tensorboard", "-q")
    folders = list((tmp_path / "reports" / "tensorboard").iterdir())
    assert {folder.name for folder in folders} == set(fits.index)
    for folder in folders:
        events = EventAccumulator(str(folder)).Reload()
        (scalar,) = events.Scalars("acc1")
        assert scalar.value == pytest.approx(fits.loc[folder.name, "acc1"])


def test_wandb_gets_settings_and_measures(fit, monkeypatch):
    """The package itself, in its offline mode, is asked for each run; no network is used."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    started, logged = [], []
    init = wandb.init

    def watched(**settings):
        run = init(**settings)
        started.append((settings, run.id))
        log = run.log
        run.log = lambda values: (logged.append(values), log(values))
        return run

    monkeypatch.setattr(wandb, "init", watched)
    fits = fit("--log", "wandb", "-q")
    assert {identity for _, identity in started} == {name[:32] for name in fits.index}
    assert [values["acc1"] for values in logged] == fits["acc1"].tolist()
    assert started[0][0]["config"]["clf"] == "ncm"


def test_a_tracker_that_is_not_installed_is_named_with_its_extra(fit, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(AssertionError):
        fit("--log", "mlflow")
    assert "pip install 'featx[mlflow]'" in capsys.readouterr().err
