"""One choice varied, all else equal; the numbers are those of extract and fit."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from featx.cli import main
from featx.errors import UsageError
from featx.extract import Plan, images_per_second
from featx.sweep import Axes, to_frame, to_table
from featx.sweep.plot import save_plot

COMMON = ["--data", "photos", "--backbone", "squeezenet1_1", "--weights", "random:1", "-j", "0"]
COMMON += ["-b", "4", "--quiet"]
SWEEP = ["sweep", *COMMON, "--per-class", "6", "--repeats", "2", "--C", "1"]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Two classes that differ in colour; 40 x 40 pixels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for i, name in enumerate(("red", "blue")):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for k in range(10):
                pixels = rng.integers(0, 200, (40, 40, 3), np.uint8)
                pixels[:, :, 2 * i] |= 128
                Image.fromarray(pixels).save(folder / f"{k}.png")
    return tmp_path / "photos"


def table_of(text):
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if "accuracy  " in line)
    split = [re.split(r"\s{2,}", line.strip()) for line in lines[at:] if "  " in line]
    return pd.DataFrame(split[2:], columns=split[0])


def test_sizes_are_compared_and_drawn(photos, capsys):
    words = ["--input-size", "native", "64", "--plot", "sizes.png"]
    assert main([*SWEEP, *words]) == 0
    out = capsys.readouterr().out
    table = table_of(out)
    assert table["input"].tolist() == ["native 40", "64"]
    assert table["dim"].tolist() == ["512", "4,608"] or table["dim"].tolist() == ["2,048", "4,608"]
    assert (table["images/s"].astype(float) > 0).all()
    frame = pd.read_csv("reports/sweep-input_size-photos-squeezenet1_1.csv")
    assert len(frame) == 4
    assert frame["input_size"].tolist() == [40, 40, 64, 64]
    assert frame["is_native"].tolist() == [True, True, False, False]
    with Image.open("sizes.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 20


def test_the_numbers_are_those_of_extract_and_fit(photos, capsys):
    assert main([*SWEEP, "--input-size", "40", "64"]) == 0
    swept = pd.read_csv("reports/sweep-input_size-photos-squeezenet1_1.csv")
    assert main(["extract", *COMMON, "--input-size", "64", "--cache", "own"]) == 0
    fit = ["fit", "--per-class", "6", "--repeats", "2", "--C", "1", "--cache", "own", "--quiet"]
    assert main([*fit, "--reports", "own"]) == 0
    plain = pd.read_csv("own/results.csv")
    columns = ["train_fingerprint", "subset_sha256", "acc1", "macro_f1", "fit_id"]
    of_64 = swept[swept["input_size"] == 64].reset_index()
    pd.testing.assert_frame_equal(of_64[columns], plain[columns])


def test_layers_share_a_pass_and_pools_are_compared(photos, capsys, monkeypatch):
    from featx.backbones import BackboneGroup

    members = []
    compute = BackboneGroup.features_many
    monkeypatch.setattr(
        BackboneGroup,
        "features_many",
        lambda self, *args: members.append(len(self)) or compute(self, *args),
    )
    words = ["--input-size", "48", "--layer", "features.5", "features", "--pool", "avg", "max"]
    assert main([*SWEEP, *words]) == 0
    table = table_of(capsys.readouterr().out)
    assert list(zip(table["layer"], table["pool"], strict=True)) == [
        ("features.5", "avg"),
        ("features", "avg"),
        ("features.5", "max"),
        ("features", "max"),
    ]
    assert set(members) == {2}


def test_mistakes_are_compared(photos, capsys):
    words = ["--input-size", "48", "--preprocess", "correct", "bgr", "raw"]
    assert main([*SWEEP, *words, "--store-dtype", "float32"]) == 0
    table = table_of(capsys.readouterr().out)
    assert table["preprocess"].tolist() == ["correct", "bgr", "raw"]


def test_a_size_that_cannot_be_run_is_told_and_the_others_go_on(photos, capsys):
    assert main([*SWEEP, "--input-size", "8", "48"]) == 0
    captured = capsys.readouterr()
    assert table_of(captured.out)["input"].tolist() == ["48"]
    assert "not run: squeezenet1_1 8: " in captured.out
    frame = pd.read_csv("reports/sweep-input_size-photos-squeezenet1_1.csv")
    assert frame["problem"].notna().tolist() == [True, False, False]
    assert main([*SWEEP, "--input-size", "8", "9"]) in (1, 2)


def test_an_interrupted_sweep_goes_on_and_no_table_is_overwritten(photos, capsys):
    assert main([*SWEEP, "--input-size", "40", "48"]) == 0
    capsys.readouterr()
    n_fits = len(pd.read_csv("reports/results.csv"))
    words = [word for word in SWEEP if word != "--quiet"]
    assert main([*words, "--input-size", "40", "48", "64"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("photos train, squeezenet1_1: 20/20") == 1  # of 64 only
    assert len(pd.read_csv("reports/results.csv")) == n_fits * 3 // 2  # those of 64 are new
    assert "sweep-input_size-photos-squeezenet1_1-2.csv" in captured.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing is varied"),
        (["--input-size", "48", "48"], "has a value twice: 48 48"),
        (["--input-size", "40", "48", "--plot", "a.txt"], "must end in .png"),
    ],
)
def test_wrong_questions(photos, words, message, capsys):
    assert main([*SWEEP, *words]) == 2
    assert message in capsys.readouterr().err


def test_plans_are_the_product_of_the_axes_but_for_layers():
    axes = Axes(input_size=(32, 64), layer=("a", "b"), pool=("avg", "max"))
    assert axes.varied == ("input_size", "layer", "pool")
    plans = list(axes.plans(Plan(backbone=("one", "two"))))
    assert len(plans) == 8
    assert {plan.layer for plan in plans} == {("a", "b")}
    assert [(p.backbone, p.pool, p.input_size) for p in plans[:3]] == [
        (("one",), "avg", 32),
        (("one",), "avg", 64),
        (("one",), "max", 32),
    ]
    with pytest.raises(UsageError, match="--pool"):
        Axes(pool=("avg", "avg"))


def test_the_table_of_nothing_is_empty():
    assert to_frame([]).empty
    assert to_table([], ("input_size",)).empty


def test_too_few_images_give_no_rate(photos):
    from featx.extract import prepare
    from featx.progress import SILENT

    plan = Plan(
        backbone=("squeezenet1_1",),
        weights="random",
        data="photos",
        batch_size=16,
        workers=0,
        input_size=48,
    )
    job = prepare(plan, SILENT)
    group = job.open("squeezenet1_1")
    assert np.isnan(images_per_second(job.engine, group, job.sources[0]))


def test_bars_of_the_picture_reach_from_low_to_high(tmp_path, monkeypatch):
    """Two draws: the interval is all of 0 to 1, and no bar leaves it; one draw has no bar."""
    table = pd.DataFrame(
        {
            **{"backbone": "net", "layer": ["a", "b"], "dim": 9, "images/s": 5.0, "head": "svm"},
            **{"per class": "4", "accuracy": [0.9, 0.5], "test images": 30},
            **{"draws low": [0.0, np.nan], "draws high": [1.0, np.nan]},
        }
    )
    drawn = []

    def errorbar(axes, x, y, yerr, **style):
        drawn.extend(np.column_stack([y - yerr[0], y + yerr[1]]).tolist())
        axes.plot(x, y, label=style["label"])

    monkeypatch.setattr("matplotlib.axes.Axes.errorbar", errorbar)
    save_plot(table, ["layer"], tmp_path / "plot.png")
    assert drawn == [[0.0, 1.0], [0.5, 0.5]]
