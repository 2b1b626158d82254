"""Oracle: torchvision's own transforms, and timm's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import models
from torchvision.transforms import InterpolationMode, functional

from featx import preprocess
from featx.errors import UsageError
from featx.preprocess import Preprocessing

IMAGENET = models.SqueezeNet1_0_Weights.IMAGENET1K_V1


def prepared(preprocessing, image):
    pixels = np.array(preprocessing.pixels(image))
    assert pixels.dtype == np.uint8
    return preprocessing.normalise(torch.from_numpy(pixels)[None])[0]


def noise(width, height, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("name", models.list_models(module=models))
def test_every_weights_entry_of_torchvision_gives_its_own_transform_bit_for_bit(name):
    image = noise(120, 90)
    for entry in models.get_model_weights(name):
        transform = entry.transforms()
        ours = Preprocessing.from_torchvision(transform)
        assert torch.equal(prepared(ours, image), transform(image)), entry


def test_photographs_are_prepared_bit_for_bit_as_torchvision_does(photographs):
    transforms = [
        IMAGENET.transforms(),
        models.Inception_V3_Weights.IMAGENET1K_V1.transforms(),
        models.ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1.transforms(),
        models.VGG16_Weights.IMAGENET1K_FEATURES.transforms(),
    ]
    for path in photographs[:8]:
        image = Image.open(path).convert("RGB")
        for transform in transforms:
            assert torch.equal(
                prepared(Preprocessing.from_torchvision(transform), image), transform(image)
            )


@settings(deadline=None, max_examples=300)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from([32, 64, 224, 232, 256, 342]),
    st.floats(0.5, 1),
)
def test_every_size_of_image_is_resized_as_torchvision_does_it(width, height, resize_px, crop):
    """Noise is the hardest image: no two neighbours are alike, so each weight shows."""
    transform = torchvision_preset(resize_px, max(1, int(resize_px * crop)))
    image = noise(width, height)
    ours = prepared(Preprocessing.from_torchvision(transform), image)
    assert torch.equal(ours, transform(image))


@pytest.mark.parametrize(
    ("size", "resize_px"),
    [
        ((32, 32), 256),
        ((96, 96), 256),
        ((224, 224), 256),
        ((31, 31), 256),
        ((64, 48), 384),
        ((56, 112), 224),
        ((7, 7), 224),
        ((160, 200), 256),
        ((224, 300), 224),
    ],
)
def test_torch_resizes_where_that_is_exact(size, resize_px, monkeypatch):
    from torchvision.transforms import functional

    transform = torchvision_preset(resize_px, resize_px - 20)
    wanted = transform(noise(*size))
    monkeypatch.setattr(functional, "resize", None)  # it is not called
    assert torch.equal(prepared(Preprocessing.from_torchvision(transform), noise(*size)), wanted)


@pytest.mark.parametrize(
    ("size", "crop", "by_torch"),
    [
        ((32, 32), 224, True),
        ((32, 32), 240, False),  # it reaches weights that the edge changes
        ((96, 96), 226, True),
        ((224, 224), 224, True),
        ((128, 300), 224, True),
        ((16, 16), 160, False),  # the weights have more bits than torch
        ((64, 48), 160, False),
    ],
)
def test_torch_enlarges_cubically_where_that_is_exact(size, crop, by_torch, monkeypatch):
    ours = Preprocessing(256, crop, "bicubic", (0.5,) * 3, (0.5,) * 3)
    random, calls, real = np.random.default_rng(3), [], preprocess._resize_by_torch
    monkeypatch.setattr(preprocess, "_resize_by_torch", lambda *a: calls.append(a) or real(*a))
    for grey_levels in ([0, 255], range(256)):  # black and white is clipped after each pass
        pixels = random.choice(grey_levels, (*size[::-1], 3)).astype(np.uint8)
        image = Image.fromarray(pixels)
        by_pillow = functional.resize(image, [256], InterpolationMode.BICUBIC)
        wanted = np.asarray(functional.center_crop(by_pillow, [crop, crop]))
        assert np.array_equal(ours.pixels(image), wanted)
    assert bool(calls) == by_torch


def torchvision_preset(resize_px, crop_px):
    from torchvision.transforms._presets import ImageClassification

    return ImageClassification(resize_size=resize_px, crop_size=crop_px)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40))
def test_any_size_of_image_gives_the_size_of_the_network(width, height, side):
    ours = Preprocessing.from_torchvision(IMAGENET.transforms()).override(input_size=side)
    assert ours.pixels(noise(width, height)).shape == (side, side, 3)


def test_timm_preprocessing_equals_timms_transform(photographs):
    timm = pytest.importorskip("timm")
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    config = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**config, is_training=False)
    ours = Preprocessing.from_timm(network.pretrained_cfg)
    assert ours.mean == (0.5, 0.5, 0.5)
    for path in photographs[:4]:
        image = Image.open(path).convert("RGB")
        assert torch.equal(prepared(ours, image), transform(image))


def test_a_new_input_size_keeps_the_ratio_of_resize_to_crop():
    inception = Preprocessing.from_torchvision(
        models.Inception_V3_Weights.IMAGENET1K_V1.transforms()
    )
    assert (inception.resize_px, inception.crop_px) == (342, 299)
    small = inception.override(input_size=224)
    assert (small.resize_px, small.crop_px) == (256, 224)


def test_overrides_enter_the_identity_and_the_description():
    plain = Preprocessing.from_torchvision(IMAGENET.transforms(), "the weights")
    assert plain.override() is plain
    changed = plain.override(crop_pct=1.0, interpolation="bicubic", mean=(0.5, 0.5, 0.5))
    assert changed.identity() != plain.identity()
    assert changed.resize_px == 224
    for word in ("resize 224 bicubic", "mean 0.5 0.5 0.5", "the weights, changed by options"):
        assert word in changed.describe()


def test_where_values_come_from_is_no_part_of_the_identity():
    transform = IMAGENET.transforms()
    one, other = (Preprocessing.from_torchvision(transform, origin) for origin in "ab")
    assert one.identity() == other.identity()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"input_size": 0}, "at least 1 pixel"),
        (
            {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
            "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225",
        ),
        (
            {"mean": (123.68, 116.78, 103.94), "std": (1.0, 1.0, 1.0)},
            "--mean 0.485 0.458 0.4076 --std 0.003922 0.003922 0.003922",
        ),
        ({"std": (58.395, 57.12, 57.375)}, "std are of values from 0 to 255"),
        ({"bits": 20}, "from 8 to 15"),
        ({"crop_pct": 0.0}, "crop_pct"),
        ({"crop_pct": 1.5}, "crop_pct"),
        ({"interpolation": "cubic"}, "bicubic"),
        ({"std": (0.0, 1.0, 1.0)}, "std must be positive"),
        ({"mean": (float("nan"), 1.0, 1.0)}, "finite"),
    ],
)
def test_values_out_of_range_are_refused(override, message):
    with pytest.raises(UsageError, match=message):
        Preprocessing.from_torchvision(IMAGENET.transforms()).override(**override)


def as_before(preprocessing, pixels):
    """What every cache on a device was made with."""
    pixels = pixels.flip(-1) if preprocessing.channels == "bgr" else pixels
    values = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255
    mean, std = (
        torch.tensor(v, device=values.device) for v in (preprocessing.mean, preprocessing.std)
    )
    return (values - mean[:, None, None]) / std[:, None, None]


def every_value():
    values = torch.arange(256, dtype=torch.uint8)
    return torch.stack([values, values.flip(0), values.roll(7)], -1).reshape(4, 8, 8, 3)


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_devices_normalise_with_the_bits_of_before(channels, monkeypatch):
    preprocessing = Preprocessing.from_torchvision(IMAGENET.transforms()).override(
        channels=channels
    )
    # Where a pass is traced, the processor takes the way of a device.
    monkeypatch.setattr("featx.preprocess.is_traced", lambda: True)
    pixels = every_value()
    found = preprocessing.normalise(pixels)
    assert torch.equal(found, as_before(preprocessing, pixels))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pixels, every_value())
    kept = preprocessing.constants(torch.device("cpu"))
    assert torch.equal(preprocessing.normalise(pixels, kept), found)
    # A number that is copied to a GPU makes the host wait for all work there.
    monkeypatch.setattr(torch, "tensor", None)
    assert torch.equal(preprocessing.normalise(pixels), found)


def test_constants_that_were_made_without_gradients_can_be_trained_with(monkeypatch):
    from featx import preprocess

    preprocess._on_device.cache_clear()
    monkeypatch.setattr(preprocess, "is_traced", lambda: True)
    preprocessing = Preprocessing.from_torchvision(IMAGENET.transforms())
    with torch.inference_mode():
        preprocessing.normalise(every_value())
    assert not any(c.is_inference() for c in preprocessing.constants(torch.device("cpu")))


@pytest.mark.gpu
def test_a_gpu_normalises_and_resizes_without_making_the_host_wait():
    preprocessing = Preprocessing.from_torchvision(IMAGENET.transforms())
    resize = preprocessing.find_resize(32, 32)
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    there = images.cuda()
    resized = resize(there)
    expected = as_before(preprocessing, resized)
    preprocessing.normalise(resized)
    try:
        torch.cuda.set_sync_debug_mode("error")
        found = preprocessing.normalise(resize(there))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found, expected)
    assert torch.equal(resize(images), resized.cpu())


@pytest.mark.parametrize("size", [(32, 32), (40, 32), (32, 40)])
def test_what_a_device_resizes_lies_in_memory_as_what_comes_resized(size):
    preprocessing = Preprocessing.from_torchvision(IMAGENET.transforms())
    pixels = np.stack([np.asarray(noise(*size, seed)) for seed in range(2)])
    resized = preprocessing.find_resize(*size)(torch.from_numpy(pixels))
    assert resized.stride() == torch.empty(resized.shape).stride()
    wanted = np.stack([preprocessing.pixels(Image.fromarray(image)) for image in pixels])
    assert np.array_equal(resized, wanted)
