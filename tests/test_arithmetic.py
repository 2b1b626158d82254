"""float32 is float32 whatever the process allows, and the process's settings stay as they were."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from contextlib import suppress

import numpy as np
import pytest
import torch

from featx import arithmetic
from featx.arithmetic import autotuned, refuse_forced_tf32, true_float32
from featx.backbones import open_backbone
from featx.backbones.base import Backbone
from featx.engines import LocalEngine, resolve_precision
from featx.errors import UsageError
from featx.heads.base import FitOptions
from featx.heads.device import TorchMatrix
from featx.heads.rowspace import Pool, RowSpace
from featx.heads.torch_mlp import MLP_TORCH
from featx.preprocess import Preprocessing
from featx.sources import ArraySource
from featx.train.classifier import NetworkClassifier
from featx.weights import Weights

CPU = torch.device("cpu")
HAS_NEWER = hasattr(torch._C, "_set_fp32_precision_setter")
NEEDS_NEWER = pytest.mark.skipif(not HAS_NEWER, reason="torch 2.8 has the older settings alone")
PLACES = [
    ("generic", "all"),
    *itertools.product(("cuda", "mkldnn"), ("all", "matmul", "conv", "rnn")),
]
LOW = ["none", "high", "medium", "cudnn", "newer-tf32", "newer-bf16", "mixed"]


def older():
    found = []
    for ask in (
        torch._C._get_cublas_allow_tf32,
        torch._C._get_cudnn_allow_tf32,
        torch.get_float32_matmul_precision,
    ):
        with suppress(RuntimeError):  # torch refuses to say where newer settings disagree
            found.append((ask.__name__, ask()))
    return found


def settings():
    newer = [torch._C._get_fp32_precision_getter(*place) for place in PLACES] if HAS_NEWER else []
    cudnn = torch.backends.cudnn
    return newer, older(), cudnn.enabled, cudnn.benchmark, cudnn.deterministic


def put(place, value):
    torch._C._set_fp32_precision_setter(*place, value)


@pytest.fixture
def as_at_the_start():
    """Settings of this test alone: explicit ones, which can be put back."""
    cudnn = torch.backends.cudnn
    flags = cudnn.benchmark, cudnn.deterministic
    yield
    cudnn.benchmark, cudnn.deterministic = flags
    torch.set_float32_matmul_precision("highest")
    torch._C._set_cudnn_allow_tf32(True)
    for place in PLACES if HAS_NEWER else []:
        if place not in (("cuda", "conv"), ("cuda", "rnn")):
            put(place, "none")


def allow(what):
    """Let the process multiply float32 numbers as others, in one of the ways there are."""
    if what in ("high", "medium"):
        torch.set_float32_matmul_precision(what)
    if what == "cudnn":
        torch._C._set_cudnn_allow_tf32(False)
    if what == "mixed":
        torch.set_float32_matmul_precision("high")
    if what in ("newer-tf32", "newer-bf16", "mixed"):
        if not HAS_NEWER:
            pytest.skip("torch 2.8 has the older settings alone")
        torch.backends.fp32_precision = "bf16" if what == "newer-bf16" else "tf32"


def assert_all_is_float32():
    newer, old, *_ = settings()
    assert set(newer) <= {"ieee"}
    assert old == [
        ("_get_cublas_allow_tf32", False),
        ("_get_cudnn_allow_tf32", False),
        ("get_float32_matmul_precision", "highest"),
    ]


@NEEDS_NEWER
@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
@pytest.mark.parametrize("is_cudnn", [True, False])
def test_every_combination_is_float32_inside_and_as_before_afterwards(
    matmul, is_cudnn, as_at_the_start
):
    choices = itertools.product(
        ("none", "ieee", "tf32", "bf16"),  # of all
        ("none", "tf32"),  # of CUDA
        ("none", "bf16"),  # of oneDNN
        (None, "none", "ieee", "tf32"),  # of products on a GPU
        (None, "none", "tf32"),  # of convolutions on a GPU
        (None, "none", "bf16"),  # of products on a CPU
    )
    for choice in choices:
        torch.set_float32_matmul_precision(matmul)
        torch._C._set_cudnn_allow_tf32(is_cudnn)
        places = (
            ("generic", "all"),
            ("cuda", "all"),
            ("mkldnn", "all"),
            ("cuda", "matmul"),
            ("cuda", "conv"),
            ("mkldnn", "matmul"),
        )
        for place, value in zip(places, choice, strict=True):
            if value:
                put(place, value)
        before = settings()
        with suppress(KeyError), true_float32():
            assert_all_is_float32()
            raise KeyError
        assert settings() == before, choice


@pytest.mark.parametrize("what", ["none", "high", "medium", "cudnn"])
def test_the_older_settings_alone(what, as_at_the_start, monkeypatch):
    allow(what)
    before = older()
    # As torch 2.8, which has no others.
    monkeypatch.delattr(torch._C, "_set_fp32_precision_setter", raising=False)
    with true_float32():
        assert older() == [
            ("_get_cublas_allow_tf32", False),
            ("_get_cudnn_allow_tf32", False),
            ("get_float32_matmul_precision", "highest"),
        ]
    assert older() == before


@NEEDS_NEWER
def test_what_followed_its_parent_follows_it_still(as_at_the_start):
    for place in PLACES:
        put(place, "none")
    with true_float32():
        # As torch.compile does behind each compilation.
        put(("cuda", "matmul"), torch.backends.cuda.matmul.fp32_precision)
    for value in ("tf32", "ieee"):
        torch.backends.fp32_precision = value
        assert torch.backends.cuda.matmul.fp32_precision == value
        assert torch.backends.mkldnn.matmul.fp32_precision == value


def test_the_last_of_several_threads_puts_the_settings_back(as_at_the_start):
    allow("high")
    before, is_in, may_go = settings(), threading.Event(), threading.Event()

    def other():
        with true_float32(), autotuned():
            is_in.set()
            may_go.wait(60)

    thread = threading.Thread(target=other)
    with true_float32(), autotuned():
        thread.start()
        assert is_in.wait(60)
    assert_all_is_float32()  # the other one computes on
    assert torch.backends.cudnn.benchmark
    may_go.set()
    thread.join()
    assert settings() == before


def test_only_the_search_for_kernels_is_switched(as_at_the_start):
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    with autotuned():
        assert torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark


class Looks(torch.nn.Module):
    """A product and a convolution, and the settings of each pass."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 8, 3, stride=2)
        self.linear = torch.nn.Linear(8 * 15 * 15, 64)
        for parameter in self.parameters():
            parameter.data.normal_(0, 0.1, generator=generator)
        self.seen = []

    def forward(self, images):
        self.seen.append(settings())
        with torch.backends.cudnn.flags(enabled=False):  # as some networks do
            return self.linear(self.convolution(images).flatten(1))


@pytest.fixture
def backbone():
    preprocessing = Preprocessing(32, 32, "bilinear", (0.5,) * 3, (0.25,) * 3)
    weights = Weights("test", "0" * 64)
    return Backbone("looks", "linear", True, "none", Looks(), weights, preprocessing, (64,))


@pytest.fixture(scope="module")
def source():
    n = 12
    return ArraySource(
        name="noise",
        split="all",
        class_names=("a",),
        labels=np.zeros(n, np.int64),
        paths=tuple(map(str, range(n))),
        rows=np.arange(n),
        pixels=np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), np.uint8),
    )


@pytest.mark.parametrize("what", LOW)
def test_features_are_those_of_float32_under_every_setting(what, backbone, source, as_at_the_start):
    engine = LocalEngine(CPU, "fp32", 4, 0)
    wanted = [part.features for part in engine.run(backbone, source, range(3))]
    backbone.network.seen.clear()
    allow(what)
    before, found = settings(), []
    for part in LocalEngine(CPU, "fp32", 4, 0).run(backbone, source, range(3)):
        assert settings() == before  # code of the user's between the batches
        found.append(part.features)
    assert settings() == before
    assert all(newer == ["ieee"] * len(newer) for newer, *_ in backbone.network.seen)
    assert len(backbone.network.seen) >= 3
    assert np.array_equal(np.concatenate(found), np.concatenate(wanted))


def test_settings_are_as_before_where_a_pass_fails(backbone, source, as_at_the_start):
    allow("high")
    before = settings()
    backbone.network.linear = torch.nn.Linear(3, 3)
    with pytest.raises(RuntimeError, match="shapes"):
        list(LocalEngine(CPU, "fp32", 4, 0).run(backbone, source, [0]))
    assert settings() == before


@pytest.mark.parametrize("what", LOW)
def test_products_of_heads_are_those_of_float32(what, as_at_the_start):
    random = np.random.default_rng(0)
    values = random.normal(size=(96, 256)).astype(np.float32)
    v, s = (random.normal(size=(n, 96)).astype(np.float32) for n in (256, 96))
    matrix = TorchMatrix(values, "cpu:0")
    wanted = matrix.times(v), matrix.pull(s)
    allow(what)
    before = settings()
    assert np.array_equal(matrix.times(v), wanted[0])
    assert np.array_equal(matrix.pull(s), wanted[1])
    assert settings() == before


def test_a_network_is_trained_in_float32(as_at_the_start):
    class Wide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.layers = torch.nn.Sequential(
                torch.nn.Flatten(), torch.nn.Linear(768, 256), torch.nn.Linear(256, 3)
            )
            for parameter in self.parameters():
                parameter.data.normal_(0, 0.05, generator=generator)

        def forward(self, images):
            seen.append(settings())
            outputs = self.layers(images)
            if outputs.requires_grad:
                outputs.register_hook(lambda _: seen.append(settings()))
            return outputs

    random, seen = np.random.default_rng(0), []
    X, y = random.integers(0, 256, (64, 16, 16, 3), np.uint8), random.integers(0, 3, 64)

    def weights():
        net = NetworkClassifier(
            Wide, max_epochs=2, batch_size=32, lr=0.05, optimizer=torch.optim.SGD
        )
        net.fit(X, y)
        net.decision_function(X)
        return [value.numpy() for value in net.module_.state_dict().values()]

    wanted = weights()
    allow("medium")
    before, found = settings(), (seen.clear(), weights())[1]
    assert settings() == before
    assert all(newer == ["ieee"] * len(newer) for newer, *_ in seen)
    for mine, other in zip(found, wanted, strict=True):
        assert np.array_equal(mine, other)


def test_mlp_torch_is_trained_in_float32(as_at_the_start, monkeypatch):
    random, seen = np.random.default_rng(0), []
    X, y = random.normal(size=(80, 40)).astype(np.float32), np.arange(80) % 3
    forward = torch.nn.Linear.forward
    monkeypatch.setattr(
        torch.nn.Linear,
        "forward",
        lambda self, rows: seen.append(settings()) or forward(self, rows),
    )
    allow("medium")
    before = settings()
    head = dataclasses.replace(MLP_TORCH, hidden=(16,), max_epochs=2, device="cpu")
    head.fit(RowSpace(Pool(X), np.arange(80)), y, FitOptions())
    assert settings() == before
    assert seen
    assert all(old[-1] == ("get_float32_matmul_precision", "highest") for _, old, *_ in seen)


def test_float32_is_refused_where_the_environment_makes_it_tf32(monkeypatch):
    gpu = torch.device("cuda", 0)
    for value in ("", "0"):
        monkeypatch.setenv(arithmetic._OVERRIDE, value)
        assert resolve_precision("fp32", gpu)[0] == "fp32"
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    with pytest.raises(UsageError, match=r"NVIDIA_TF32_OVERRIDE=1 .* unset it, or choose --prec"):
        resolve_precision("fp32", gpu)
    assert resolve_precision("bf16", gpu)[0] == "bf16"
    assert resolve_precision("fp32", CPU)[0] == "fp32"
    with pytest.raises(UsageError, match="unset it, or choose --device cpu"):
        TorchMatrix(np.zeros((2, 2), np.float32), "cuda:0")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    refuse_forced_tf32("")


def test_a_real_network_leaves_torch_compile_and_the_settings_alone(
    source, squeezenet_file, as_at_the_start
):
    allow("high")
    before = settings()
    # Its first layers: torch.compile writes and compiles C++ for each.
    first = {"layer": "features.3", "overrides": {"input_size": 64}}
    backbone = open_backbone("squeezenet1_0", weights=str(squeezenet_file), **first)
    for runtime in ("torch", "compile"):
        [part] = LocalEngine(CPU, "fp32", 4, 0, runtime=runtime).run(backbone, source, [0])
        assert np.isfinite(part.features).all()
        assert settings() == before


@pytest.mark.gpu
@pytest.mark.parametrize("what", LOW)
def test_a_gpu_multiplies_as_float32(what, as_at_the_start):
    generator = torch.Generator("cuda").manual_seed(0)
    options = {"generator": generator, "device": "cuda"}
    rows, images = torch.randn((512, 1024), **options), torch.randn((8, 64, 32, 32), **options)
    linear = torch.nn.Linear(1024, 512, device="cuda")
    convolution = torch.nn.Conv2d(64, 64, 3, device="cuda")
    allow(what)
    before = settings()
    with torch.no_grad():
        with true_float32():
            found = rows @ rows.T, linear(rows), convolution(images)
        twice = rows.double(), images.double()
        exact = (
            twice[0] @ twice[0].T,
            linear.double()(twice[0]),
            convolution.double()(twice[1]),
        )
    assert settings() == before
    for mine, wanted in zip(found, exact, strict=True):
        # TF32 is wrong by some 3e-4 here, float32 by 3e-7.
        assert (mine - wanted).norm() <= 1e-5 * wanted.norm()
