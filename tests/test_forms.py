"""Whatever form Python users give a word, a plan holds the declared one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from featx import draw_subset
from featx.errors import UsageError
from featx.evaluate import Settings
from featx.extract import Plan
from featx.train import TrainPlan


def test_an_extraction_takes_one_word_lists_paths_devices_and_pairs():
    typed = Plan(
        backbone="vgg16",
        data=Path("photos"),
        split="train",
        classes=["cat", "dog"],
        layer=None,
        input_size=(64, 64),
        mean=[0.1, 0.2, 0.3],
        device=torch.device("cpu"),
        weights=Path("a") / "vgg.pth",
        per_class="all",
    )
    assert typed == Plan(
        backbone=("vgg16",),
        data="photos",
        split=("train",),
        classes=("cat", "dog"),
        input_size=64,
        mean=(0.1, 0.2, 0.3),
        device="cpu",
        weights="a/vgg.pth",
    )


def test_a_training_and_fits_take_one_word_and_one_number():
    assert TrainPlan(
        network=Path("a.safetensors"),
        per_class=100,
        augment="flip",
        device=torch.device("cpu"),
        test_per_class="all",
    ) == TrainPlan(network="a.safetensors", per_class=(100,), augment=("flip",), device="cpu")
    assert Settings(heads="svm", per_class="all") == Settings(heads=("svm",), per_class=("all",))
    assert Settings(heads=["svm"], per_class=5) == Settings(heads=("svm",), per_class=(5,))


def test_a_size_that_is_no_square_is_refused():
    with pytest.raises(UsageError, match="give one number, the side of a square"):
        Plan(backbone="vgg16", input_size=(64, 32))


def test_all_images_are_drawn_by_their_word():
    labels = np.repeat([0, 1], [3, 5])
    np.testing.assert_array_equal(draw_subset(labels, "all", seed=0), np.arange(8))
    with pytest.raises(UsageError, match="give a whole number above 0, or 'all'"):
        draw_subset(labels, "5", seed=0)
