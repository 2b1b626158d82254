from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from featx.cli import main
from featx.progress import SILENT
from featx.reproduce import Options, Outcome, find_recipes, format_outcomes
from featx.reproduce.run import Needs
from featx.reproduce.table import lessons, order

FEATURES = """
[system]
source = "Me, Myself"
title = "squeezenet and ncm"

[data]
data = "cifar10"
cache_per_class = 12
test_per_class = 6

[extract]
backbone = "squeezenet1_1"
input_size = 32
pool = "avg"

[fit]
heads = ["ncm"]
per_class = [5, 10]
repeats = 2

[reported]
accuracy = 0.99
split = "{split}"
per_class = 10
seconds = 12.0
where = "page 3"

[differs]
text = '''digits in place of
photographs'''

[small.fit]
per_class = [4]
repeats = 1
"""
TRAINED = """
[system]
source = "Me, Myself"
title = "a CNN, then heads on it"

[data]
data = "cifar10"
cache_per_class = 10
test_per_class = 4

[pretrain]
network = "auto-cnn(filters=4 blocks=2)"
per_class = [8]
epochs = 1
patience = 0
validation = 0.0

[train]
network = "@pretrain"
top = "linear"
freeze = "all"
per_class = [8]
epochs = 1
patience = 0
validation = 0.0

[extract]
backbone = "@pretrain"

[fit]
heads = ["ncm"]
per_class = [5]
repeats = 1
"""


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # what is printed is then what is kept


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real digits as a tree of images, called as the recipes call their data."""
    root = tmp_path_factory.mktemp("data") / "cifar10"
    data = load_digits()
    for label in range(4):
        rows = np.flatnonzero(data.target == label)[:30]
        for i, row in enumerate(rows):
            folder = root / ("train" if i < 20 else "test") / f"digit{label}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (data.images[row] * 15).astype(np.uint8)
            Image.fromarray(pixels).convert("RGB").resize((32, 32)).save(folder / f"{i}.png")
    return root


@pytest.fixture(autouse=True)
def _in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def reproduce(*words: str) -> int:
    return main(["reproduce", *words, "-j", "0", "--device", "cpu", "--quiet"])


def run(text: str, digits: Path, *words: str) -> int:
    Path("own.toml").write_text(text)
    return reproduce("own.toml", "--data", f"cifar10={digits}", *words)


RANDOM = ("--weights", "squeezenet1_1=random")


def test_table_has_reported_beside_measured(
    digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(FEATURES.format(split="test"), digits, *RANDOM) == 0
    out = capsys.readouterr().out
    assert "Me, Myself" in out
    assert "random weights" in out
    assert "digits in place of photographs" in out
    frame = pd.read_csv("reports/reproduce-me-myself.csv")
    assert list(frame["per_class"]) == [5, 10]
    assert list(frame["reported_accuracy"]) == [0.99, 0.99]
    assert set(frame["n_features"]) == {512}
    # Squeezenet's convolutions before the classifier: 1 + 8 x 3.
    assert set(frame["n_layers"]) == {25}
    assert (frame["extract_seconds"] > 0).all()
    fits = pd.read_csv("reports/results.csv")
    for _, line in frame.iterrows():
        of_size = fits[fits["per_class"] == line["per_class"]]
        assert line["accuracy"] == pytest.approx(of_size["acc1"].mean())
        assert line["repeats"] == len(of_size) == 2
        assert (line["n_test"], line["n_classes"]) == (24, 4)
    assert Path("reports/reproduce-me-myself.txt").read_text() in out.partition("\ntable:")[0][1:]


def test_again_nothing_is_done_twice(digits: Path) -> None:
    text = FEATURES.format(split="test")
    assert run(text, digits, *RANDOM) == 0
    first = pd.read_csv("reports/reproduce-me-myself.csv").drop(columns="created")
    stamps = {path: path.stat().st_mtime_ns for path in Path("cache").glob("*.h5")}
    assert run(text, digits, *RANDOM) == 0
    again = pd.read_csv("reports/reproduce-me-myself.csv").drop(columns="created")
    pd.testing.assert_frame_equal(first, again)
    assert stamps == {path: path.stat().st_mtime_ns for path in Path("cache").glob("*.h5")}
    assert len(pd.read_csv("reports/results.csv")) == 4


def test_small_scale_is_stated_and_kept_beside_the_full_one(
    digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = FEATURES.format(split="test")
    assert run(text, digits, *RANDOM) == 0
    assert run(text, digits, *RANDOM, "--scale", "small") == 0
    out = capsys.readouterr().out
    assert "SMALL SCALE" in out
    assert "small scale: per_class=4, repeats=1" in out
    frame = pd.read_csv("reports/reproduce-me-myself.csv")
    assert list(zip(frame["scale"], frame["per_class"], strict=True)) == [
        ("full", 5),
        ("full", 10),
        ("small", 4),
    ]


def test_a_reported_training_figure_is_told_from_a_test_result(
    digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(FEATURES.format(split="train"), digits, *RANDOM) == 0
    out = capsys.readouterr().out
    assert "0.990 is a figure of the TRAINING split" in out
    frame = pd.read_csv("reports/reproduce-me-myself.csv")
    assert list(frame["scored"]) == ["train", "test"] * 2
    fits = pd.read_csv("reports/results.csv")
    for k in (5, 10):
        train, test = (
            frame[(frame["per_class"] == k) & (frame["scored"] == split)].iloc[0]
            for split in ("train", "test")
        )
        of_size = fits[fits["per_class"] == k]
        assert train["accuracy"] == pytest.approx(of_size["train_acc1"].mean())
        assert test["accuracy"] == pytest.approx(of_size["acc1"].mean())
        assert (train["n_test"], test["n_test"]) == (4 * k, 24)
        # Only the line of the training split has the reported figure.
        assert train["reported_accuracy"] == 0.99
        assert np.isnan(test["reported_accuracy"])


def test_pretrained_network_is_trained_again_and_extracted(digits: Path) -> None:
    assert run(TRAINED, digits) == 0
    frame = pd.read_csv("reports/reproduce-me-myself.csv")
    assert list(frame["n_features"].fillna(0)) == [0, 8 * 8 * 8]
    [network] = Path("reports/networks").glob("*.safetensors")
    fits = pd.read_csv("reports/results.csv")
    assert str(network) in set(fits["backbone"])


def test_another_arithmetic_for_extraction_and_training(digits: Path) -> None:
    assert run(TRAINED, digits, "--precision", "bf16") == 0
    fits = pd.read_csv("reports/results.csv")
    assert len(fits) == 3  # pretrained, trained on it, and a head on its features
    assert set(fits["precision"]) == {"bf16"}


def test_sweep_of_a_mistake(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = FEATURES.format(split="test").replace(
        "[fit]\n", '[sweep]\npreprocess = ["correct", "divide-only"]\n\n[fit]\n'
    )
    assert run(text, digits, *RANDOM) == 0
    frame = pd.read_csv("reports/reproduce-me-myself.csv")
    assert list(frame["variant"]) == ["correct"] * 2 + ["divide-only"] * 2
    # What was reported is of the mistake.
    assert list(frame["reported_accuracy"].notna()) == [False, False, True, True]
    assert "divide-only: 0." in capsys.readouterr().out


def test_heads_move_between_data_sets(digits: Path, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "stl10"
    shutil.copytree(digits, other)
    for split in ("train", "test"):
        (other / split / "digit0").rename(other / split / "only_here")
        (other / split / "digit1").rename(other / split / "one")
    text = FEATURES.format(split="test").replace(
        "[data]\n", '[data]\nmoved_to = "stl10"\nmap = ["one=digit1"]\n'
    )
    text = text.replace("input_size = 32", 'input_size = "native"')
    assert run(text, digits, *RANDOM, f"--data=stl10={other}") == 0
    frame = pd.read_csv("reports/reproduce-me-myself.csv")
    at_5 = frame[frame["per_class"] == 5].set_index("variant")
    assert list(at_5.index) == [
        *["cifar10 to cifar10", "cifar10 to stl10"],
        *["stl10 to cifar10", "stl10 to stl10"],
    ]
    # Of the four classes of each, three are shared: 18 test images.
    assert set(at_5["n_test"]) == {18}
    fits = pd.read_csv("reports/results.csv")
    assert len(fits) == len(frame) * 2
    for train, test in (("cifar10", "stl10"), ("stl10", "cifar10")):
        name = fits["data"].str.startswith(train) & fits["data"].str.contains(f"-> {test}")
        moved = fits[name & (fits["per_class"] == 5)]
        assert at_5.loc[f"{train} to {test}", "accuracy"] == pytest.approx(moved["acc1"].mean())
    assert (at_5["accuracy"] > 1 / 3).all()


def test_missing_data_and_weights_are_named_first(
    digits: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: Any, **options: Any) -> None:
        raise URLError("no internet here")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", "nothing")
    assert run(FEATURES.format(split="test"), Path("absent")) == 1
    error = capsys.readouterr().err
    assert "missing for own: data absent" in error
    assert (
        "missing for own: weights of squeezenet1_1: the weights squeezenet1_1-b8a52dc0.pth" in error
    )
    assert "--weights squeezenet1_1=FILE" in error
    assert not Path("reports").exists()
    assert not Path("cache").exists()


def test_what_can_be_run_is_run_beside_what_cannot(
    digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = FEATURES.format(split="test")
    lost = text.replace('"cifar10"', '"lost/"').replace("squeezenet and ncm", "lost one")
    Path("lost.toml").write_text(lost)
    Path("own.toml").write_text(text)
    words = ["lost.toml", "own.toml", "--data", f"cifar10={digits}", *RANDOM]
    assert reproduce(*words) == 1
    out = capsys.readouterr().out
    assert "not run" in out
    frame = pd.read_csv("reports/reproduce-me-myself.csv").fillna({"problem": ""})
    assert [bool(problem) for problem in frame["problem"]] == [True, False, False]


def test_what_was_measured_and_said_before_stays_in_the_table(
    digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = FEATURES.format(split="test")
    assert run(text, digits, *RANDOM) == 0
    other = text.replace("squeezenet and ncm", "another").replace("photographs", "flowers")
    Path("other.toml").write_text(other)
    assert reproduce("other.toml", "--data", f"cifar10={digits}", *RANDOM) == 0
    said = Path("reports/reproduce-me-myself.txt").read_text()
    assert "digits in place of photographs" in said
    assert "digits in place of flowers" in said
    assert said in capsys.readouterr().out
    frame = pd.read_csv("reports/reproduce-me-myself.csv")
    assert list(frame["recipe"]) == ["other"] * 2 + ["own"] * 2
    # A recipe that cannot be run today loses nothing that it gave.
    Path("other.toml").write_text(other.replace('"cifar10"', '"lost/"'))
    words = ["other.toml", "own.toml", "--data", f"cifar10={digits}", *RANDOM]
    assert reproduce(*words) == 1
    again = pd.read_csv("reports/reproduce-me-myself.csv")
    pd.testing.assert_frame_equal(frame.drop(columns="created"), again.drop(columns="created"))


def test_a_damaged_file_of_an_earlier_run_is_told_and_stays(
    digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("reports/reproductions")
    folder.mkdir(parents=True)
    (folder / "me-myself-torn-full.json").write_text('{"source": "Me, Mys')
    (folder / "me-myself-old-full.json").write_text(
        json.dumps({"source": "Me, Myself", "outcomes": [{"colour": "red"}], "words": []})
    )
    other = json.dumps(
        {"featx": "reproduction", "version": 1, "source": "Me, Myself", "outcomes": [], "words": []}
        | {"sha256": "0" * 64}
    )
    (folder / "me-myself-changed-full.json").write_text(other)
    (folder / "me-myself-and-i-own-full.json").write_text(json.dumps({"source": "others"}))
    assert run(FEATURES.format(split="test"), digits, *RANDOM) == 0
    told = capsys.readouterr().err
    assert [name in told for name in ("torn", "old", "changed", "and-i")] == [True] * 3 + [False]
    assert len(list(folder.iterdir())) == 5
    assert len(pd.read_csv("reports/reproduce-me-myself.csv")) == 2


def test_every_need_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def loading(name: str, *rest: object) -> None:
        asked.append(name)

    monkeypatch.setattr("featx.reproduce.run.load_network", loading)
    monkeypatch.setattr("featx.reproduce.run.open_data", lambda name, **options: asked.append(name))
    needs = Needs(SILENT)
    for recipe in find_recipes(["klimack-recio"]):
        assert needs.missing(recipe) == []
    assert sorted(asked) == ["cifar10", "inception_v3", "resnet50", "vgg16"]


def test_list_and_wrong_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--list"]) == 0
    out = capsys.readouterr().out
    assert "klimack-recio-100-vgg16-svm" in out
    assert "0.9863" in out
    assert main(["reproduce", "--list", "veer-4"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    for words, said in (
        ([], "name recipes, or give --all"),
        (["--all", "veer"], "leave the names out"),
        (["veer", "--data", "cifar10"], "write NAME=VALUE"),
        (["veeer-9"], "did you mean veer"),
    ):
        assert main(["reproduce", *words]) == 2
        assert said in capsys.readouterr().err


def outcome(**values: Any) -> Outcome:
    usual = {
        "source": "s",
        "recipe": "r",
        "system": "VGG16",
        "variant": "",
        "scale": "full",
        "per_class": "100",
        "accuracy": 0.9,
        "reported_accuracy": 0.95,
        "low_draws": 0.87,
        "high_draws": 0.94,
        "low_test": 0.86,
        "high_test": 0.93,
    }
    whole = usual | values
    if "accuracy" in values and "low_test" not in values:  # as far below and above it
        moved = (values["accuracy"] or 0.0) - 0.9
        ends = ("low_draws", "high_draws", "low_test", "high_test")
        whole |= {name: usual[name] + moved for name in ends}
    return Outcome(**whole)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "0.900 (0.850–0.950) measured, 0.950 reported: within the interval"),
        ({"low_draws": None, "high_draws": None}, "5.0 points below the 0.950 reported"),
        (
            {"accuracy": 0.995, "low_draws": None, "low_test": 0.985, "high_test": 1.0},
            "0.995 (0.985–1.000) measured, 4.5 points above",
        ),
        ({"reported_per_class": "500"}, "(100 per class, reported at 500)"),
        ({"problem": "no weights", "accuracy": None}, "not run: no weights"),
        ({"accuracy": 0.14, "n_classes": 10}, "measured (no better than chance, 1 of 10), 81.0"),
        ({"accuracy": 0.16, "n_classes": 10}, "measured, 79.0 points below"),
    ],
)
def test_words_about_one_line(values: dict[str, Any], words: str) -> None:
    [recipe] = find_recipes(["klimack-recio-100-vgg16-svm"])
    said = lessons(recipe, [outcome(**values)])
    assert said[0].startswith("klimack-recio-100-vgg16-svm (Feature Extraction")
    assert words in "\n".join(said)


def test_words_about_a_collapse() -> None:
    [recipe] = find_recipes(["klimack-recio-500-wrong-scaling"])
    lines = [outcome(variant="correct"), outcome(variant="divide-only", accuracy=0.3)]
    assert "divide-only: 0.300, against 0.900" in "\n".join(lessons(recipe, lines))
    assert "a collapse" in "\n".join(lessons(recipe, lines))
    lines[1] = outcome(variant="divide-only", accuracy=0.85)
    assert "-5.0 points" in "\n".join(lessons(recipe, lines))


def test_words_about_sizes_and_moves() -> None:
    [sizes] = find_recipes(["hoogasian-sizes-cifar10"])
    lines = [
        outcome(variant="32 px (native)", accuracy=0.5, extract_seconds=2.0),
        outcome(variant="224 px", accuracy=0.8, extract_seconds=50.0),
    ]
    said = "\n".join(lessons(sizes, lines))
    assert "32 px (native) 0.500 (2 s to extract), 224 px 0.800 (50 s to extract)" in said
    assert "best at 224 px" in said
    [moves] = find_recipes(["hoogasian-moved-heads"])
    lines = [
        outcome(variant=f"{train} to {test}", accuracy=accuracy)
        for train, test, accuracy in (("a", "a", 0.9), ("a", "b", 0.6), ("b", "b", 0.7))
    ]
    said = "\n".join(lessons(moves, lines))
    assert "heads of a have 0.600 on b, -10.0 points from those of b itself (0.700)" in said


def systems(*accuracies: float, **values: Any) -> list[Outcome]:
    kinds = ("frozen features", "fine-tuned networks", "networks from scratch")
    return [
        outcome(recipe=kind, system=kind[:6], kind=kind, accuracy=accuracy, **values)
        for kind, accuracy in zip(kinds, accuracies, strict=True)
    ]


def test_words_about_the_order_of_systems() -> None:
    lines = systems(0.7, 0.73, 0.4, reported_accuracy=None)
    said = order([*lines, *systems(0.3, 0.9, 0.5, reported_accuracy=None, per_class="500")])
    assert said == [
        "100 per class, full scale, best first: fine-t 0.730, frozen 0.700, networ 0.400",
        "  frozen features (frozen) are 3.0 points, -4.1 to 10.1, below the best of the fine-tuned "
        "networks (fine-t), within their intervals",
        "  frozen features (frozen) are 30.0 points, 22.9 to 37.1, above the best of the networks "
        "from scratch (networ)",
        "500 per class, full scale, best first: fine-t 0.900, networ 0.500, frozen 0.300",
        "  frozen features (frozen) are 60.0 points, 52.9 to 67.1, below the best of the "
        "fine-tuned networks (fine-t)",
        "  frozen features (frozen) are 20.0 points, 12.9 to 27.1, below the best of the networks "
        "from scratch (networ)",
    ]


def test_the_best_of_several_frozen_heads_is_compared() -> None:
    lines = systems(0.7, 0.6, 0.5)
    worse = outcome(recipe="frozen features", kind="frozen features", accuracy=0.2, system="bad")
    assert any("(frozen) are 10.0" in line for line in order([worse, *lines]))


@pytest.mark.parametrize(
    ("reported", "words"),
    [
        ((0.9, 0.8, 0.7), "the order that was reported"),
        ((0.9, 0.95, 0.7), "another one: fine-t 0.95, frozen 0.9, networ 0.7"),
    ],
)
def test_words_about_the_order_that_was_reported(
    reported: tuple[float, float, float], words: str
) -> None:
    from dataclasses import replace

    lines = [
        replace(line, reported_accuracy=value)
        for line, value in zip(systems(0.6, 0.5, 0.4), reported, strict=True)
    ]
    assert words in order(lines)[1]


def test_variants_training_scores_and_single_systems_have_no_order() -> None:
    lines = systems(0.7, 0.6, 0.5)
    assert order(lines[:1]) == []
    assert order([outcome(recipe=str(i)) for i in range(3)]) == []
    assert order(systems(0.7, 0.6, 0.5, scored="train")) == []


def test_lines_of_a_table_are_aligned() -> None:
    lines = [outcome(), outcome(accuracy=None, problem="x", n_features=25_088)]
    assert max(map(len, format_outcomes(lines, 80).splitlines())) <= 80
    text = format_outcomes(lines, 1000)
    head, rule, *lines = text.splitlines()
    assert len(lines) == 2
    assert "25,088" in lines[1]
    assert "not run" in lines[1]
    assert lines[0].index("test") == head.index("scored on")
    assert set(rule) == {"-", " "}


def test_times_of_extractions_are_kept_beside_the_caches(digits: Path) -> None:
    assert run(FEATURES.format(split="test"), digits, *RANDOM) == 0
    (file,) = Path().rglob(".seconds.json")
    seconds = json.loads(file.read_text())
    assert len(seconds) == 2

    def total() -> float:
        assert run(FEATURES.format(split="test"), digits, *RANDOM) == 0
        return float(pd.read_csv("reports/reproduce-me-myself.csv")["extract_seconds"][0])

    assert total() == pytest.approx(sum(seconds.values()))
    file.write_text("{")
    assert np.isnan(total())
    older = Path("reports/extraction-seconds.json")
    older.write_text(json.dumps(dict.fromkeys(seconds, 3.0)))  # as an older featx wrote it
    assert total() == 6.0
    older.write_text(older.read_text().replace("}", ""))
    assert np.isnan(total())


def test_options_are_checked() -> None:
    from featx.errors import UsageError

    with pytest.raises(UsageError, match="scale is 'tiny'"):
        Options(scale="tiny")
