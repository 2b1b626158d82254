"""Networks that a function gives in other forms: programs, other types of numbers, lazy ones."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from featx import FeatureExtractor, open_backbone
from featx.errors import BackboneError, UsageError, WeightsError
from featx.preprocess import Preprocessing

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

PX = 24
PREPROCESSING = Preprocessing(PX, PX, "bilinear", (0.5,) * 3, (0.5,) * 3, "test")
IMAGES = torch.randn(5, 3, PX, PX, generator=torch.Generator().manual_seed(1))


def network():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


@pytest.fixture
def given(monkeypatch):
    def open_given(make, *rest, **options):
        module = types.ModuleType("given_networks")
        module.make = lambda: (make(), PREPROCESSING, *rest)
        monkeypatch.setitem(sys.modules, "given_networks", module)
        return open_backbone("given_networks:make", **options)

    return open_given


def loaded_script(tmp_path):
    torch.jit.save(torch.jit.script(network()), tmp_path / "net.pt")
    return torch.jit.load(tmp_path / "net.pt")


def exported(n_images):
    shapes = ({0: torch.export.Dim.AUTO},) if n_images is None else None
    example = (torch.zeros(n_images or 2, 3, PX, PX),)
    return torch.export.export(network(), example, dynamic_shapes=shapes)


def loaded_export(tmp_path):
    torch.export.save(exported(2), tmp_path / "net.pt2")
    return torch.export.load(tmp_path / "net.pt2")


PROGRAMS = {
    "scripted": lambda path: torch.jit.script(network()),
    "traced": lambda path: torch.jit.trace(network(), torch.zeros(1, 3, PX, PX)),
    "file": loaded_script,
    "exported for one": lambda path: exported(1).module(),
    "exported for two": lambda path: exported(2),
    "exported for any": lambda path: exported(None).module(),
    "exported file": loaded_export,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_tapped_at_its_output(given, tmp_path, name):
    backbone = given(lambda: PROGRAMS[name](tmp_path))
    assert (backbone.layer, backbone.map_shape) == ("output", (4,))
    with torch.inference_mode():
        assert torch.allclose(backbone.features(IMAGES), network()(IMAGES), atol=1e-6)
    assert backbone.weights.sha256 == given(network).weights.sha256


@pytest.mark.parametrize("load", [loaded_script, loaded_export])
def test_every_image_of_a_program_becomes_a_row(given, tmp_path, load):
    given(lambda: load(tmp_path))
    pixels = np.random.default_rng(0).integers(0, 256, (7, PX, PX, 3), np.uint8)
    rows = FeatureExtractor("given_networks:make", batch_size=3).fit_transform(pixels)
    with torch.inference_mode():
        wanted = network()(PREPROCESSING.normalise(torch.from_numpy(pixels)))
    assert np.allclose(rows, wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types_of_numbers_are_computed_as_float32(given, dtype):
    backbone = given(lambda: network().to(dtype))
    with torch.inference_mode():
        wanted = network().to(dtype).float()[0](IMAGES)
        assert torch.equal(backbone.network(IMAGES), wanted)


class Halved(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = network()[0][0].half()

    def forward(self, images):
        return self.conv(images.half())


def test_a_network_that_changes_its_input_itself_stays_as_it_is(given):
    backbone = given(Halved, "conv")
    assert all(value.dtype == torch.float16 for value in backbone.network.parameters())


def test_lazy_layers_get_their_size_and_values_from_a_file(given, tmp_path):
    def lazy():
        return nn.Sequential(nn.LazyConv2d(8, 3, 2), nn.Flatten(), nn.LazyLinear(4))

    torch.manual_seed(3)
    filled = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Flatten(), nn.Linear(968, 4)).eval()
    torch.save(filled.state_dict(), tmp_path / "w.pth")
    backbone = given(lazy, weights=tmp_path / "w.pth", layer=["2"])
    with torch.inference_mode():
        assert torch.equal(backbone.features(IMAGES), filled(IMAGES))
    assert given(lazy).weights.sha256 == given(lazy).weights.sha256


class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, images, mask=None, returns_both=False):
        if mask is not None:
            images = images * mask
        output = self.net(images)
        return (output, images) if returns_both else output


def test_defaults_of_a_forward_pass_are_what_they_are(given):
    backbone = given(Optional)
    assert backbone.layer == given(network).layer.replace("0", "net.0", 1)
    with torch.inference_mode():
        assert torch.equal(backbone.network(IMAGES), network()[0](IMAGES))


class Trains(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, images):
        self.train()
        return self.net(images)


def test_a_forward_pass_that_trains_is_told_so(given):
    with pytest.raises(BackboneError, match=r"into training mode: take out train\(\)"):
        given(Trains, layer="net.0")


# ---------------------------------------------------------------- words


PIXELS = np.random.default_rng(0).integers(0, 256, (3, 40, 48, 3), np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    backbone = open_backbone("squeezenet1_1", weights="random", layer="classifier")
    torch.save(backbone.network.state_dict(), path)
    return path


def test_paths_devices_pairs_and_lists_of_one_are_words(weights):
    def rows(**options):
        return FeatureExtractor("squeezenet1_1", pool="avg", **options).fit_transform(PIXELS)

    plain = rows(weights=str(weights), input_size=48, layer="features.5", device="cpu")
    typed = {"weights": weights, "input_size": (48, 48), "device": torch.device("cpu")}
    assert np.array_equal(rows(**typed, layer=["features.5"]), plain)


def test_native_is_the_size_of_the_images_without_a_resize(weights):
    options = {"weights": weights, "pool": "avg"}
    native = FeatureExtractor("squeezenet1_1", input_size="native", **options).fit(PIXELS)
    assert native.input_size_ == 40
    sized = FeatureExtractor("squeezenet1_1", input_size=40, crop_pct=1.0, **options)
    assert np.array_equal(native.transform(PIXELS), sized.fit_transform(PIXELS))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"input_size": (48, 64)}, "the side of a square"),
        ({"input_size": "large"}, "a number of pixels"),
        ({"input_size": 48.0}, "a number of pixels"),
        ({"layer": ["features.5", "features.7"]}, "make_union"),
    ],
)
def test_other_words_say_what_to_give(options, words):
    with pytest.raises(UsageError, match=words):
        FeatureExtractor("squeezenet1_1", weights="random", **options).fit(PIXELS)


def test_the_advice_for_a_program_in_a_file_is_one_that_works(tmp_path, given):
    torch.jit.save(torch.jit.script(network()), tmp_path / "net.pt")
    with pytest.raises(WeightsError, match="in a function of your own.*--backbone module:function"):
        open_backbone("squeezenet1_1", weights=tmp_path / "net.pt")
    assert given(lambda: torch.jit.load(tmp_path / "net.pt")).layer == "output"
