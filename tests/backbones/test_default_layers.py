"""The default feature point of networks that were cut off already, and layers called in a loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from featx.backbones.fake import without_values
from featx.backbones.graph_taps import GraphTaps
from featx.backbones.module_taps import ModuleTaps
from featx.errors import BackboneError
from featx.reference.networks import tap


def without(network, head):
    """Put nothing in the place of a classifier."""
    parent, _, name = head.rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())
    return network


def until(network, end):
    """Keep the children before one."""
    return nn.Sequential(*list(network.children())[:end])


def plain(*behind):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), *behind)


class Squeezed(nn.Module):
    """Ends in a squeeze and excitation of linear layers, and in both poolings of its map."""

    def __init__(self, is_pooled):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.gate = nn.Sequential(nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 8), nn.Sigmoid())
        self.last = nn.Identity()
        self.is_pooled = is_pooled

    def forward(self, images):
        mapped = self.conv(images)
        weights = self.gate(mapped.mean((2, 3)))
        mapped = self.last(mapped * weights[:, :, None, None])
        if not self.is_pooled:
            return mapped
        return torch.cat([mapped.mean((2, 3)), mapped.amax((2, 3))], 1)


class Several(nn.Module):
    """Returns its map beside the pooled one."""

    def __init__(self):
        super().__init__()
        self.body = plain()

    def forward(self, images):
        mapped = self.body(images)
        return {"map": mapped, "pooled": mapped.mean((2, 3))}


m = models
CUT = {
    "vgg11, classifier": (lambda: without(m.vgg11(), "classifier"), "features", (512, 2, 2)),
    "vgg11, last layer": (lambda: without(m.vgg11(), "classifier.6"), "features", (512, 2, 2)),
    "vgg11_bn": (lambda: without(m.vgg11_bn(), "classifier"), "features", (512, 2, 2)),
    "vgg11.features": (lambda: m.vgg11().features, "20", (512, 2, 2)),
    "vgg11, pooled": (lambda: until(m.vgg11(), -1), "0", (512, 2, 2)),
    "alexnet": (lambda: without(m.alexnet(), "classifier"), "features", (256, 1, 1)),
    "alexnet.features": (lambda: m.alexnet().features, "12", (256, 1, 1)),
    "squeezenet.features": (lambda: m.squeezenet1_1().features, "12", (512, 3, 3)),
    "squeezenet": (lambda: without(m.squeezenet1_1(), "classifier"), "features", (512, 3, 3)),
    "squeezenet, pooled": (
        lambda: nn.Sequential(m.squeezenet1_1().features, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "0",
        (512, 3, 3),
    ),
    "resnet18": (lambda: without(m.resnet18(), "fc"), "layer4", (512, 2, 2)),
    "resnet50, pooled": (lambda: until(m.resnet50(), -1), "7", (2048, 2, 2)),
    "resnet50, map": (lambda: until(m.resnet50(), -2), "7", (2048, 2, 2)),
    "densenet121": (lambda: without(m.densenet121(), "classifier"), "relu", (1024, 2, 2)),
    "densenet121.features": (lambda: m.densenet121().features, "norm5", (1024, 2, 2)),
    "mobilenet_v2.features": (lambda: m.mobilenet_v2().features, "18", (1280, 2, 2)),
    "mobilenet_v3_small": (
        lambda: without(m.mobilenet_v3_small(), "classifier"),
        "features",
        (576, 2, 2),
    ),
    "mobilenet_v3_small.features": (lambda: m.mobilenet_v3_small().features, "12", (576, 2, 2)),
    # Its last block has a squeeze and excitation.
    "mobilenet_v3_small, blocks": (
        lambda: m.mobilenet_v3_small().features[:-1],
        "11",
        (96, 2, 2),
    ),
    "efficientnet_b0": (
        lambda: without(m.efficientnet_b0(), "classifier"),
        "features",
        (1280, 2, 2),
    ),
    "efficientnet_b0.features": (lambda: m.efficientnet_b0().features, "8", (1280, 2, 2)),
    "regnet_y_400mf": (lambda: without(m.regnet_y_400mf(), "fc"), "trunk_output", (440, 2, 2)),
    "regnet_y_400mf, map": (lambda: until(m.regnet_y_400mf(), -2), "1", (440, 2, 2)),
    "shufflenet": (lambda: without(m.shufflenet_v2_x0_5(), "fc"), "conv5", (1024, 2, 2)),
    "googlenet": (
        lambda: without(m.googlenet(init_weights=False, aux_logits=False), "fc"),
        "inception5b",
        (1024, 2, 2),
    ),
    "convnext_tiny": (lambda: without(m.convnext_tiny(), "classifier"), "features", (768, 2, 2)),
    "convnext_tiny, last layer": (
        lambda: without(m.convnext_tiny(), "classifier.2"),
        "features",
        (768, 2, 2),
    ),
    "convnext_tiny.features": (lambda: m.convnext_tiny().features, "7", (768, 2, 2)),
    "swin_t": (lambda: without(m.swin_t(), "head"), "permute", (768, 2, 2)),
    "vit_b_32": (lambda: without(m.vit_b_32(image_size=64), "heads"), "heads", (768,)),
    "plain": (plain, "3", (6, 60, 60)),
    "plain, pooled": (lambda: plain(nn.AdaptiveAvgPool2d(1), nn.Flatten()), "3", (6, 60, 60)),
    "plain, projected": (
        lambda: plain(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)),
        "3",
        (6, 60, 60),
    ),
    "a map of scores": (lambda: plain(nn.Conv2d(6, 2, 1)), "4", (2, 60, 60)),
    "scores, pooled": (
        lambda: plain(nn.Conv2d(6, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "3",
        (6, 60, 60),
    ),
    "squeezed": (lambda: Squeezed(False), "last", (8, 62, 62)),
    "squeezed, pooled twice": (lambda: Squeezed(True), "last", (8, 62, 62)),
    "several": (Several, "body", (6, 60, 60)),
}


@pytest.mark.parametrize("name", CUT)
def test_a_network_cut_off_already_gives_its_last_map(name):
    make, layer, shape = CUT[name]
    point = GraphTaps(without_values(make).eval(), 64).find(None)
    assert (point.name, point.shape) == (layer, shape)


class Loops(nn.Module):
    """Calls a block, and an activation, three times."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 2)

    def forward(self, images):
        mapped = self.stem(images)
        for _ in range(3):
            mapped = self.act(self.block(mapped))
        return self.fc(mapped.mean((2, 3)))


@pytest.mark.parametrize("name", ["block", "block_1", "block_2", "block.0_1", "act", "act_2"])
def test_a_layer_of_a_loop_is_the_same_call_in_every_way_of_tapping(name):
    torch.manual_seed(0)
    network = Loops().eval()
    images = torch.randn(2, 3, 8, 8)
    seen = []
    path, _, call = name.partition("_")
    hook = network.get_submodule(path).register_forward_hook(
        lambda module, args, output: seen.append(output.clone())
    )
    with torch.no_grad():
        network(images)
        hook.remove()
        wanted = seen[int(call or 0)]
        for taps in (GraphTaps(network, 8), ModuleTaps(network, 8, None)):
            assert torch.equal(taps.cut(taps.find(name).name)(images), wanted)
        assert torch.equal(tap(network, name, images).features, wanted)
    assert GraphTaps(network, 8).default == "act_2"


def test_a_name_that_meant_the_last_call_once_has_another_identity():
    traced = {point.name: point.variant for point in GraphTaps(Loops().eval(), 8).points}
    assert {n for n, variant in traced.items() if variant} == {"block"}
    assert traced["block"] == "first call"


def small_densenet():
    return models.DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=3)


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (small_densenet, ["relu", "features.denseblock1.denselayer2.cat", "flatten", "classifier"]),
        (m.shufflenet_v2_x0_5, ["mean", "stage2.1.view_1", "stage2.0.cat"]),
        (m.resnet18, ["layer1.0.add", "layer1.0.relu_1", "layer4"]),
    ],
)
def test_the_reference_finds_functions_without_a_trace(make, layers):
    torch.manual_seed(0)
    network = make().eval()
    taps = GraphTaps(network, 64)
    images = torch.randn(1, 3, 64, 64)
    for layer in layers:
        with torch.inference_mode():
            wanted = taps.cut(taps.find(layer).name)(images)
            assert torch.equal(tap(network, layer, images).features, wanted)
    with pytest.raises(BackboneError, match="calls no dropout"):
        tap(network, "dropout", images)
