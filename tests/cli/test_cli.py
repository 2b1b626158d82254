from __future__ import annotations

import os
import re
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

import featx
from featx.cli import main
from featx.cli.options import PER_CLASS, ListCommand, list_option


def image_tree(root, classes=("cat", "dog"), n=6, splits=("",)):
    rng = np.random.default_rng(0)
    for split in splits:
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


EXTRACT = ["extract", "--backbone", "squeezenet1_1", "--weights", "random", "--input-size", "32"]
EXTRACT += ["-j", "0", "--quiet"]


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_extract_info_list_verify(in_tmp, capsys):
    image_tree(in_tmp / "pets", splits=("train", "test"))
    assert main([*EXTRACT, "--data", "pets"]) == 0
    out = capsys.readouterr().out
    files = re.findall(r"^(\S+\.h5): 12 x 512 float16", out, re.MULTILINE)
    assert len(files) == 2
    assert main(["list", "caches"]) == 0
    out = capsys.readouterr().out
    assert out.count("squeezenet1_1") >= 2
    assert "12 x 512" in out
    assert main(["info", files[0]]) == 0
    out = capsys.readouterr().out
    for line in ("complete", "split: train", "weights.label: random:0", "classes: 2"):
        assert line in out
    assert main(["verify", *files, "--quiet"]) == 0
    assert capsys.readouterr().out.count("intact") == 2
    content = bytearray(Path(files[1]).read_bytes())
    content[len(content) // 2] ^= 1
    Path(files[1]).write_bytes(content)
    assert main(["verify", *files, "--quiet"]) == 1
    captured = capsys.readouterr()
    assert "DAMAGED" in captured.out
    assert "1 of 2 files are damaged" in captured.err


def test_several_backbones_and_chosen_splits(in_tmp, capsys):
    image_tree(in_tmp / "pets", splits=("train", "test"))
    words = ["extract", "--backbone", "squeezenet1_0", "squeezenet1_1", "--weights", "random"]
    words += ["--input-size", "32", "--data", "pets", "--split", "test", "--per-class", "2"]
    assert main([*words, "--test-per-class", "3", "--pool", "avg", "-j", "0"]) == 0
    out = capsys.readouterr().out
    assert out.count(": 6 x 512 float16") == 2
    assert "train" not in out


def test_an_unreadable_picture_is_reported_and_listed(in_tmp, capsys):
    image_tree(in_tmp / "pets")
    (in_tmp / "pets/cat/3.png").write_bytes(b"\x89PNG\r\n")
    assert main([*EXTRACT, "--data", "pets"]) == 0
    captured = capsys.readouterr()
    assert "1 of 12 images could not be read" in captured.err
    assert "cat/3.png" in captured.err
    file = captured.out.split(": ")[0]
    assert main(["info", file]) == 0
    assert re.search(r"row 3: cat/3.png: \w", capsys.readouterr().out)
    assert main([*EXTRACT, "--data", "pets", "--cache", "other", "--on-error", "raise"]) == 1
    assert "cat/3.png" in capsys.readouterr().err
    assert list((in_tmp / "other").glob("*.h5")) == []


BAD = {
    "backbone": (["--backbone", "vgg61"], 2, r"unknown backbone 'vgg61': did you mean vgg"),
    "layer": (["--layer", "featurs"], 2, r"unknown layer 'featurs': did you mean features"),
    "data": (["--data", "cifar11"], 2, r"cifar1"),
    "folder": (["--data", "no/such/folder"], 1, r"no/such/folder"),
    "weights file": (["--weights", "none.pth"], 1, r"none.pth does not exist"),
    "weights tag": (["--weights", "IMAGENET_V1"], 1, r"did you mean IMAGENET1K_V1"),
    "pool": (["--pool", "mean"], 2, r"unknown pool 'mean'"),
    "per class": (["--per-class", "7"], 1, r"largest.*6"),
    "split": (["--split", "val"], 2, r"no split 'val': choose from all"),
    "device": (["--device", "gpu"], 2, r"choose auto, cpu, cuda"),
    "precision": (["--precision", "fp8"], 2, r"did you mean fp32, fp16"),
    "option": (["--bakbone", "x"], 2, r"--backbone"),
    "dtype": (["--store-dtype", "float64"], 2, r"float16"),
    "size": (["--input-size", "2"], 1, r"does not run at an input size of 2 pixels"),
    "negative": (["--per-class", "0"], 2, r"per-class"),
    "batch": (["--batch-size", "0"], 2, r"batch size must be at least 1"),
}


@pytest.mark.parametrize("words", BAD, ids=list(BAD))
def test_bad_input_is_one_line_and_leaves_nothing(words, in_tmp, capsys):
    image_tree(in_tmp / "pets")
    options, code, message = BAD[words]
    assert main([*EXTRACT, "--data", "pets", *options]) == code
    captured = capsys.readouterr()
    error = [line for line in captured.err.splitlines() if line and not line.startswith("  ")]
    assert len(error) == 1
    assert error[0].startswith("featx: ")
    assert re.search(message, error[0], re.IGNORECASE | re.DOTALL)
    assert list(in_tmp.rglob("*.h5")) == []


def test_folders_without_two_classes_are_errors(in_tmp, capsys):
    image_tree(in_tmp / "one", classes=("cat",))
    (in_tmp / "none").mkdir()
    for name in ("one", "none"):
        assert main([*EXTRACT, "--data", str(in_tmp / name)]) == 1
        assert str(in_tmp / name) in capsys.readouterr().err


def test_a_cache_made_with_other_settings_prints_the_difference(in_tmp, capsys):
    image_tree(in_tmp / "pets")
    assert main([*EXTRACT, "--data", "pets"]) == 0
    file = next((in_tmp / "cache").glob("*.h5"))
    before = file.read_bytes()
    Image.new("RGB", (20, 20)).save(in_tmp / "pets/dog/1.png")
    assert main([*EXTRACT, "--data", "pets"]) == 1
    err = capsys.readouterr().err
    assert "source.content: asked for" in err
    assert "--overwrite" in err
    assert file.read_bytes() == before
    assert main([*EXTRACT, "--data", "pets", "--overwrite"]) == 0


def test_no_permission_to_write_is_one_line(in_tmp, capsys):
    image_tree(in_tmp / "pets")
    locked = in_tmp / "locked"
    locked.mkdir(mode=0o555)
    if os.geteuid() == 0:
        locked = Path("/sys")  # where root may not make a folder either
    assert main([*EXTRACT, "--data", "pets", "--cache", str(locked / "cache")]) == 1
    error = capsys.readouterr().err
    assert str(locked) in error
    assert re.search("not permitted|denied", error)
    assert "--cache DIR" in error
    assert error.count("\n") == 1


def test_a_cache_folder_that_is_a_file_is_one_line(in_tmp, capsys):
    image_tree(in_tmp / "pets")
    (in_tmp / "file").write_text("x")
    assert main([*EXTRACT, "--data", "pets", "--cache", "file"]) == 1
    assert "--cache DIR" in capsys.readouterr().err


def test_debug_shows_the_traceback(in_tmp):
    with pytest.raises(Exception, match="unknown backbone"):
        main(["extract", "--backbone", "vgg61", "--debug"])


def test_unknown_commands_suggest_the_nearest(capsys):
    assert main(["extrct"]) == 2
    assert "did you mean extract" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["list", "backbones", "vgg*"],
            ["vgg11", "IMAGENET1K_V1", "138.4 M", "IMAGENET1K_FEATURES"],
        ),
        (["list", "backbones", "lite0"], ["EMBEDDED"]),
        (["list", "data"], ["cifar10", "stl10", "digits", "FOLDER"]),
        (["list", "heads"], ["svm", "logreg", "mlp", "knn", "n_neighbors=1,3,5"]),
        (["list", "layers", "squeezenet1_1"], ["512 x 13 x 13", "86,528", "default"]),
    ],
)
def test_lists(words, expected, capsys):
    assert main(words) == 0
    out = capsys.readouterr().out
    for text in expected:
        assert text in out


def test_lists_say_what_can_be_listed(capsys):
    assert main(["list", "backbone"]) == 2
    assert "did you mean backbones" in capsys.readouterr().err
    assert main(["list", "layers"]) == 2
    assert "featx list layers vgg16" in capsys.readouterr().err


def test_space_separated_lists_are_read_up_to_the_next_option():
    @click.command(cls=ListCommand)
    @list_option("--clf")
    @list_option("--per-class", "-k", type=PER_CLASS)
    @click.option("--seed", type=int)
    def command(clf, per_class, seed):
        click.echo(f"{clf} {per_class} {seed}")

    from click.testing import CliRunner

    def read(text):
        return CliRunner().invoke(command, text.split()).output.strip()

    expected = "('svm', 'mlp') (100, 'all') 3"
    assert read("--clf svm mlp --per-class 100 all --seed 3") == expected
    assert read("--clf=svm mlp -k 100 --seed 3 -k all") == expected
    assert read("--clf svm --clf mlp -k 100 all --seed 3") == expected
    assert "neither a whole number" in read("--per-class 100 many")
    assert "unexpected extra argument" in read("--seed 3 svm")


def n_computed(out):
    return [int(n) for n in re.findall(r"B, (\d+) images? in", out)]


def test_repair_computes_only_the_damaged_rows(in_tmp, capsys):
    image_tree(in_tmp / "pets", n=60)
    words = [*EXTRACT, "--data", "pets", "--layer", "features.2", "--store-dtype", "float32"]
    assert main(words) == 0
    file = next((in_tmp / "cache").glob("*.h5"))
    whole = file.read_bytes()
    content = bytearray(whole)
    content[len(content) // 2] ^= 64
    file.write_bytes(content)
    assert main(["verify", str(file)]) == 1
    damaged = capsys.readouterr()
    assert re.search(r"features rows \d+", damaged.out)
    assert "featx repair" in damaged.err
    assert main(["repair", str(file)]) == 0
    (n,) = n_computed(capsys.readouterr().out)
    assert 0 < n < 120
    assert main(["verify", str(file)]) == 0
    with featx.load(file) as mended:
        rows = np.asarray(mended.X[:])
    offset = whole.find(rows.tobytes())
    assert offset > 0
    assert list((in_tmp / "cache").glob("[!.]*")) == [file]


def test_append_keeps_what_was_computed(in_tmp, capsys):
    image_tree(in_tmp / "pets")
    assert main([*EXTRACT, "--data", "pets"]) == 0
    file = next((in_tmp / "cache").glob("*.h5"))
    with featx.load(file) as cache:
        before = {path: row.tobytes() for path, row in zip(cache.paths, cache.X[:], strict=True)}
    Image.new("RGB", (20, 20), "red").save(in_tmp / "pets/dog/0a.png")
    assert main([*EXTRACT, "--data", "pets"]) == 1
    assert "1 image added: dog/0a.png" in capsys.readouterr().err.replace("added, ", "added: ")
    assert main([*EXTRACT, "--data", "pets", "--append"]) == 0
    assert n_computed(capsys.readouterr().out) == [1]
    with featx.load(file) as cache:
        after = {path: row.tobytes() for path, row in zip(cache.paths, cache.X[:], strict=True)}
    assert len(after) == 13
    assert {path: after[path] for path in before} == before
    assert main([*EXTRACT, "--data", "pets", "--append"]) == 0
    assert "was complete already" in capsys.readouterr().out
    assert main([*EXTRACT, "--data", "pets", "--append", "--weights", "random:1"]) == 0
    assert n_computed(capsys.readouterr().out) == [13]
