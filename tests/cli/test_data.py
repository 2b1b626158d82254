"""Data sets on the command line: described, drawn, and restricted to some classes."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import featx
from featx.cli import main

EXTRACT = ["extract", "--backbone", "squeezenet1_1", "--weights", "random", "--input-size", "32"]
EXTRACT += ["-j", "0", "--quiet"]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("automobile", "car", "frog", "ship"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(5):
                pixels = rng.integers(0, 256, (20, 30, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_info_counts_classes_and_sizes(photos, capsys):
    (photos / "train" / "frog" / "0.png").write_bytes(b"<html>")
    (photos / "train" / "frog" / "notes.txt").write_bytes(b"hello")
    assert main(["info", "--data", "photos", "--preview", "sheet.png"]) == 0
    captured = capsys.readouterr()
    assert "photos: 4 classes, images: train 20, test 20" in captured.out
    assert "train, headers of all: PNG, 30 x 20 px" in captured.out
    assert "1 that cannot be read" in captured.out
    assert "train/frog/0.png: not an image but an HTML page" in captured.out
    [frog] = [line for line in captured.out.splitlines() if line.startswith("frog")]
    assert frog.split() == ["frog", "5", "5"]
    assert "1 file that is no image left out (1 .txt)" in captured.err
    assert "sheet.png" in captured.out
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 5 * 96
        assert sheet.height > 4 * 96


def test_a_picture_replaces_no_other_file(photos, capsys):
    Path("table.png").write_text("precious")
    assert main(["info", "--data", "photos", "--preview", "table.png"]) == 2
    assert "is no picture: it is not overwritten" in capsys.readouterr().err
    assert Path("table.png").read_text() == "precious"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a cache file, or a data set"),
        (["a.h5", "--data", "photos"], "one of the two"),
        (["a.h5", "--preview", "b.png"], "name it with --data"),
        (["--data", "photos", "--preview", "b.txt"], "must end in .png"),
    ],
)
def test_wrong_questions(photos, words, message, capsys):
    assert main(["info", *words]) == 2
    assert message in capsys.readouterr().err


def test_classes_are_chosen_dropped_and_renamed(photos, capsys):
    words = ["--data", "photos", "--drop", "frog", "--map", "automobile=car"]
    assert main([*EXTRACT, *words]) == 0
    cache = featx.load("squeezenet1_1", split="train")
    assert cache.class_names == ["car", "ship"]
    assert np.bincount(cache.y).tolist() == [10, 5]
    assert not any("frog" in path for path in cache.paths)
    assert cache.meta["sample"]["classes"] == {
        "keep": [],
        "drop": ["frog"],
        "rename": {"automobile": "car"},
    }
    assert "classes" in cache.path.name
    # The same question again is answered by the file; a repair asks it again.
    capsys.readouterr()
    assert main([*EXTRACT, *words]) == 0
    assert capsys.readouterr().out.count("was complete already") == 2
    content = bytearray(cache.path.read_bytes())
    content[content.index(cache.X.stored[3].tobytes())] ^= 1
    cache.path.write_bytes(content)
    assert main(["repair", str(cache.path), "--quiet"]) == 0
    assert main(["verify", str(cache.path), "--quiet"]) == 0


def test_kept_classes_have_the_order_asked_for(photos):
    assert main([*EXTRACT, "--data", "photos", "--classes", "ship", "frog"]) == 0
    cache = featx.load("squeezenet1_1", split="test")
    assert cache.class_names == ["ship", "frog"]
    assert [cache.paths[0].split("/")[1], int(cache.y[0])] == ["frog", 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classes", "ship", "frogg"], "did you mean frog?"),
        (["--drop", "frog", "--classes", "frog", "ship"], "both kept and dropped"),
        (["--map", "automobile"], "OLD=NEW"),
        (["--classes", "ship"], "a classifier needs two"),
    ],
)
def test_classes_that_do_not_fit(photos, words, message, capsys):
    assert main([*EXTRACT, "--data", "photos", *words]) == 2
    assert message in capsys.readouterr().err


def test_unlabelled_images_are_extracted_where_they_are_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [("a", "x", "train"), ("b", "y", "train"), ("c", "", "unlabeled")]
    for name, _, _ in rows:
        Image.new("RGB", (20, 20), name and "red").save(f"{name}.png")
    table = ["path,label,split", *(f"{name}.png,{label},{split}" for name, label, split in rows)]
    Path("m.csv").write_text("\n".join(table))
    assert main([*EXTRACT, "--data", "m.csv"]) == 0
    assert capsys.readouterr().out.count(".h5:") == 1
    assert main([*EXTRACT, "--data", "m.csv", "--split", "unlabeled"]) == 0
    assert "1 x 512" in capsys.readouterr().out
    cache = featx.load("squeezenet1_1", split="unlabeled")
    assert cache.y.tolist() == [-1]
    assert json.dumps(cache.meta)


def test_the_folders_of_splits_are_settled_once(photos, capsys):
    """Doubtful folders: refused by every command, and settled by the flags, also later on."""
    (photos / "train").rename(photos / "old")
    (photos / "test").rename(photos / "new")
    folders = ["--train-folder", "old", "--test-folder", "new"]
    fit = ["--clf", "ncm", "--per-class", "2", "--repeats", "1"]
    train = ["train", "--network", "auto-cnn(filters=4 blocks=2)", "--epochs", "1", "-j", "0"]
    train += ["--validation", "0.2", "--patience", "0", "--device", "cpu"]
    for words in (
        ["info", "--data", "photos"],
        [*EXTRACT, "--data", "photos"],
        ["sweep", *EXTRACT[1:-1], "--data", "photos", "--pool", "none", "avg", *fit],
        [*train, "--data", "photos"],
    ):
        assert main(words) == 1
        assert "'new', 'old' hold folders of the same names" in capsys.readouterr().err
        if words[0] != "sweep":  # which takes long, and is as extract
            assert main([*words, *folders]) == 0
    assert "1 added" in capsys.readouterr().out
    [path] = Path("cache").glob("*train*.h5")
    cache = featx.load(path)
    assert cache.class_names == ["automobile", "car", "frog", "ship"]
    assert cache.paths[0] == "old/automobile/0.png"
    asked = cache.meta["request"]
    assert (asked["train_folder"], asked["test_folder"]) == ("old", "new")
    assert "val_folder" not in asked
    wanted = cache.X[:]
    cache.close()
    with h5py.File(path) as file:
        offset = file["features"].id.get_offset()
    data = bytearray(path.read_bytes())
    data[offset] ^= 255
    path.write_bytes(data)
    assert main(["repair", str(path)]) == 0
    np.testing.assert_array_equal(featx.load(path).X[:], wanted)
    assert main(["info", *folders]) == 2
