"""Threads that share one network: each gets the features of its own images."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from featx import FeatureExtractor
from featx.backbones import base, open_backbones
from featx.backbones.module_taps import ModuleTaps
from featx.engines.runtimes.eager import fold_batch_norms
from featx.extractor import open_networks
from featx.preprocess import Preprocessing
from featx.weights import Weights

N_THREADS = 2


def meeting(module):
    """Let two threads meet inside a module, at each of its passes: both are then in the network."""
    barrier = threading.Barrier(N_THREADS, timeout=30)
    usual = module.forward

    def forward(*args):
        barrier.wait()
        output = usual(*args)
        barrier.wait()
        return output

    module.forward = forward


def first_convolution(network):
    return next(module for module in network.modules() if isinstance(module, nn.Conv2d))


def side_by_side(function, inputs):
    with ThreadPoolExecutor(N_THREADS) as pool:
        return list(pool.map(function, inputs))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.late = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
        self.fc = nn.Linear(6, 2)

    def forward(self, images):
        return self.fc(self.late(self.stem(images)).mean((2, 3)))


CASES = {
    "hooks": ("efficientnet_lite0", (None,)),
    "several hooks": ("efficientnet_lite0", ("blocks.0", "bn2")),
    "a half of timm": ("timm/efficientnet_lite0", (None, "blocks.1")),
    "a trace": ("squeezenet1_1", (None, "features.3")),
}


@pytest.mark.parametrize("case", CASES)
def test_each_thread_gets_its_own_rows(case):
    name, layers = CASES[case]
    options = {"weights": "random", "overrides": {"input_size": 64}}
    group = open_backbones(name, layers=layers, pool="avg", **options)
    images = [torch.randn(1, 3, 64, 64) for _ in range(N_THREADS)]
    compute = torch.inference_mode()(group.features_many)
    wanted = [compute(image) for image in images]
    meeting(first_convolution(group.network))
    found = side_by_side(compute, images)
    for mine, theirs in zip(found, wanted, strict=True):
        assert all(map(torch.equal, mine, theirs))


def test_folding_sees_the_pass_of_its_own_thread():
    torch.manual_seed(0)
    network = Plain().eval()
    taps = ModuleTaps(network, 12, "late")
    preprocessing = Preprocessing(12, 12, "bilinear", (0.5,) * 3, (0.25,) * 3, "mine")
    loaded = base.Backbone(
        "mine", "late", True, "none", taps.cut("late"), Weights("own", ""), preprocessing, (6, 8, 8)
    )
    group = base.BackboneGroup.of(loaded)
    meeting(network.stem)
    [one, other] = side_by_side(lambda _: fold_batch_norms(group), range(N_THREADS))
    for folded in (one, other):
        kinds = [type(module) for module in folded.network.modules()]
        assert nn.BatchNorm2d not in kinds


def test_one_extractor_serves_several_threads():
    open_networks._open_once.cache_clear()
    make = {"weights": "random", "input_size": 64, "device": "cpu", "batch_size": 4, "pool": "avg"}
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (3, 64, 64, 3), np.uint8) for _ in range(N_THREADS)]
    extractor = FeatureExtractor("efficientnet_lite0", **make).fit(images[0])
    wanted = [extractor.transform(part) for part in images]
    runtime = extractor._engine().open(base.BackboneGroup.of(extractor._open()))
    meeting(first_convolution(runtime._group.network))
    found = side_by_side(extractor.transform, images)
    assert all(map(np.array_equal, found, wanted))
    open_networks._open_once.cache_clear()
    open_networks.engine_once.cache_clear()
