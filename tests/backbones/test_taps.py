from __future__ import annotations

import pytest
import torch
from torch import nn

from featx.backbones.graph_taps import GraphTaps
from featx.backbones.module_taps import ModuleTaps
from featx.errors import BackboneError, UsageError


class Small(nn.Module):
    """Convolutions, a functional ReLU, a global pooling, a classifier."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2))
        self.gate = nn.AdaptiveAvgPool2d(1)
        self.late = nn.Conv2d(4, 6, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout()
        self.fc = nn.Linear(6, 10)
        self.forbidden = False

    def forward(self, images):
        inner = self.body(images)
        inner = inner * self.gate(inner)
        mapped = nn.functional.relu(self.late(inner))
        return self.fc(self.drop(torch.flatten(self.pool(mapped), 1)))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Small().eval()


def test_the_default_is_what_enters_the_last_global_pooling(network):
    taps = GraphTaps(network, 12)
    assert taps.default == "relu"
    assert taps.find(None).shape == (6, 4, 4)


def test_a_tap_gives_what_a_hook_on_the_whole_network_sees(network):
    images = torch.randn(2, 3, 12, 12)
    seen = {}
    hooks = [
        network.late.register_forward_hook(lambda m, a, output: seen.update(late=output)),
        network.body.register_forward_hook(lambda m, a, output: seen.update(body=output)),
    ]
    with torch.no_grad():
        network(images)
        for hook in hooks:
            hook.remove()
        for taps in (GraphTaps(network, 12), ModuleTaps(network, 12, "late")):
            for name, output in list(seen.items()):
                assert torch.equal(taps.cut(taps.find(name).name)(images), output)
        assert torch.equal(GraphTaps(network, 12).cut("relu")(images), seen["late"].relu())


def test_nothing_behind_the_tap_is_kept(network):
    cut = GraphTaps(network, 12).cut("body")
    assert [name for name, _ in cut.named_parameters()] == ["body.0.weight", "body.0.bias"]


def test_an_inner_path_and_its_module_are_one_layer(network):
    taps = GraphTaps(network, 12, aliases={"stem": "body.1"})
    assert {taps.find(name).name for name in ("body", "body.1", "stem")} == {"body"}
    assert taps.find("body.0").shape == (4, 12, 12)


def test_a_layer_that_does_not_exist_suggests_and_lists(network):
    with pytest.raises(UsageError, match="did you mean late") as caught:
        GraphTaps(network, 12).find("lat")
    assert "body.0, body" in caught.value.__notes__[0]


def test_an_input_too_small_for_the_network_is_named(network):
    for make in (lambda: GraphTaps(network, 2), lambda: ModuleTaps(network, 2, "late")):
        with pytest.raises(BackboneError, match="does not run at an input size of 2 pixels"):
            make()


def test_learning_the_shapes_leaves_no_hook_behind(network):
    ModuleTaps(network, 12, "late")
    assert not any(module._forward_hooks for module in network.modules())
