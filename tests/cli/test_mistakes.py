"""Mistakes of the first day: each is answered by a line that says what to do, at once."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from small_caches import CIFAR, write

BACKBONE = ["extract", "--backbone", "squeezenet1_1", "--weights", "random"]
MISTAKES = {
    "a misspelt command": (["extrakt"], "did you mean extract"),
    "options before the command": (["--data", "pets", "extract"], "No such option"),
    "no backbone": (["extract", "--data", "pets"], "--backbone"),
    "a misspelt backbone": (["extract", "--backbone", "resnet5", "--data", "pets"], "resnet50"),
    "a backbone of timm": (["extract", "--backbone", "timm/resnet5", "--data", "pets"], "timm"),
    "a misspelt option": ([*BACKBONE, "--dat", "pets"], "--data"),
    "a folder that is not there": ([*BACKBONE, "--data", "pest"], "pest"),
    "a path with a space": ([*BACKBONE, "--data", "my", "pets"], "unexpected extra argument"),
    "a home that is not spelt out": ([*BACKBONE, "--data", "~/nothing here"], "nothing here"),
    "an empty class": ([*BACKBONE, "--data", "empty class"], "dog"),
    "an empty folder": ([*BACKBONE, "--data", "empty"], "empty"),
    "one class": ([*BACKBONE, "--data", "pets/cat"], "class"),
    "a file of text as data": ([*BACKBONE, "--data", "notes.txt"], "notes.txt"),
    "a misspelt pool": ([*BACKBONE, "--data", "pets", "--pool", "average"], "avg"),
    "a size that is no number": ([*BACKBONE, "--data", "pets", "--input-size", "big"], "native"),
    "weights that are not there": (
        ["extract", "--backbone", "vgg16", "--weights", "vgg16.pth", "--data", "pets"],
        "vgg16.pth",
    ),
    "a misspelt tag of weights": (
        ["extract", "--backbone", "vgg16", "--weights", "IMAGENET1K_V9", "--data", "pets"],
        "IMAGENET1K_V1",
    ),
    "a misspelt layer": (
        [*BACKBONE, "--data", "pets", "--layer", "feature.3", "--cache", "layers"],
        "features.3",
    ),
    "a misspelt split": ([*BACKBONE, "--data", "splits", "--split", "tets"], "test"),
    "a misspelt device": ([*BACKBONE, "--data", "pets", "--device", "gpu"], "cuda"),
    "fit before extract": (["fit", "--per-class", "5"], "featx extract"),
    "fit in another folder": (["fit", "--per-class", "5", "--cache", "elsewhere"], "elsewhere"),
    "fit without a number of images": (["fit", "--cache", "full"], "--per-class"),
    "a misspelt head": (["fit", "--clf", "smv", "--per-class", "5", "--cache", "full"], "svm"),
    "a misspelt setting": (
        ["fit", "--clf", "mlp(hiden=5)", "--per-class", "5", "--cache", "full"],
        "hidden",
    ),
    "more images than there are": (["fit", "--per-class", "5000", "--cache", "full"], "5000"),
    "no images per class": (["fit", "--per-class", "0", "--cache", "full"], "at least 1"),
    "caches of other data": (
        ["fit", "--per-class", "5", "--data", "cifar", "--cache", "full"],
        "cifar10",
    ),
    "compare before fit": (["compare", "svm", "logreg"], "featx fit"),
    "report before fit": (["report"], "featx fit"),
    "reports before fit": (["reports", "list"], "featx fit"),
    "predict without a model": (["predict", "pets/cat/0.png"], "--model"),
    "predict with no model": (["predict", "--model", "model.safetensors", "pets"], "model.s"),
    "predict with weights": (["predict", "--model", "notes.txt", "pets"], "notes.txt"),
    "info of nothing": (["info"], "--data"),
    "info of a file that is not there": (["info", "cache/x.h5"], "featx extract"),
    "info of a picture": (["info", "pets/cat/0.png"], "not a featx cache"),
    "caches of a folder that is not there": (["list", "caches"], "featx extract"),
    "a misspelt list": (["list", "backbone"], "backbones"),
    "layers of a misspelt backbone": (["list", "layers", "vgg61"], "vgg16"),
    "unpack what is not packed": (["unpack", "notes.txt"], "notes.txt"),
    "export to a misspelt format": (["export", "full/a.h5", "--format", "csv"], "npz"),
    "a misspelt network": (["train", "--network", "rsnet18", "--data", "pets"], "resnet18"),
    "a misspelt optimizer": (
        ["train", "--network", "auto-cnn", "--data", "pets", "--optimizer", "Adm"],
        "Adam",
    ),
    "a sweep of a misspelt pool": (
        ["sweep", *BACKBONE[1:], "--data", "pets", "--per-class", "1", "--pool", "avg", "mx"],
        "max",
    ),
    "a sweep of data that are not there": (
        ["sweep", *BACKBONE[1:], "--data", "pest", "--per-class", "1", "--pool", "avg", "max"],
        "pest",
    ),
    "a misspelt backbone to verify": (["verify", "--backbone", "resnet5"], "resnet50"),
    "a misspelt recipe": (["reproduce", "klimak"], "klimack"),
    "a folder that may not be written to": (
        [*BACKBONE, "--data", "pets", "--cache", "notes.txt/cache"],
        "notes.txt",
    ),
}
# Which layers there are is known when the network is built; recipes are read whole.
NEED_TORCH = ("a misspelt layer", "a misspelt recipe")
RUN = """
import contextlib, io, json, sys
from featx.cli import main
for words in json.loads(sys.stdin.read()):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    print(json.dumps([code, err.getvalue(), "torch" in sys.modules]))
"""


@pytest.fixture(scope="module")
def first_day(tmp_path_factory):
    root = tmp_path_factory.mktemp("first day")
    rng = np.random.default_rng(0)
    splits = [f"splits/{split}/{name}" for split in ("train", "test") for name in "ab"]
    folders = ["pets/cat", "pets/dog", "empty class/cat", *splits]
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{i}.png")
    for folder in ("empty class/dog", "empty", "full"):
        (root / folder).mkdir()
    (root / "notes.txt").write_text("remember the milk\n")
    for split in ("train", "test"):
        write(root / "full", "cifar10", split, CIFAR, 30, 0)
    return root


@pytest.fixture(scope="module")
def answers(first_day):
    """Exit code, errors, and whether torch was loaded then, of all in one process."""
    names = sorted(MISTAKES, key=NEED_TORCH.__contains__)
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps([MISTAKES[name][0] for name in names]),
        cwd=first_day,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(names, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_by_a_line_without_importing_torch(mistake, answers):
    code, told, has_torch = answers[mistake]
    lines = [line for line in told.splitlines() if line.startswith("featx: ")]
    assert code in (1, 2)
    assert len(lines) == 1, told
    assert MISTAKES[mistake][1] in told
    assert "[Errno" not in told
    assert not has_torch or mistake in NEED_TORCH
