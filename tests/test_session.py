"""A session of every usual command: what it prints, and the results that it leaves, stay the same.

What differs between machines and versions (times, sizes, digests, digits of features) is masked.
After a change that is meant, write it anew:  FEATX_WRITE=1 python -m pytest tests/test_session.py
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from featx.cli import main

RECORDED = Path(__file__).with_name("session.txt")
EXTRACT = "--backbone squeezenet1_1 --weights random:3 --pool avg --device cpu"
COMMANDS = f"""
extract {EXTRACT} --data pets --input-size 32
extract {EXTRACT} --data pets --input-size 32
extract {EXTRACT} --data pets --input-size 48 --layer features.3 features.5
info cache/pets-train-squeezenet1_1-random_3-avg-32px.h5
list caches
fit --clf svm ncm --per-class 3 5 --repeats 2 --input-size 32 --save-models
fit --clf svm ncm --per-class 3 5 --repeats 2 --input-size 32
compare svm ncm
report
reports list
list models
predict --model MODEL pets/test
sweep {EXTRACT} --data pets --input-size 32 48 --per-class 3 --clf svm --repeats 1
train --network auto-cnn(blocks=1) --data pets --per-class 5 --epochs 2 --batch-size 5 --device cpu
reproduce own.toml --device cpu
verify cache/pets-test-squeezenet1_1-random_3-avg-32px.h5
pack cache/pets-test-squeezenet1_1-random_3-avg-32px.h5
cache list
fit --clf smv --per-class 3
extract --backbone squeezenet1_2 --data pets
"""
RECIPE = """
[system]
source = "own"
document = "none"
title = "three colours"
[data]
data = "pets"
[extract]
backbone = "squeezenet1_1"
weights = "random:3"
pool = "avg"
input_size = 32
[fit]
heads = ["svm"]
per_class = [3]
repeats = 2
[reported]
accuracy = 0.99
where = "nowhere"
"""
MASKS = (
    (r"^.*: \d+/\d+, .*\n", ""),  # progress: more lines on a slower machine
    (r"(versions\.\w+|engine\.workers): .*", r"\1: ANY"),
    (r"\d[\d.,]* (s|ms|min|bytes|kB|MB|GB)\b", r"N \1"),
    (r"[+-]?\d+\.\d+(e[+-]\d+)?%?", "N.N"),
    (r"\b[0-9a-f]{8,64}\b", "DIGEST"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d\S*", "DATE"),
    (r"weights of epoch \d+", "weights of epoch N"),
    (r"(?<= )-(?= |$)", "N.N"),  # an interval that is not there
    (r"(?<!\S)[-=]{2,}(?!\S)", "----"),
    (r" +", " "),
)


@pytest.fixture
def colours(tmp_path, monkeypatch):
    """Three classes that any features part: red, green and blue images."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 6), ("test", 4)):
        for channel, name in enumerate(("blue", "green", "red")):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 60, (40, 40, 3), np.uint8)
                pixels[..., channel] += 180
                Image.fromarray(pixels).save(folder / f"{i}.png")
    (tmp_path / "own.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    return tmp_path


def test_a_session_prints_and_leaves_what_it_did(colours, capsys):
    said = []
    for words in COMMANDS.strip().splitlines():
        models = sorted(map(str, Path("reports/models").glob("*svm*")))
        code = main([models[0] if word == "MODEL" else word for word in words.split()])
        out, err = capsys.readouterr()
        said += [f"$ featx {words}", out, err, f"exit {code}", ""]
    results = pd.read_csv("reports/results.csv")
    said += ["results.csv", *results.columns, *masked_rows(results)]
    found = masked("\n".join(said), colours)
    if os.environ.get("FEATX_WRITE"):
        RECORDED.write_text(found)
    assert found == RECORDED.read_text()


def masked(text, folder):
    text = text.replace(str(folder), "FOLDER")
    for pattern, word in MASKS:
        text = re.sub(pattern, word, text, flags=re.MULTILINE)
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip()) + "\n"


def masked_rows(results):
    names = ["data", "backbone", "layer", "pool", "input_size", "clf", "per_class", "seed"]
    return [" ".join(map(str, row)) for row in results[[*names, "acc1"]].to_numpy()]
