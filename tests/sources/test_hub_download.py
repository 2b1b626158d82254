"""Data sets of the Hugging Face Hub by name, from a stand-in of the Hub."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
from hub_server import serve_hub
from PIL import Image

from featx.errors import SourceError, UsageError
from featx.progress import SILENT
from featx.sources import open_data
from featx.sources.hub import fetch_dataset

OPEN = """
import json, sys
from featx.errors import FeatxError
from featx.sources import open_data
try:
    found = open_data(sys.argv[1])
except FeatxError as error:
    print(json.dumps([str(error)]))
else:
    print(json.dumps({
        split: [s.name, len(s), list(s.class_names), s.labels.tolist(), len(s.read(0))]
        for split, s in found.items()
    }))
"""


def parquet(n: int, seed: int) -> bytes:
    """Write images as `datasets` does for the Hub."""
    rng = np.random.default_rng(seed)
    images = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(n)]
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = {"img": images, "label": [i % 2 for i in range(n)]}
    file = io.BytesIO()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    return file.getvalue()


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 0, 0)).save(file, "png")
    return file.getvalue()


@pytest.fixture
def opened(tmp_path):
    """Open a data set in a process of its own: the address of the Hub is read at its import."""

    def run(spec: str, files: dict[str, bytes], repository: str = "own/pets"):
        with serve_hub(repository, files) as (address, sent):
            own = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
            command = [sys.executable, "-c", OPEN, spec]
            environment = {**os.environ, **own}
            done = subprocess.run(command, env=environment, capture_output=True, check=True)
        return json.loads(done.stdout), sorted(sent)

    return run


def parts(folder: str) -> dict[str, bytes]:
    return {
        f"{folder}/train-00000-of-00001.parquet": parquet(4, 0),
        f"{folder}/test-00000-of-00001.parquet": parquet(2, 1),
    }


@pytest.mark.parametrize("folder", ["data", "plain_text"])
def test_the_splits_of_a_data_set_are_fetched_once_and_no_script_is(opened, folder):
    files = {**parts(folder), "pets.py": b"raise SystemExit", "README.md": b"# pets"}
    found, sent = opened("hf://own/pets", files)
    names = ["cat", "dog"]
    assert {split: row[:4] for split, row in found.items()} == {
        "train": ["own-pets", 4, names, [0, 1, 0, 1]],
        "test": ["own-pets", 2, names, [0, 1]],
    }
    assert sent == sorted(parts(folder))
    again, sent = opened("hf://datasets/own/pets", files)
    assert (again, sent) == (found, [])


def test_a_part_of_a_data_set_is_chosen_by_its_folder(opened):
    files = {**parts("coarse"), **parts("fine")}
    [message], _ = opened("hf://own/pets", files)
    assert "choose one of hf://own/pets/coarse, hf://own/pets/fine" in message
    found, sent = opened("hf://own/pets/fine", files)
    assert found["train"][1] == 4
    assert all(name.startswith(("fine/", "coarse/")) for name in sent)


def test_class_folders_of_images_are_read(opened):
    names = [f"{split}/{c}/{i}.png" for split in ("train", "test") for c in "ab" for i in range(2)]
    found, _ = opened("hf://own/pets", dict.fromkeys(names, png()))
    assert {split: row[1:3] for split, row in found.items()} == {
        "train": [4, ["a", "b"]],
        "test": [4, ["a", "b"]],
    }


def test_a_name_that_the_hub_does_not_have_is_a_sentence(opened):
    [message], _ = opened("hf://own/pest", parts("data"))
    assert message.startswith("the data set own/pest cannot be fetched from the Hugging Face Hub")
    assert "hf download --repo-type dataset own/pest" in message


@pytest.mark.parametrize("spec", ["hf://pets", "hf://a/b/../../c", "hf://a b/c"])
def test_a_spec_that_names_no_data_set_is_refused_without_the_net(spec):
    with pytest.raises(UsageError, match="write hf://owner/name"):
        fetch_dataset(spec, SILENT)


def test_a_bare_name_of_the_hub_is_told_how_it_is_written():
    with pytest.raises(SourceError, match="did you mean hf://own/pets of the Hugging Face Hub"):
        open_data("own/pets")
