"""``featx fit``: leaks, groups, classes and other data sets, on small caches of real form."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_caches import CIFAR, STL, features, write

from featx.cli import main


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """CIFAR in small; test rows 0, 1 and 2 are training rows 3, 4 and 5: file, features, near."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cache"
    folder.mkdir()
    request = {"request": {"data": str(tmp_path / "data")}}
    X = write(folder, "cifar", "train", CIFAR, 60, 1, files={3: "twin"}, **request)
    T = features(np.arange(30) % 3, CIFAR, 2)
    T[1], T[2] = X[4], X[5] * np.float16(1.01)
    write(folder, "cifar", "test", CIFAR, 30, 2, X=T, files={0: "twin"}, **request)
    return folder


@pytest.fixture
def fit(cache, capsys):
    def run(*words):
        size = [] if "--per-class" in words else ["--per-class", "5"]
        code = main(["fit", *size, "--repeats", "2", "--C", "0.1", "--quiet", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def results():
    with Path("reports/results.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def records():
    paths = sorted(Path("reports/fits").glob("*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


SAID = "3 of 30 test images have a copy among the 60 training images: 1 same file, 1 equal features"


def test_leaks_are_told_by_default(fit):
    code, out, err = fit()
    assert code == 0
    assert SAID in err
    assert "same file: test/automobile/0000.png (automobile) and train/automobile/0003.png" in err
    assert SAID in out
    assert all(SAID in row["notes"] for row in results())
    assert records()[0]["leaks"]["test_images"]["near"] == 1


def test_leaks_are_dropped(fit):
    assert fit("--on-leak", "drop", "--per-class", "all")[0] == 0
    for record in records():
        assert not {3, 4, 5} & set(record["train_rows"])
    assert {row["n_train"] for row in results()} == {"57"}
    code, _, err = fit("--on-leak", "drop", "--per-class", "20")
    assert code == 1
    assert "19 of 20 images of automobile" in err
    assert "fewer than the 20 per class asked for" in err


def test_leaks_stop_the_fit(fit):
    code, _, err = fit("--on-leak", "raise")
    assert code == 1
    assert SAID in err
    assert "train/automobile/0003.png" in err
    assert not Path("reports").exists()


@pytest.mark.parametrize("words", [("--near", "off"), ("--no-near",)])
def test_near_twins_are_not_looked_for(fit, words):
    _, _, err = fit(*words)
    assert "2 of 30 test images have a copy" in err
    assert "near-duplicates are not looked for" in err


def test_how_near_can_be_chosen(fit):
    assert "1 near" in fit("--near", "0.001")[2]
    many = fit("--near", "0.95")[2]
    assert int(re.search(r"(\d+) near", many)[1]) > 1


def test_the_pairs_are_drawn(fit, tmp_path):
    for split, n in (("train", 60), ("test", 30)):
        for i in range(n):
            path = tmp_path / "data" / split / CIFAR[i % 3] / f"{i:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (i, 9, 200)).save(path)
    code, out, err = fit("--leak-sheet", "leaks.png")
    assert code == 0
    assert "3 pairs of images drawn in leaks.png" in out
    assert "cannot be drawn" not in err
    with Image.open("leaks.png") as sheet:
        colours = {colour for _, colour in sheet.getcolors(1 << 20)}
    assert {(i, 9, 200) for i in (0, 1, 2, 3, 4, 5)} <= colours


def test_a_sheet_without_images_or_pairs(fit, cache):
    code, out, err = fit("--leak-sheet", "leaks.png")
    assert code == 0
    assert err.count("cannot be drawn") == 1
    assert "3 pairs" in out
    for path in cache.iterdir():
        path.unlink()
    write(cache, "cifar", "all", CIFAR, 60, 1)
    code, out, _ = fit("--leak-sheet", "none.png")
    assert (code, Path("none.png").exists()) == (0, False)
    assert "no shared images" in out


def test_classes_are_chosen_and_renamed(fit):
    code, out, err = fit("--drop", "frog", "--map", "automobile=car", "--per-class", "all")
    assert code == 0
    assert {row["data"] for row in results()} == {"cifar automobile=car -frog"}
    assert "cifar automobile=car -frog" in out
    assert "2 classes of 3, left out: frog, automobile as car" in err
    assert "unusable" not in err
    (record,) = records()
    assert record["class_names"] == ["car", "ship"]
    assert record["fit"]["n_train"] == 40
    assert fit("--classes", "ship", "frog", "--per-class", "all")[0] == 0
    assert len({row["fit_id"] for row in results()}) == 2


@pytest.fixture
def both(cache):
    labels = np.arange(45) % 3
    write(cache, "stl", "test", STL, 45, 5, X=features(labels, STL, 5))
    write(cache, "stl", "train", STL, 45, 6)
    return cache


def test_one_data_set_is_fitted_and_another_tested(fit, both):
    words = ["--train-data", "cifar", "--test-data", "stl", "--map", "automobile=car"]
    code, out, err = fit(*words, "--per-class", "all")
    assert code == 0
    (row,) = results()
    assert row["data"] == "cifar -> stl"
    assert "cifar -> stl" in out
    assert "left out: frog (only in cifar), monkey (only in stl)" in err
    assert (row["n_train"], row["n_test"]) == ("40", "30")
    assert float(row["acc1"]) > 0.9
    assert records()[0]["class_names"] == ["car", "ship"]


def test_data_still_names_data(fit, both):
    assert fit("--data", "stl")[0] == 0
    assert {row["data"] for row in results()} == {"stl"}
    assert fit("--data", "stl", "cifar")[0] == 0
    assert {row["data"] for row in results()} == {"stl", "cifar"}


def write_groups(tmp_path, n_shared):
    lines = ["path,video"]
    for split, n in (("train", 60), ("test", 30)):
        for i in range(n):
            name = "v0" if i < n_shared else f"{split}{i // 6}"
            lines.append(f"{split}/{CIFAR[i % 3]}/{i:04}.png,{name}")
    (tmp_path / "videos.csv").write_text("\n".join(lines), encoding="utf-8")


def test_groups_across_train_and_test_leak(fit, tmp_path):
    write_groups(tmp_path, n_shared=6)
    code, _, err = fit("--groups", "videos.csv:video", "--on-leak", "drop", "--per-class", "all")
    assert code == 0
    assert "6 of 30 test images are in a group (video) of training images" in err
    (record,) = records()
    assert not set(range(6)) & set(record["train_rows"])
    assert record["fit"]["n_train"] == 54
    assert record["groups"]["column"] == "video"


def test_the_penalty_is_searched_in_whole_groups(fit, tmp_path, capsys):
    write_groups(tmp_path, n_shared=0)
    words = ["--groups", "videos.csv:video", "--per-class", "15", "--repeats", "1", "--quiet"]
    assert main(["fit", *words]) == 0
    ids = {row["fit_id"] for row in results()}
    assert main(["fit", *words[2:]]) == 0
    assert len(ids | {row["fit_id"] for row in results()}) == 2
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--on-leak", "panic"], 2, "'panic' is not one of 'warn', 'drop', 'raise'"),
        (["--near", "close"], 2, "'close' is neither a number above 0 nor 'off'"),
        (["--near", "2"], 2, "near is 2.0: give a number between 0 and 1"),
        (["--leak-sheet", "leaks.gif"], 2, "must end in .png"),
        (["--drop", "frogs"], 2, "--drop: there is no class 'frogs': did you mean frog"),
        (["--classes", "ship"], 2, "1 of 3 classes stay"),
        (["--map", "frog"], 2, "--map takes OLD=NEW"),
        (["--groups", "video"], 2, "which is no table: give --groups TABLE:video"),
        (["--groups", "no.csv:video"], 1, "cannot read no.csv"),
        (["--train-data", "cifar"], 2, "--train-data and --test-data go together"),
        (["--train-data", "cifar", "--test-data", "stll"], 1, "did you mean stl"),
        (["--train-data", "a", "--test-data", "b", "--data", "c"], 2, "--data is for fits within"),
        (["--train-data", "cifar", "--test-data", "stl"], 1, "share 1 of the classes"),
    ],
)
def test_bad_input_is_one_line(fit, both, words, code, text):
    found, _, err = fit(*words)
    assert found == code
    assert text in err
    lines = [line for line in err.strip().splitlines() if not line.startswith("warning")]
    assert len(lines) == 1


def test_other_feature_sizes_name_the_mend(fit, cache):
    X = np.random.default_rng(0).normal(size=(45, 20)).astype(np.float16)
    write(cache, "stl", "test", STL, 45, 5, X=X, input_size=96)
    code, _, err = fit("--train-data", "cifar", "--test-data", "stl", "--map", "automobile=car")
    assert code == 1
    assert "cifar has 60 features (input size 32), stl 20 (input size 96)" in err
    assert "--input-size 32, or both with --pool avg" in err


def test_the_same_images_in_two_subsets_are_found(fit, cache):
    """Two draws of --per-class have other fingerprints and may hold the same files."""
    for path in cache.iterdir():
        path.unlink()
    X = write(cache, "a", "train", CIFAR, 30, 1, files={i: f"img{i}" for i in range(30)})
    shared = {i: f"img{i + 15}" for i in range(15)}
    Y = features(np.arange(30) % 3, CIFAR, 9)
    Y[:15] = X[15:30]
    write(cache, "b", "test", CIFAR, 30, 9, X=Y, files=shared)
    code, _, err = fit("--train-data", "a", "--test-data", "b", "--on-leak", "raise")
    assert code == 1
    assert "15 of 30 test images have a copy among the 30 training images: 15 same file" in err
    assert fit("--train-data", "a", "--test-data", "b", "--on-leak", "drop")[0] == 0
    for record in records():
        assert max(record["train_rows"]) < 15
