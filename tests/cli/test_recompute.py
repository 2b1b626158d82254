"""A report on real handwritten digits, recomputed by a script that does not know featx."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from featx.cli import main
from featx.store import CacheSpec, CacheWriter

SCRIPT = Path(__file__).resolve().parents[1] / "evaluate" / "recompute.py"


def write_digits(folder, split, rows):
    """Pixels as features: 64 numbers from 0 to 16, exact in float16."""
    X, y = load_digits(return_X_y=True)
    X, y = X[rows] / 4, y[rows]
    identity = {"source": {"content": split}, "weights_sha256": "none"}
    meta = {"data": "digits", "split": split, "backbone": "pixels", "layer": "pixels"}
    meta |= {"pool": "none", "input_size": 8, "precision": "fp32", "sample": None}
    digests = b"".join(hashlib.sha256(row.tobytes()).digest() for row in X)
    spec = CacheSpec(
        identity=identity,
        meta=meta,
        labels=y.astype(np.int64),
        class_names=[str(i) for i in range(10)],
        paths=[f"{split}/{i}.png" for i in range(len(y))],
        n_features=64,
        dtype="float16",
        image_digests=np.frombuffer(digests, np.uint8).reshape(-1, 32),
    )
    with CacheWriter.open(folder / f"digits-{split}.h5", spec) as writer:
        writer.write(0, X.astype(np.float32))
        writer.finish()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").mkdir()
    return tmp_path


def recompute(forks):
    done = forks.run(SCRIPT.read_text(encoding="utf-8"), "reports", "cache")
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("train", []),
        ("train", ["--scale", "standard", "--class-weight", "balanced"]),
        ("train", ["--scale", "power"]),
        ("train", ["--scale", "whiten=20"]),
        ("all", ["--scale", "l2"]),
    ],
    ids=["plain", "standard", "power", "whitened", "held out, l2"],
)
def test_every_number_of_a_report_is_recomputed(folder, capsys, forks, split, words):
    write_digits(folder / "cache", split, slice(0, 600))
    if split == "train":
        write_digits(folder / "cache", "test", slice(1200, 1500))
    ask = ["fit", "--clf", "svm", "logreg", "--per-class", "5", "12", "--repeats", "1", "--quiet"]
    assert main([*ask, "--folds", "3", *words]) == 0
    capsys.readouterr()
    code, text = recompute(forks)
    assert code == 0, text
    assert text.count("agree") == 4


def test_a_wrong_number_is_found(folder, capsys, forks):
    write_digits(folder / "cache", "all", slice(0, 400))
    assert main(["fit", "--per-class", "5", "--repeats", "1", "--folds", "2", "--quiet"]) == 0
    capsys.readouterr()
    (path,) = Path("reports/fits").iterdir()
    record = json.loads(path.read_text(encoding="utf-8"))
    record["fit"]["acc1"] += 0.01
    record["predictions"][3] = (record["predictions"][3] + 1) % 10
    path.write_text(json.dumps(record), encoding="utf-8")
    code, text = recompute(forks)
    assert code == 1
    for name in ("sha256", "predictions", "acc1"):
        assert f"  {name}: stored" in text


def test_the_script_does_not_know_featx():
    assert "import featx" not in SCRIPT.read_text(encoding="utf-8")
    assert "from featx" not in SCRIPT.read_text(encoding="utf-8")
