"""Folding changes what a network costs, and nothing of what it gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featx.backbones import open_backbones
from featx.backbones.base import Backbone, BackboneGroup
from featx.engines.runtimes.eager import fold_batch_norms, with_low_weights
from featx.preprocess import Preprocessing
from featx.weights import Weights

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def images_for(group, n=3, seed=5):
    generator = torch.Generator().manual_seed(seed)
    side = group[0].input_size
    pixels = torch.randint(0, 256, (n, side, side, 3), generator=generator, dtype=torch.uint8)
    return group.preprocessing.normalise(pixels)


def lively(group):
    """Statistics that a batch normalisation has after training, so that it does something."""
    generator = torch.Generator().manual_seed(1)
    for module in group.network.modules():
        if isinstance(module, NORMS):
            module.running_mean.uniform_(-0.3, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.2, 0.2, generator=generator)
    return group


def count(group):
    return sum(isinstance(module, NORMS) for module in group.network.modules())


@torch.inference_mode()
def same(folded, group, tolerance=2e-5):
    images = images_for(group)
    for mine, wanted in zip(folded.features_many(images), group.features_many(images), strict=True):
        if (mine - wanted).abs().max() > tolerance * wanted.abs().max():
            return False
    return True


@pytest.mark.parametrize(
    ("name", "n_left"),
    [
        ("resnet18", 0),
        ("mobilenet_v2", 0),
        ("efficientnet_b0", 0),
        ("densenet121", 62),  # those that come before their convolution
        ("timm/resnet18", 0),
        ("timm/efficientnet_lite0", 0),
        ("timm/densenet121", 62),
    ],
)
def test_norms_behind_convolutions_are_gone(name, n_left):
    overrides = {"input_size": 64}
    group = lively(open_backbones(name, weights="random", overrides=overrides))
    before = count(group)
    folded = fold_batch_norms(group)
    assert count(folded) == n_left < before
    assert count(group) == before  # the network that was given is as it was
    assert same(folded, group)


def test_taps_in_the_middle_are_as_before():
    layers = ("relu", "layer1.0.conv1", "layer1.0.bn1", "layer2", "layer4")
    overrides = {"input_size": 64}
    group = lively(open_backbones("resnet18", layers=layers, weights="random", overrides=overrides))
    assert same(fold_batch_norms(group), group)


class Read(nn.Module):
    """A convolution whose output is normalised and read as well."""

    def __init__(self, is_shared):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.is_shared = is_shared

    def forward(self, images):
        once = self.conv(images)
        if self.is_shared:
            return (self.norm(self.conv(torch.relu(once))),)
        return (self.norm(once) + once,)


@pytest.mark.parametrize("is_shared", [True, False])
def test_what_is_read_twice_is_not_folded(is_shared):
    network = Read(is_shared).eval()
    preprocessing = Preprocessing(16, 16, "bilinear", (0.5,) * 3, (0.5,) * 3)
    member = Backbone(
        "read", "norm", True, "none", network, Weights("own", ""), preprocessing, (3, 16, 16)
    )
    group = lively(BackboneGroup((member,), network))
    folded = fold_batch_norms(group)
    assert count(folded) == 1
    assert same(folded, group, tolerance=0)


def test_nothing_to_fold_is_the_same_group():
    group = open_backbones("squeezenet1_1", weights="random", overrides={"input_size": 48})
    assert fold_batch_norms(group) is group


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18", "vit_b_32", "timm/convnext_atto"])
def test_low_weights_are_what_autocast_makes_bit_for_bit(name):
    overrides = {"input_size": 64}
    group = lively(open_backbones(name, weights="random", overrides=overrides))
    low = with_low_weights(group, torch.bfloat16)
    images = images_for(group).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        [mine], [wanted] = low.features_many(images), group.features_many(images)
    assert torch.equal(mine, wanted)
