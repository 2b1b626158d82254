"""What is frozen stays as it is to the last bit while the rest is trained, in every network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrizations

from featx.backbones import open_backbone
from featx.networks import FineTuned, count, freeze, get_top
from featx.networks.freezing import keep_in_evaluation_mode


def fine_tuned(name: str, px: int = 64) -> FineTuned:
    backbone = open_backbone(name, weights="random:1", overrides={"input_size": px})
    return FineTuned(backbone.network, get_top("linear").build(backbone.map_shape, 5, seed=0))


def changed_by_a_step(network: nn.Module, px: int = 64) -> set[str]:
    """Train on one batch; give the names of what is no longer the same."""
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.train()
    network(torch.randn(4, 3, px, px)).logsumexp(1).sum().backward()
    torch.optim.SGD([p for p in network.parameters() if p.grad is not None], lr=0.1).step()
    after = network.state_dict()
    return {key for key in before if not torch.equal(before[key], after[key])}


# The first three are timm's: its batch normalisation has an activation inside.
NAMES = ["efficientnet_lite0", "timm/mobilenetv3_small_050", "timm/efficientformerv2_s0"]
NAMES += ["mnasnet0_5", "googlenet", "swin_t"]


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_body_does_not_move(name: str) -> None:
    network = fine_tuned(name)
    frozen = freeze(network, "all")
    assert {key.partition(".")[0] for key in changed_by_a_step(network)} == {"top"}
    assert frozen.n_frozen == frozen.n_layers == count(network.body).n_layers


@pytest.mark.parametrize("name", NAMES)
def test_normalisation_of_frozen_layers_keeps_its_statistics_and_others_do_not(name: str) -> None:
    network = fine_tuned(name)
    freeze(network, "half")
    norms = {
        key: module.weight.requires_grad
        for key, module in network.named_modules()
        if isinstance(module, _NormBase) and module.affine
    }
    changed = changed_by_a_step(network)
    assert {key: f"{key}.running_mean" in changed for key in norms} == norms
    assert name == "swin_t" or set(norms.values()) == {True, False}


class Block(nn.Module):
    """Drops and normalises by itself, as people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = parametrizations.spectral_norm(nn.Conv2d(3, 6, 3))
        self.norm = nn.BatchNorm2d(6, affine=False)
        self.drop = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
        self.conv2 = nn.Conv2d(6, 6, 3)
        self.register_buffer("running_mean", torch.zeros(6))
        self.register_buffer("running_var", torch.ones(6))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.conv2(self.drop(self.norm(self.conv(images))))
        mean, variance = self.running_mean, self.running_var
        maps = functional.batch_norm(maps, mean, variance, training=self.training)
        return functional.dropout(maps.mean((2, 3)), 0.5, self.training)


def own_body() -> nn.Module:
    return nn.Sequential(Block(), nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False))


def own_whole() -> nn.Module:
    return nn.Sequential(Block(), nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 5))


@pytest.mark.parametrize(
    "make", [lambda: FineTuned(own_body(), nn.Linear(8, 5)), own_whole], ids=["top", "whole"]
)
def test_parts_of_ones_own_that_drop_and_normalise_are_still(make: Callable[[], nn.Module]) -> None:
    network = make()
    frozen = freeze(network, "all")
    below = network.body if isinstance(network, FineTuned) else network[:3]
    network.train()
    keep_in_evaluation_mode(frozen.modules)
    images = torch.randn(16, 3, 8, 8)
    first = below(images)
    assert torch.equal(first, below(images))
    assert torch.equal(first, below.eval()(images))
    # The convolutions, the dense layer and the normalisations that have statistics alone.
    assert (frozen.n_layers, frozen.n_frozen) == (5, 5)


def test_dropout_behind_the_last_frozen_layer_still_drops() -> None:
    block = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4), nn.Dropout(0.5))
    network = nn.Sequential(block, nn.Linear(4, 2))
    frozen = freeze(network, "1")
    network.train()
    keep_in_evaluation_mode(frozen.modules)
    assert [block[0].training, block[2].training] == [False, True]
    assert [block[1].weight.requires_grad, network[1].weight.requires_grad] == [False, True]
    freeze(network, "none")
    network.train()
    assert all(module.training for module in network.modules())
