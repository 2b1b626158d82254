"""Pillow is the oracle: every value of every image is the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import models

from featx.preprocess import Preprocessing
from featx.resample import RESAMPLED, find_resampler, weights_1d

SIZES = [
    ((32, 32), (256, 256)),
    ((32, 32), (224, 224)),
    ((96, 96), (232, 232)),
    ((500, 375), (341, 256)),
    ((33, 57), (80, 41)),
    ((224, 224), (32, 32)),
    ((7, 1), (3, 9)),
    ((300, 200), (300, 100)),
]


def made(width, height, n=3, seed=1):
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (n, height, width, 3), np.uint8)
    pixels[1:2] = np.where(pixels[1:2] > 127, 255, 0)
    return pixels


def by_pillow(pixels, size, interpolation):
    filter_ = Image.Resampling[interpolation.upper()]
    return np.stack([np.asarray(Image.fromarray(image).resize(size, filter_)) for image in pixels])


@pytest.mark.parametrize("interpolation", RESAMPLED)
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_every_pixel_is_pillows(before, after, interpolation):
    pixels = made(*before)
    resampler = find_resampler(before, after, interpolation)
    assert resampler is not None
    mine = resampler(torch.from_numpy(pixels)).numpy()
    assert np.array_equal(mine, by_pillow(pixels, after, interpolation))


@given(st.tuples(*[st.integers(1, 70)] * 4), st.sampled_from(["bilinear", "bicubic", "lanczos"]))
@settings(max_examples=60)
def test_any_sizes_are_pillows_or_refused(sizes, interpolation):
    before, after = sizes[:2], sizes[2:]
    resampler = find_resampler(before, after, interpolation)
    if resampler is not None:
        pixels = made(*before, seed=7)
        mine = resampler(torch.from_numpy(pixels)).numpy()
        assert np.array_equal(mine, by_pillow(pixels, after, interpolation))


def test_weights_add_up_to_one():
    for interpolation in RESAMPLED:
        sums = weights_1d(32, 224, interpolation).sum(1) / 2**22
        np.testing.assert_allclose(sums, 1, atol=1e-5)


def test_a_filter_that_is_not_known_is_refused():
    assert find_resampler((32, 32), (64, 64), "nearest") is None


@pytest.mark.parametrize("name", ["resnet50", "inception_v3", "vit_b_16", "efficientnet_b0"])
@pytest.mark.parametrize("size", [(32, 32), (40, 28)])
def test_the_preset_of_weights_resized_on_a_device(name, size):
    weights = next(iter(models.get_model_weights(name)))
    preprocessing = Preprocessing.from_torchvision(weights.transforms())
    pixels = made(*size)
    resize = preprocessing.find_resize(*size)
    assert resize is not None
    mine = resize(torch.from_numpy(pixels)).numpy()
    for image, wanted in zip(pixels, mine, strict=True):
        assert np.array_equal(preprocessing.pixels(Image.fromarray(image)), wanted)


def test_large_images_and_other_crops_stay_with_pillow():
    preset = models.ResNet50_Weights.IMAGENET1K_V1.transforms()
    preprocessing = Preprocessing.from_torchvision(preset)
    assert preprocessing.find_resize(500, 375) is None
    assert (
        Preprocessing(64, 64, "bilinear", (0, 0, 0), (1, 1, 1), crop_mode="squash").find_resize(
            32, 32
        )
        is None
    )
    assert Preprocessing(64, 80, "bilinear", (0, 0, 0), (1, 1, 1)).find_resize(32, 32) is None
