from __future__ import annotations

import pytest
import torch
from torch import nn

from featx.backbones.fake import without_values
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
        with pytest.raises(
            BackboneError, match="does not run at an input size of 2 pixels.*works is 6"
        ):
            make()


def test_learning_the_shapes_leaves_no_hook_behind(network):
    ModuleTaps(network, 12, "late")
    assert not any(module._forward_hooks for module in network.modules())


class Remembers(nn.Module):
    """Keeps tensors of its forward pass, in an attribute, a buffer and a dictionary."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 2)
        self.register_buffer("grid", torch.zeros(1))
        self.last = None
        self.by_device = {}

    def forward(self, images):
        self.last = images.mean()
        self.grid = self.grid + self.last
        mapped = self.conv(images)
        mapped = mapped + self.by_device.setdefault("cpu", mapped.mean())
        return self.fc(mapped.mean((2, 3)))


@pytest.mark.parametrize("px", [8, 2])
def test_learning_the_shapes_leaves_nothing_in_the_network(px):
    network = Remembers().eval()
    parameters = dict(network.named_parameters())
    try:
        ModuleTaps(network, px, "conv")
    except BackboneError:
        assert px == 2
    assert network.last is None
    assert network.by_device == {}
    assert type(network.grid) is torch.Tensor
    assert all(parameters[name] is value for name, value in network.named_parameters())


def test_where_no_size_works_that_of_the_weights_is_advised():
    with pytest.raises(BackboneError, match="Leave --input-size out"):
        ModuleTaps(nn.Sequential(nn.Linear(2, 2)), 8, "0")


class Tupled(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.pair = Pair()

    def forward(self, images):
        first, second = self.pair(self.stem(images))
        return {"logits": first, "other": second}


class Pair(nn.Module):
    def forward(self, x):
        return x, x.sum()


def test_a_network_that_returns_a_dictionary_is_tapped_inside():
    taps = ModuleTaps(Tupled().eval(), 8, "stem")
    assert [point.name for point in taps.points] == ["stem"]
    with pytest.raises(UsageError, match="'pair' gives tuple, not a tensor.*inside or behind"):
        taps.find("pair")
    with pytest.raises(UsageError, match="choose one with --layer") as caught:
        ModuleTaps(Tupled().eval(), 8, None).find(None)
    assert "stem" in caught.value.__notes__[0]


def test_windows_and_constants_are_no_points():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.cut = nn.Unflatten(2, (2, 4))
            self.all = nn.Identity()
            self.fc = nn.Linear(3, 2)

        def forward(self, images):
            windows = self.all(images.reshape(-1, 3, 4, 4))
            return self.fc(windows.mean((2, 3)))

    assert [p.name for p in ModuleTaps(Windows().eval(), 8, None).points] == []


class Uncopied(Small):
    """Refuses to be copied."""

    def __deepcopy__(self, memo):
        raise TypeError("no copies")


@pytest.mark.parametrize("kind", [Uncopied, Small])
def test_shapes_are_learned_with_and_without_a_copy(kind):
    taps = GraphTaps(kind().eval(), 12)
    assert taps.find(None).shape == (6, 4, 4)
    with pytest.raises(BackboneError, match="The least size that works is 6"):
        ModuleTaps(kind().eval(), 2, "late")


def test_a_network_without_values_says_why_a_size_fails():
    network = without_values(lambda: Small().eval())
    assert GraphTaps(network, 12).default == "relu"
    with pytest.raises(BackboneError, match="Kernel size can't be greater.*works is 6"):
        GraphTaps(network, 2)
