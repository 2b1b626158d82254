"""Networks of somebody's own: what a trace misses, and what is no function of one image."""

from __future__ import annotations

import copy
import random
import sys
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from featx.backbones import list_layers, open_backbone
from featx.errors import BackboneError, UsageError
from featx.preprocess import Preprocessing
from featx.reference import open_reference
from featx.reference.networks import tap

PREPROCESSING = Preprocessing(24, 24, "bilinear", (0.5,) * 3, (0.25,) * 3, "mine")


class Own(nn.Module):
    """A small network with one line of its own."""

    def __init__(self, line, norm=None):
        super().__init__()
        self.line = line
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), norm or nn.BatchNorm2d(8), nn.ReLU())
        self.mid = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 2)
        self.n_calls = 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images):
        mapped = self.line(self, self.body(images))
        return self.fc(torch.flatten(self.pool(self.mid(mapped)), 1))


def counted(network, x):
    network.n_calls += 1
    return x * network.n_calls


def drifting(network, x):
    network.seen += 1
    return x * (1 + network.seen)


def flipped(network, x):
    return x.flip(3) if random.random() < 0.01 else x


def in_place(write):
    """A step whose output is not used, for it writes into its input."""

    def line(network, x):
        x = x - 0.1
        write(x)
        return x

    return line


def halved(network, x):
    while x.abs().max() > 0.1:
        x = x / 2
    return x


# What the network does, beside what torch.fx makes of it.
MISSED = {
    "isinstance": lambda n, x: (x - 0.3) / 0.2 if isinstance(x, torch.Tensor) else x,
    "is_tensor": lambda n, x: x * 2 if torch.is_tensor(x) else x,
    "kind": lambda n, x: x * 2 if type(x) is torch.Tensor else x,
    "gradients": lambda n, x: x if torch.is_grad_enabled() else x * 2,
    "inference": lambda n, x: x * 2 if torch.is_inference_mode_enabled() else x,
    "method in place": in_place(lambda x: x.mul_(-2)),
    "function in place": in_place(lambda x: F.relu(x, inplace=True)),
    "part in place": in_place(lambda x: x[:, :4].add_(1)),
}
# Followed by a trace, or not traced at all.
RIGHT = {
    "nothing": lambda n, x: x,
    "stopped dropout": lambda n, x: F.dropout(x, 0.5, training=n.training),
    "size": lambda n, x: x * 2 if x.shape[-1] > 8 else x,
    "values": lambda n, x: x * 2 if x.mean() > 1e3 else x,
}
RANDOM = {
    "dropout": lambda n, x: F.dropout(x, 0.5),
    "noise": lambda n, x: x + torch.randn(8, 22, 22),
    "a little noise": lambda n, x: x + 1e-5 * torch.randn_like(x),
    "python": lambda n, x: x * random.random(),
    "rarely": flipped,
    "module state": counted,
    "buffer": drifting,
}
BATCHED = {
    "mean": lambda n, x: x - x.mean(0),
    "scale": lambda n, x: x / x.abs().max(),
    "loop": halved,
    "first": lambda n, x: x + x[:1],
    "order": lambda n, x: x[x.flatten(1).sum(1).argsort()],
    "sign": lambda n, x: -x if x.mean() > 0.5 else x,
}


@pytest.fixture
def backbone_of(monkeypatch):
    """Make a backbone of a network, as a function of the user's gives it."""

    def make(network, **options):
        module = types.ModuleType("own_networks")
        module.make = lambda: (network, PREPROCESSING)
        monkeypatch.setitem(sys.modules, "own_networks", module)
        return open_backbone("own_networks:make", **options)

    torch.manual_seed(0)
    return make


def zeroed(network):
    """Nothing is seen in the output of a network whose classifier is zero."""
    nn.init.zeros_(network.fc.weight)
    nn.init.zeros_(network.fc.bias)
    return network


@pytest.mark.parametrize("head", [lambda network: network, zeroed], ids=["plain", "zeroed"])
@pytest.mark.parametrize("name", MISSED)
def test_what_a_trace_misses_is_tapped_in_the_network_itself(backbone_of, name, head):
    network = head(Own(MISSED[name])).eval()
    backbone = backbone_of(network)
    assert (backbone.layer, backbone.variant) == ("mid", ("hooks",))
    assert backbone.identity()["point"]["variant"] == ["hooks"]
    images = torch.randn(2, 3, 24, 24)
    with torch.inference_mode():
        wanted = network.mid(MISSED[name](network, network.body(images)))
        assert torch.equal(backbone.network(images), wanted)


@pytest.mark.parametrize("name", RIGHT)
def test_what_a_trace_follows_stays_as_it_was(backbone_of, name):
    network = Own(RIGHT[name]).eval()
    layer = None if name in ("nothing", "stopped dropout") else "mid"
    backbone = backbone_of(network, layer=layer)
    assert "variant" not in backbone.identity()["point"]
    images = torch.randn(1, 3, 24, 24)
    with torch.inference_mode():
        wanted = network.mid(RIGHT[name](network, network.body(images)))
        assert torch.equal(backbone.network(images), wanted)


@pytest.mark.parametrize("layer", ["mid", "pool"])
@pytest.mark.parametrize("name", RANDOM)
def test_features_by_chance_are_refused(backbone_of, name, layer):
    with pytest.raises(BackboneError, match="(time|numbers) for the same image.*F.dropo"):
        backbone_of(Own(RANDOM[name]), layer=layer)
    assert backbone_of(Own(RANDOM[name]), layer="body").layer == "body"


@pytest.mark.parametrize(
    ("network", "layer"),
    [
        *((lambda line=line: Own(line), "mid") for line in BATCHED.values()),
        (lambda: Own(RIGHT["nothing"], nn.BatchNorm2d(8, track_running_stats=False)), None),
        (lambda: nn.Sequential(Own(RIGHT["nothing"]).body, nn.AdaptiveAvgPool2d(1), Bare()), "2"),
    ],
    ids=[*BATCHED, "batch norm", "squeeze"],
)
def test_features_by_the_batch_are_refused(backbone_of, network, layer):
    with pytest.raises(BackboneError, match="depend on the other images.*track_running_stats=True"):
        backbone_of(network(), layer=layer)


class Bare(nn.Module):
    def forward(self, pooled):
        return pooled.squeeze()


def test_a_network_that_stays_in_training_is_refused(backbone_of):
    class Stubborn(Own):
        def train(self, mode=True):
            return super().train(True)

    with pytest.raises(BackboneError, match="depend on the other images"):
        backbone_of(Stubborn(RIGHT["values"]), layer="mid")
    network = Stubborn(RIGHT["nothing"])
    with pytest.raises(BackboneError, match="depend on the other images"):
        backbone_of(network)
    assert torch.equal(network.body[1].running_var, torch.ones(8))


def test_trying_a_network_out_changes_nothing(backbone_of):
    network = Own(drifting)
    state, before = torch.random.get_rng_state(), copy.deepcopy(network.state_dict())
    backbone_of(network, layer="body")
    assert network.seen == 0
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    assert not any(module._forward_hooks for module in network.modules())


def test_what_a_trace_writes_into_a_network_is_taken_back(backbone_of):
    class Keeping(Own):
        def forward(self, images):
            self.body[1].train()
            self.kept = [*getattr(self, "kept", []), images.mean()]
            return super().forward(images)

    network = Keeping(RIGHT["nothing"])
    with pytest.raises(BackboneError, match="depend on the other images"):
        backbone_of(network)
    assert (network.body[1].training, hasattr(network, "kept")) == (False, False)


def test_input_that_is_changed_in_place_is_no_chance(backbone_of):
    class Scaling(Own):
        def forward(self, images):
            return super().forward(images.sub_(0.3).div_(0.2))

    network = Scaling(RIGHT["nothing"]).eval()
    images = torch.randn(1, 3, 24, 24)
    with torch.inference_mode():
        wanted = network.mid(network.body((images - 0.3) / 0.2))
        assert torch.equal(backbone_of(network).network(images.clone()), wanted)


@pytest.mark.parametrize("is_whole", [True, False])
def test_halves_like_those_of_timm_must_be_the_whole_pass(backbone_of, is_whole):
    class Halved(Own):
        def forward_features(self, images):
            return self.mid(self.body(images))

        def forward_head(self, mapped, pre_logits=False):
            pooled = torch.flatten(self.pool(mapped), 1)
            return pooled if pre_logits else self.fc(pooled)

        def forward(self, images):
            images = images if is_whole else (images - 0.3) / 0.2
            return self.forward_head(self.forward_features(images))

    backbone = backbone_of(Halved(None))
    assert backbone.layer == ("forward_features" if is_whole else "mid")


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.jit.freeze(torch.jit.script(Own(None).body.eval())),
        lambda: torch.ao.quantization.quantize_dynamic(Own(None), {nn.Linear}),
    ],
    ids=["frozen", "quantised"],
)
@pytest.mark.filterwarnings("ignore")  # torch.jit and torch.ao are deprecated
def test_networks_that_cannot_be_tapped_are_refused(backbone_of, make):
    with pytest.raises(BackboneError, match="return"):
        backbone_of(make())


def test_features_that_are_all_zero_are_no_reason(backbone_of):
    network = Own(RIGHT["nothing"])
    nn.init.constant_(network.mid[0].bias, -1e6)
    assert backbone_of(network).layer == "mid"


def test_a_default_that_only_the_trace_has_must_be_named(backbone_of):
    class Functional(Own):
        def forward(self, images):
            mapped = F.relu(MISSED["isinstance"](self, self.body(images)))
            return self.fc(torch.flatten(self.pool(mapped), 1))

    with pytest.raises(UsageError, match="choose one with --layer"):
        backbone_of(Functional(None))
    assert backbone_of(Functional(None), layer="body").n_features == 8 * 22 * 22
    points, default = list_layers("own_networks:make")
    assert ("pool" in [point.name for point in points], default) == (True, None)


@pytest.mark.parametrize("layer", ["mid", "flatten", "mid.1"])
def test_the_reference_runs_the_network_itself(backbone_of, layer):
    network = Own(MISSED["isinstance"]).eval()
    backbone_of(network)
    reference = open_reference(backbone_of(network), allow_code=("own_networks:make",))
    images = torch.randn(1, 3, 24, 24)
    with torch.inference_mode():
        mapped = network.mid(MISSED["isinstance"](network, network.body(images)))
        wanted = {"flatten": network.pool(mapped).flatten(1)}.get(layer, mapped)
        assert torch.equal(tap(reference.network, layer, images).features, wanted)


@pytest.mark.parametrize(
    "make", [models.squeezenet1_1, models.mnasnet0_5, models.shufflenet_v2_x0_5]
)
def test_networks_of_torchvision_are_traced_truly(backbone_of, make):
    assert backbone_of(make()).variant == ()
