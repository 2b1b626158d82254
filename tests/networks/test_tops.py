from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from featx.backbones import open_backbone
from featx.errors import UsageError
from featx.networks import FineTuned, count, freeze, get_network, get_top


def kinds(network: nn.Module) -> list[str]:
    return [type(m).__name__ for m in network.modules() if not list(m.children())]


def widths(network: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in network.modules() if isinstance(m, nn.Linear)]


def test_top_of_klimack_and_recio() -> None:
    top = get_top("flatten(hidden=512,256 dropout=0.2,0)").build((512, 7, 7), 10, seed=0)
    assert kinds(top) == ["Flatten", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Linear"]
    assert widths(top) == [(25_088, 512), (512, 256), (256, 10)]


def test_top_of_nellangara() -> None:
    top = get_top("gap(hidden=400,256,256 dropout=0,0,0.2 batch_norm=input)")
    built = top.build((256, 4, 4), 10, seed=0)
    assert kinds(built) == [
        *["AveragePool", "BatchNorm1d"],
        *["Linear", "ReLU"] * 3,
        *["Dropout", "Linear"],
    ]
    assert widths(built) == [(256, 400), (400, 256), (256, 256), (256, 10)]


def test_top_of_cristian() -> None:
    top = get_top("flatten(hidden=256,128,64 dropout=0.5 batch_norm=before)")
    built = top.build((2048, 7, 7), 10, seed=0)
    assert kinds(built) == [
        "Flatten",
        *["BatchNorm1d", "Linear", "ReLU", "Dropout"] * 3,
        "Linear",
    ]
    assert [m.p for m in built.modules() if isinstance(m, nn.Dropout)] == [0.5] * 3


def test_linear_top_is_the_end_of_resnet18() -> None:
    whole = models.get_model("resnet18", weights=None, num_classes=10).eval()
    top = get_top("linear").build((512, 2, 2), 10, seed=0)
    top[-1].load_state_dict(whole.fc.state_dict())
    image = torch.randn(2, 3, 64, 64)
    maps = nn.Sequential(*list(whole.children())[:-2]).eval()
    torch.testing.assert_close(top(maps(image)), whole(image))


def test_linear_top_normalises_features_that_are_not() -> None:
    top = get_top("linear(batch_norm=input dropout=0.2)").build((512, 3, 3), 10, seed=0)
    assert kinds(top) == ["AveragePool", "BatchNorm1d", "Dropout", "Linear"]
    assert count(top).n_parameters == 2 * 512 + 512 * 10 + 10
    assert count(top).n_statistics == 2 * 512
    maps = 45 * torch.randn(64, 512, 3, 3) + 13
    assert top[1](top[0](maps)).std().item() == pytest.approx(1, abs=0.01)
    assert get_top("linear(batch_norm=none)").text == "linear"
    with pytest.raises(UsageError, match="batch_norm"):
        get_top("linear(batch_norm=after)")


def test_tops_take_vectors_and_tokens() -> None:
    assert get_top("linear").build((384,), 3, 0)(torch.randn(2, 384)).shape == (2, 3)
    assert get_top("gap").build((5, 384), 3, 0)(torch.randn(2, 5, 384)).shape == (2, 3)
    assert widths(get_top("flatten(hidden=8)").build((5, 4), 3, 0)) == [(20, 8), (8, 3)]


def test_texts_of_tops() -> None:
    text = "gap(hidden=400,256,256 dropout=0.2 batch_norm=after activation=gelu)"
    assert get_top(get_top(text).text) == get_top(text)
    assert get_top("flatten(hidden=512,256)").text == "flatten"
    with pytest.raises(UsageError, match="did you mean flatten"):
        get_top("flaten")
    with pytest.raises(UsageError, match="2 numbers for 3 hidden layers"):
        get_top("flatten(hidden=3,2,1 dropout=0.1,0.2)")
    with pytest.raises(UsageError, match="did you mean hidden"):
        get_top("gap(hiden=3)")


def fine_tuned(name: str, top: str = "linear", px: int = 64) -> FineTuned:
    backbone = open_backbone(name, weights="random", overrides={"input_size": px})
    return FineTuned(backbone.network, get_top(top).build(backbone.map_shape, 5, seed=0))


def test_half_of_vgg16_is_what_keras_froze() -> None:
    network = fine_tuned("vgg16", px=32)
    frozen = freeze(network, "half")
    # Of the 19 layers of Keras' VGG16 the first 9: input, 2 + 2 convolutions and their
    # poolings, 2 more convolutions.
    assert (frozen.n_layers, frozen.n_frozen) == (13, 6)
    convolutions = [m for m in network.body.modules() if isinstance(m, nn.Conv2d)]
    assert [c.weight.requires_grad for c in convolutions] == [False] * 6 + [True] * 7
    still = sum(p.numel() for c in convolutions[:6] for p in c.parameters())
    assert frozen.n_trainable == frozen.n_parameters - still == count(network).n_trainable
    assert all(p.requires_grad for p in network.top.parameters())


@pytest.mark.parametrize("text", ["none", "half", "all", "5", "layer2"])
def test_frozen_parts_do_not_change_and_others_do(text: str) -> None:
    network = fine_tuned("resnet18")
    frozen = freeze(network, text)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network.train()
    network(torch.randn(4, 3, 64, 64)).logsumexp(1).sum().backward()
    optimizer.step()
    after = network.state_dict()
    changed = {key.rpartition(".")[0] for key in before if not torch.equal(before[key], after[key])}
    layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    assert set(layers[: frozen.n_frozen]).isdisjoint(changed)
    assert set(layers[frozen.n_frozen :]) | {"top.1"} == changed
    # Up to layer2: conv1, bn1, 8 in layer1 and 10 in layer2.
    n_expected = {"none": 0, "half": 20, "all": 40, "5": 5, "layer2": 20}
    assert (frozen.n_layers, frozen.n_frozen) == (40, n_expected[text])


def test_everything_can_be_thawed_again() -> None:
    network = fine_tuned("resnet18")
    freeze(network, "all")
    network.train()
    assert not any(m.training for m in network.body.modules() if isinstance(m, nn.BatchNorm2d))
    frozen = freeze(network, "none")
    network.train()
    assert frozen.modules == ()
    assert frozen.n_trainable == frozen.n_parameters
    assert all(m.training for m in network.body.modules() if isinstance(m, nn.BatchNorm2d))


def test_everything_of_a_transformer_freezes() -> None:
    network = fine_tuned("vit_b_32")
    frozen = freeze(network, "all")
    assert frozen.n_trainable == sum(p.numel() for p in network.top.parameters())
    half = freeze(network, "half")
    assert 0 < half.n_frozen == half.n_layers // 2


def test_hooked_networks_freeze_by_the_names_of_their_layers() -> None:
    network = fine_tuned("efficientnet_lite0")
    frozen = freeze(network, "blocks.1")
    names = [n for n, p in network.body.named_parameters() if not p.requires_grad]
    assert frozen.n_frozen > 0
    assert all(".blocks.1." in n or ".blocks.0." in n or "stem" in n or "bn1" in n for n in names)


def test_own_network_keeps_its_last_layer() -> None:
    network = get_network("cnn-veer").build(10, 32, seed=0)
    frozen = freeze(network, "all")
    assert (frozen.n_layers, frozen.n_frozen) == (3, 3)
    assert frozen.n_trainable == 257 * 10


def test_wrong_texts_of_freeze() -> None:
    network = fine_tuned("resnet18")
    with pytest.raises(UsageError, match="40 layers that can be frozen"):
        freeze(network, "41")
    with pytest.raises(UsageError, match="did you mean layer"):
        freeze(network, "layer22")
