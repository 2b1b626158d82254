from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torchvision import models

from featx.errors import UsageError
from featx.networks import (
    SEARCH_SPACE,
    available_networks,
    count,
    get_network,
    is_network,
)


def table(network: nn.Module, px: int) -> list[tuple[tuple[int, ...], int]]:
    """Output shape (channels last, as Keras prints it) and parameters of the layers that Keras
    lists: everything but the activations, which it keeps inside the layers."""
    rows: list[tuple[tuple[int, ...], int]] = []

    def note(module: nn.Module, args: object, output: torch.Tensor) -> None:
        shape = tuple(output.shape[1:])
        shape = (*shape[1:], shape[0]) if len(shape) == 3 else shape
        n = sum(p.numel() for p in module.parameters())
        n += sum(b.numel() for name, b in module.named_buffers() if name.startswith("running"))
        rows.append((shape, n))

    for module in network.modules():
        if not list(module.children()) and not isinstance(module, nn.ReLU):
            module.register_forward_hook(note)
    network.eval()(torch.zeros(1, 3, px, px))
    return rows


# The tables of the source, line by line; the second lacks the 512 of its second normalisation.
CIFAR_TABLE = [
    ((32, 32, 32), 896),
    ((32, 32, 32), 128),
    ((32, 32, 32), 9248),
    ((32, 32, 32), 128),
    ((16, 16, 32), 0),
    ((16, 16, 64), 18496),
    ((16, 16, 64), 256),
    ((16, 16, 64), 36928),
    ((16, 16, 64), 256),
    ((8, 8, 64), 0),
    ((8, 8, 64), 256),
    ((4096,), 0),
    ((128,), 524416),
    ((128,), 0),
    ((9,), 1161),
]
STL_TABLE = [
    ((96, 96, 64), 1792),
    ((96, 96, 64), 256),
    ((48, 48, 64), 0),
    ((48, 48, 128), 73856),
    ((48, 48, 128), 512),
    ((48, 48, 256), 295168),
    ((48, 48, 256), 1024),
    ((24, 24, 256), 0),
    ((24, 24, 256), 0),
    ((147456,), 0),
    ((256,), 37748992),
    ((256,), 1024),
    ((256,), 0),
    ((9,), 2313),
]


@pytest.mark.parametrize(
    ("name", "px", "lines", "total", "trainable", "others"),
    [
        ("cnn-hoogasian-cifar", 32, CIFAR_TABLE, 592_169, 591_657, 512),
        ("cnn-hoogasian-stl", 96, STL_TABLE, 38_124_937, 38_123_529, 1_408),
    ],
)
def test_tables_of_the_two_size_study(
    name: str,
    px: int,
    lines: list[tuple[tuple[int, ...], int]],
    total: int,
    trainable: int,
    others: int,
) -> None:
    network = get_network(name).build(9, px, seed=0)
    assert table(network, px) == lines
    counted = count(network)
    assert (counted.n_total_keras, counted.n_trainable, counted.n_statistics) == (
        total,
        trainable,
        others,
    )


def test_cnn_of_nellangara() -> None:
    network = get_network("cnn-nellangara").build(10, 32, seed=0)
    shapes = [shape for shape, _ in table(network, 32)]
    assert shapes == [
        *[(32, 32, 64), (16, 16, 64), (16, 16, 128), (8, 8, 128), (8, 8, 128)],
        *[(8192,), (200,), (10,)],
    ]
    by_hand = (3 * 9 + 1) * 64 + (64 * 9 + 1) * 128 + (8192 + 1) * 200 + 201 * 10
    assert count(network).n_parameters == by_hand == 1_716_258
    drops = [m.p for m in network.modules() if isinstance(m, nn.Dropout)]
    assert drops == [0.2]


def test_ann_has_three_dense_layers() -> None:
    network = get_network("ann-nellangara").build(10, 32, seed=0)
    assert count(network).n_layers == 3
    widths = [m.out_features for m in network.modules() if isinstance(m, nn.Linear)]
    assert widths == [3000, 1000, 10]
    smaller = get_network("ann-nellangara(hidden=64)").build(10, 8, seed=0)
    assert [m.in_features for m in smaller.modules() if isinstance(m, nn.Linear)] == [192, 64]


def test_model_1_of_veer() -> None:
    network = get_network("cnn-veer").build(10, 32, seed=0)
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(64 * 8 * 8, 256), (256, 10)]
    assert count(network).n_parameters == 896 + 18_496 + 1_048_832 + 2_570


@pytest.mark.parametrize(
    ("name", "millions"),
    # As the collection gives them, for 10 classes.
    [
        ("resnet18", 11.174),
        ("resnet34", 21.282),
        ("resnet50", 23.521),
        ("densenet121", 6.956),
        ("densenet161", 26.483),
        ("densenet169", 12.493),
    ],
)
def test_small_image_variants_have_the_parameters_of_the_collection(
    name: str, millions: float
) -> None:
    network = get_network(f"{name}-small").build(10, 32, seed=0)
    assert round(count(network).n_parameters / 1e6, 3) == millions
    usual = models.get_model(name, weights=None, num_classes=10)
    changed = [
        key
        for key, value in usual.state_dict().items()
        if value.shape != network.state_dict()[key].shape
    ]
    assert list(usual.state_dict()) == list(network.state_dict())
    assert changed == ["features.conv0.weight" if "dense" in name else "conv1.weight"]


def test_small_stem_keeps_the_size_of_the_map() -> None:
    for stem_pool, side in ((True, 16), (False, 32)):
        text = f"densenet121-small(stem_pool={str(stem_pool).lower()})"
        network = get_network(text).build(10, 32, seed=0).eval()
        stem = nn.Sequential(*list(network.features.children())[:4])
        assert stem(torch.zeros(1, 3, 32, 32)).shape[-1] == side


@pytest.mark.parametrize("px", [1, 8, 28, 32, 96, 224])
def test_automatic_network_fits_any_size(px: int) -> None:
    network = get_network("auto-cnn(filters=4)").build(3, px, seed=0).eval()
    images = torch.randn(2, 3, px, px)
    assert network(images).shape == (2, 3)
    assert len(network.features) == {1: 1, 8: 1, 28: 2, 32: 3, 96: 4, 224: 5}[px]
    # No part of it is made for one size.
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 3)


def test_every_combination_of_the_search_space_runs() -> None:
    ends = {key: (values[0], values[-1]) for key, values in SEARCH_SPACE.items()}
    assert ends == {"convs": (1, 3), "filters": (32, 96), "dense": (1, 3), "neurons": (128, 1024)}
    for convs in SEARCH_SPACE["convs"]:
        for dense in SEARCH_SPACE["dense"]:
            text = f"cnn-search(convs={convs} dense={dense} filters=32 neurons=128)"
            network = get_network(text).build(9, 16, seed=0)
            kinds = [type(m) for m in network.modules()]
            assert kinds.count(nn.Conv2d) == convs
            assert kinds.count(nn.Linear) == dense + 1
            filters = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
            assert filters == [32, 64, 128][:convs]
            widths = [m.out_features for m in network.modules() if isinstance(m, nn.Linear)]
            assert widths == [*[128, 64, 32][:dense], 9]


@pytest.mark.parametrize("name", sorted(available_networks()))
def test_every_network_learns_and_is_the_same_for_a_seed(name: str) -> None:
    spec = get_network(name)
    px = 32 if name.endswith("-small") else spec.least_px * 4
    before = torch.random.get_rng_state()
    network, again, other = (spec.build(4, px, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    states = [net.state_dict().values() for net in (network, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(states[0], states[2], strict=True))
    images, labels = torch.randn(4, 3, px, px), torch.tensor([0, 1, 2, 3])
    nn.functional.cross_entropy(network(images), labels).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    "text",
    [
        "auto-cnn(filters=16 blocks=2)",
        "cnn-hoogasian-stl(dropout=0.1,0.2)",
        "ann-nellangara(hidden=10,20,30)",
        "densenet161-small(stem_pool=false)",
        "cnn-veer",
    ],
)
def test_text_is_read_back(text: str) -> None:
    spec = get_network(text)
    assert spec.text == text
    assert get_network(spec.text) == spec
    assert is_network(text)


def test_settings_that_are_the_default_are_not_written() -> None:
    assert get_network("cnn-veer(dropout=0.5)").text == "cnn-veer"


def test_keras_networks_start_as_keras_does() -> None:
    network = get_network("cnn-hoogasian-cifar").build(9, 32, seed=0)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            bound = (6 / (module.in_features + module.out_features)) ** 0.5
            largest = float(module.weight.detach().abs().max())
            assert 0.9 * bound < largest <= bound
            assert not module.bias.detach().any()
        if isinstance(module, nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (1e-3, 0.01)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cnn-veeer", "did you mean cnn-veer"),
        ("cnn-veer(dropuot=0.1)", "did you mean dropout"),
        ("cnn-search(filters=97)", "must be in \\[32, 96\\]"),
        ("auto-cnn(filters)", "write key=value"),
        ("vgg16", "unknown network"),
    ],
)
def test_wrong_names_and_settings(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        get_network(text)


def test_wrong_sizes() -> None:
    with pytest.raises(UsageError, match="give 8 or more"):
        get_network("cnn-search").build(9, 7, seed=0)
    with pytest.raises(UsageError, match="2 classes or more"):
        get_network("cnn-veer").build(1, 32, seed=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_network("cnn-veer").dropout = 0.1


def test_networks_are_listed_with_their_settings(capsys, monkeypatch):
    from featx.cli import main

    monkeypatch.setenv("COLUMNS", "1000")

    assert main(["list", "networks", "hoogasian"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["network", "origin", "settings"]
    assert [line.split()[0] for line in lines[1:]] == ["cnn-hoogasian-cifar", "cnn-hoogasian-stl"]
    assert lines[1].endswith("dropout=0.5 bn_momentum=0.01")
