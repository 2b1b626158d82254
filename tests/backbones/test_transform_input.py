"""Inception and GoogLeNet normalise inside: once, and only where the weights want it."""

from __future__ import annotations

import sys
import types
from functools import lru_cache, partial

import numpy as np
import pytest
import torch
from heard import Log
from PIL import Image
from second_networks import second_reference
from torchvision import models

from featx.backbones import open_backbone, torchvision_models
from featx.backbones.trained import TrainedRecord, save_trained
from featx.networks import FineTuned, get_top
from featx.progress import Reporter
from featx.weights import WeightsFile

PLAIN = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
NAMES = {"inception_v3": "Conv2d_1a_3x3.conv", "googlenet": "conv1.conv"}


@pytest.fixture(scope="module")
def case_of(tmp_path_factory):
    """Make a network, a file of its weights, and the name of its first convolution."""
    return lru_cache(partial(make_case, tmp_path_factory))


def make_case(tmp_path_factory, name):
    torch.manual_seed(0)
    network = models.get_model(name, init_weights=False, aux_logits=False).eval()
    path = tmp_path_factory.mktemp(name) / "mine.pth"
    torch.save(network.state_dict(), path)
    return name, network, path, NAMES[name]


@pytest.fixture(scope="module")
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    return Image.fromarray(pixels)


def first_layer(name, network, layer, image, preset, is_transforming):
    """torchvision's own path: its transform and its whole network, with a hook."""
    network.transform_input = is_transforming
    seen = []
    hook = network.get_submodule(layer).register_forward_hook(
        lambda module, args, output: seen.append(output)
    )
    with torch.inference_mode():
        network(preset(image)[None])
    hook.remove()
    network.transform_input = False
    return seen[0].flatten(1)


def features(backbone, image):
    pixels = torch.from_numpy(backbone.preprocessing.pixels(image).copy())
    with torch.inference_mode():
        return backbone.features(backbone.preprocessing.normalise(pixels[None]))


def close(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param("inception_v3", "given", marks=pytest.mark.slow),
        ("googlenet", "given"),
        ("googlenet", "assumed"),
        ("googlenet", "torchvision's own, given"),
    ],
)
def test_a_file_is_normalised_once(case_of, image, name, kind, monkeypatch):
    _, network, path, layer = case_of(name)
    entry = next(iter(models.get_model_weights(name)))
    overrides = {} if kind == "assumed" else PLAIN
    if kind.startswith("torchvision"):
        monkeypatch.setattr(torchvision_models, "is_fed_plainly", lambda *args: False)
    preset = entry.transforms(**overrides)
    wanted = first_layer(name, network, layer, image, preset, kind != "given")
    log = Log()
    options = {"weights": str(path), "overrides": overrides}
    backbone = open_backbone(name, layer=layer, reporter=log, **options)
    assert close(features(backbone, image), wanted)
    assert ("transform_input is off" in "\n".join(log.lines)) == (kind == "given")
    variant = ("transform_input=False",) if kind == "given" else ()
    assert backbone.variant == variant
    assert ("variant" in backbone.identity()["point"]) == (kind == "given")
    if not kind.startswith("torchvision"):
        _, by_reference, _ = second_reference(backbone, **options).run(image)
        assert close(by_reference[None], wanted)


def test_the_digest_of_the_file_tells_torchvisions_own_weights():
    entry = next(iter(models.get_model_weights("googlenet")))
    prefix = WeightsFile.at(entry.url).sha256_prefix
    for digest, is_plain in ((prefix + "0" * 56, False), ("0" * 64, True)):
        assert torchvision_models.is_fed_plainly("googlenet", digest, PLAIN) == is_plain
        assert not torchvision_models.is_fed_plainly("googlenet", digest, {})
        assert not torchvision_models.is_fed_plainly("resnet18", digest, PLAIN)


@pytest.mark.parametrize("is_transforming", [False, True])
@pytest.mark.parametrize("numbers", ["imagenet", "others"])
def test_a_function_of_ones_own_is_run_as_it_is_and_doubts_are_said(
    case_of, image, monkeypatch, capsys, is_transforming, numbers
):
    name, network, _, layer = case_of("googlenet")
    overrides = PLAIN if numbers == "others" else {}
    preset = next(iter(models.get_model_weights(name))).transforms(**overrides)
    wanted = first_layer(name, network, layer, image, preset, is_transforming)
    network.transform_input = is_transforming
    module = types.ModuleType("own_inception")
    module.make = lambda: (network, preset, layer)
    monkeypatch.setitem(sys.modules, "own_inception", module)
    backbone = open_backbone("own_inception:make", reporter=Reporter(quiet=True))
    assert close(features(backbone, image), wanted)
    said = capsys.readouterr().err
    assert ("transform_input" in said) == (is_transforming and numbers == "others")
    network.transform_input = False


def test_a_network_that_was_trained_on_it_is_rebuilt_with_it(image, tmp_path):
    name, path, layer = "googlenet", tmp_path / "mine.pth", "conv1.conv"
    network = models.get_model(name, init_weights=False, aux_logits=False)
    torch.save(network.state_dict(), path)
    options = {"weights": str(path), "overrides": {**PLAIN, "input_size": 96}}
    backbone = open_backbone(name, layer=layer, **options)
    top = get_top("gap").build(backbone.map_shape, 2, 0)
    record = TrainedRecord(
        class_names=("a", "b"),
        preprocessing=backbone.preprocessing,
        backbone=name,
        layer=layer,
        top="gap",
        variant=" ".join(backbone.variant),
    )
    save_trained(tmp_path / "net.safetensors", FineTuned(backbone.network, top), record)
    again = open_backbone(str(tmp_path / "net.safetensors"))
    assert close(features(again, image), features(backbone, image))
