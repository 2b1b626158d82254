"""A complete answer is known without torch; anything that changed is not."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import squeezenet1_1

from featx.extract import Plan, run_plan, run_shards
from featx.extract.known import find_known
from featx.progress import SILENT
from featx.store.merge import merge_shards

WORDS = ["extract", "--backbone", "squeezenet1_1", "--weights", "weights.pth", "--data", "photos"]
WORDS += ["--input-size", "48", "-j", "0", "-b", "4"]


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                pixels = random.integers(0, 256, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(squeezenet1_1(weights=None).state_dict(), "weights.pth")
    return Plan(
        backbone=("squeezenet1_1",),
        weights="weights.pth",
        data="photos",
        input_size=48,
        workers=0,
        batch_size=4,
    )


def change(plan, **options):
    from dataclasses import replace

    return replace(plan, **options)


def test_the_second_time_needs_no_torch(plan):
    assert find_known(plan, SILENT) is None
    reports = run_plan(plan, SILENT, tell=str)
    code = (
        "import sys; from featx.cli import main; "
        f"assert main({WORDS!r}) == 0; "
        "assert 'torch' not in sys.modules and 'torchvision' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    for line, report in zip(lines, reports, strict=True):
        assert line.startswith(f"{report.path}: 6 x ")
        assert line.endswith("was complete already")


def test_layers_are_known_each(plan):
    both = change(plan, layer=("features.5", "features"), pool="avg")
    run_plan(both, SILENT, tell=str)
    known = find_known(both, SILENT)
    assert [report.n_features for report in known] == [128, 512, 128, 512]
    assert find_known(change(both, layer=("features",)), SILENT) is None


@pytest.mark.parametrize(
    "options",
    [
        {"input_size": 64},
        {"precision": "bf16"},
        {"precision": "auto"},
        {"runtime": "auto"},
        {"runtime": "openvino"},
        {"append": True},
        {"overwrite": True},
        {"per_class": 2},
        {"weights": "random"},
        {"store_dtype": "float32"},
        {"backbone": ("squeezenet1_1", "squeezenet1_0")},
        {"cache_dir": "elsewhere"},
    ],
)
def test_another_question_is_not_known(plan, options):
    run_plan(plan, SILENT, tell=str)
    assert find_known(plan, SILENT) is not None
    assert find_known(change(plan, **options), SILENT) is None


def test_a_changed_image_is_not_known(plan, tmp_path):
    run_plan(plan, SILENT, tell=str)
    Image.new("RGB", (40, 40)).save(tmp_path / "photos" / "test" / "dog" / "1.png")
    assert find_known(plan, SILENT) is None


def test_a_new_image_is_not_known(plan, tmp_path):
    run_plan(plan, SILENT, tell=str)
    Image.new("RGB", (40, 40)).save(tmp_path / "photos" / "train" / "dog" / "9.png")
    assert find_known(plan, SILENT) is None


def test_other_weights_are_not_known(plan):
    run_plan(plan, SILENT, tell=str)
    state = squeezenet1_1(weights=None).state_dict()
    torch.save(state, "weights.pth")
    assert find_known(plan, SILENT) is None


def test_other_packages_are_not_known(plan, monkeypatch):
    from featx.extract import known

    run_plan(plan, SILENT, tell=str)
    real = known.version
    monkeypatch.setattr(known, "version", lambda n: "0.1" if n == "torchvision" else real(n))
    assert find_known(plan, SILENT) is None


def test_a_file_that_is_gone_is_not_known(plan):
    reports = run_plan(plan, SILENT, tell=str)
    reports[1].path.unlink()
    assert find_known(plan, SILENT) is None


def test_what_a_killed_run_left_is_tidied_up(plan):
    reports = run_plan(plan, SILENT, tell=str)
    left = reports[0].path.with_name(f"{reports[0].path.name}.0-1.partial.journal")
    left.write_bytes(b"")
    assert find_known(plan, SILENT) is None
    run_plan(plan, SILENT, tell=str)
    assert not left.exists()
    assert find_known(plan, SILENT) is not None


def test_shards_answer_too_and_a_file_of_them_comes_first(plan):
    run_shards(plan, shard_rows=4, tell=str)
    reports = find_known(plan, SILENT)
    assert [report.path.suffix for report in reports] == [".shards"] * 2
    assert [report.n_images for report in reports] == [6, 6]
    for report in reports:
        merge_shards(report.path)
    assert [report.path.suffix for report in find_known(plan, SILENT)] == [".h5"] * 2
