"""Several feature points in one pass, and the pools of tokens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featx.backbones import BackboneGroup, open_backbone, open_backbones
from featx.backbones.graph_taps import GraphTaps
from featx.backbones.module_taps import ModuleTaps
from featx.backbones.pools import pool_features, pooled_shape
from featx.backbones.taps import Layout
from featx.errors import UsageError


class InPlace(nn.Module):
    """A ReLU that overwrites what was tapped before it, and a map with its channels last."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.mix = nn.Linear(4, 4)
        self.fc = nn.Linear(4, 2)

    def forward(self, images):
        last = self.mix(self.act(self.conv(images)).permute(0, 2, 3, 1))
        return self.fc(last.mean((1, 2)))


@pytest.mark.parametrize("make", [GraphTaps, lambda n, px: ModuleTaps(n, px, "act")])
@pytest.mark.parametrize("names", [["conv", "act"], ["act", "conv", "act"], ["mix", "conv"]])
def test_many_points_equal_the_single_cuts_bit_for_bit(make, names):
    torch.manual_seed(0)
    taps = make(InPlace().eval(), 8)
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        together = taps.cut_many(names)(images)
        assert isinstance(together, tuple)
        for name, output in zip(names, together, strict=True):
            assert torch.equal(output, taps.cut(name)(images))
            assert tuple(output.shape[1:]) == taps.find(name).shape
    assert taps.find("mix").shape == (4, 8, 8)


@pytest.mark.parametrize(
    ("name", "layers", "pools"),
    [
        ("resnet18", [None, "layer1.0.bn1", "layer2"], "avg"),
        ("vit_b_32", [None, "encoder", "encoder"], ["none", "avg", "avg+cls"]),
        ("efficientnet_lite0", ["blocks.2", None], ["max", "none"]),
        ("timm/resnet18", [None, "layer1", "pre_logits", "layer2.0.bn1", "global_pool"], "none"),
    ],
)
def test_a_group_equals_its_members_alone(name, layers, pools):
    if name in ("efficientnet_lite0", "timm/resnet18"):
        pytest.importorskip("timm")
    overrides = {} if name == "vit_b_32" else {"input_size": 64}
    pools = [pools] * len(layers) if isinstance(pools, str) else pools
    pools = ["none" if layer is None else pool for layer, pool in zip(layers, pools, strict=True)]
    group = open_backbones(name, layers=layers, pool=pools, weights="random", overrides=overrides)
    images = torch.randn(2, 3, group[0].input_size, group[0].input_size)
    with torch.inference_mode():
        together = group.features_many(images)
        for layer, pool, features, member in zip(layers, pools, together, group, strict=True):
            alone = open_backbone(
                name, layer=layer, pool=pool, weights="random", overrides=overrides
            )
            assert features.shape == (2, member.n_features)
            assert torch.equal(features, member.features(images))
            assert torch.equal(features, alone.features(images))
            assert alone.identity() == member.identity()
    assert len(group) == len(layers)


def test_a_group_holds_its_weights_once():
    group = open_backbones("resnet18", layers=["layer1", "layer4"], weights="random")
    here = {id(p) for p in group.network.parameters()}
    assert all(id(p) in here for member in group for p in member.network.parameters())


def test_the_same_point_twice_is_an_error():
    with pytest.raises(UsageError, match="asked for twice"):
        open_backbones("resnet18", layers=[None, "layer4"], weights="random")
    with pytest.raises(UsageError, match="2 pools were given for 1 layers"):
        open_backbones("resnet18", pool=["avg", "max"], weights="random")


def test_patch_means_leave_the_prefix_out():
    tokens = torch.randn(2, 7, 4)
    for n_prefix in (0, 1, 5):
        patches = tokens[:, n_prefix:]
        assert torch.equal(pool_features(tokens, "avg", n_prefix), patches.mean(1))
        assert torch.equal(pool_features(tokens, "max", n_prefix), patches.amax(1))
        both = pool_features(tokens, "avg+cls", n_prefix)
        assert torch.equal(both, torch.cat([patches.mean(1), tokens[:, 0]], 1))
    assert pooled_shape((7, 4), "avg+cls") == (8,)


def test_there_is_no_class_token_where_there_is_none():
    for pool in ("cls", "avg+cls"):
        with pytest.raises(UsageError, match="no class token: use none, avg or max"):
            pooled_shape((7, 4), pool, has_class_token=False)
        with pytest.raises(UsageError, match="use none, avg or max"):
            pooled_shape((4, 7, 7), pool)


def test_torchvisions_vit_averages_its_patches_only():
    backbone = open_backbone("vit_b_32", layer="encoder", pool="avg", weights="random")
    assert backbone.n_prefix_tokens == 1
    assert backbone.identity()["point"]["n_prefix_tokens"] == 1
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        tokens = backbone.network(images)
        assert tokens.shape == (1, 50, 768)
        assert torch.equal(backbone.features(images), tokens[:, 1:].mean(1))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 4, 4, 4)
        self.patches = nn.Identity()
        self.all = nn.Identity()
        self.fc = nn.Linear(4, 2)

    def forward(self, images):
        patches = self.patches(self.embed(images).flatten(2).transpose(1, 2))
        tokens = self.all(torch.cat([patches[:, :1] * 0, patches], 1))
        return self.fc(tokens[:, 0])


def test_only_whole_sequences_have_the_prefix():
    taps = ModuleTaps(Tokens().eval(), 8, "all", Layout(n_tokens=5, n_prefix=1, has_class=True))
    assert (taps.find("all").n_prefix_tokens, taps.find("all").has_class_token) == (1, True)
    assert (taps.find("patches").n_prefix_tokens, taps.find("patches").has_class_token) == (
        0,
        False,
    )


def test_a_group_of_one_is_its_member():
    backbone = open_backbone("squeezenet1_1", weights="random", overrides={"input_size": 64})
    group = BackboneGroup.of(backbone)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        (features,) = group.features_many(images)
        assert torch.equal(features, backbone.features(images))
    assert list(group) == [backbone]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [None, torch.float16])
def test_maps_with_their_channels_last_are_flattened_as_any_others(dtype, stored):
    from featx.backbones.pools import flatten_features

    maps = torch.randn((3, 40, 5, 7), generator=torch.Generator().manual_seed(0)).to(dtype)
    turned = maps.contiguous(memory_format=torch.channels_last)
    assert not turned.is_contiguous()
    wanted = maps.flatten(1) if stored is None else maps.flatten(1).to(stored)
    mine = flatten_features(turned, stored)
    assert mine.is_contiguous()
    assert torch.equal(mine, wanted)
