"""Checkpoints as training programs write them: the part that fits a network is found."""

from __future__ import annotations

import pytest
import timm
import torch
from heard import Log
from torch import nn
from torchvision import models

from featx import open_backbone
from featx.backbones import timm_models
from featx.errors import WeightsError
from featx.weights import fill_from_file, load_into, stored

HEADS = [("fc",)]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()


def below(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


STATE = Net().state_dict()
BODY = {name: tensor for name, tensor in STATE.items() if not name.startswith("fc.")}
HEAD = {"weight": torch.ones(7, 4), "bias": torch.ones(7)}
COUNTS = below("conv.", {"total_ops": torch.ones(1), "total_params": torch.ones(1)})
OTHER = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}


@pytest.fixture
def filled(tmp_path):
    def fill(checkpoint, network, *, key=None, log=None):
        path = tmp_path / "w.pth"
        torch.save(checkpoint, path)
        *_, left = fill_from_file(
            stored(path),
            key,
            lambda state: load_into(network, state, str(path), heads=HEADS),
            network.state_dict,
            log or Log(),
        )
        return left

    return fill


def holds(network, state):
    found = network.state_dict()
    return all(torch.equal(found[name], tensor) for name, tensor in state.items())


FIT = {  # the checkpoint, what it says is taken, whether it has the classifier
    "model.": (below("model.", STATE), "below 'model'", True),
    "two deep": (below("model.net.", STATE), "below 'model.net'", True),
    "a head beside": ({**below("backbone.", BODY), **below("head.", HEAD)}, "'backbone'", False),
    "the same name": ({**below("backbone.", BODY), **below("fc.", HEAD)}, "'backbone'", False),
    "a trainer": (
        {"state_dict": {**below("model.", STATE), "loss.weight": torch.ones(2)}, "epoch": 3},
        "below 'state_dict.model'",
        True,
    ),
    "averaged": ({**below("module.net.", STATE), "n_averaged": torch.ones(())}, ".net'", True),
    "wrapped twice": ({"a": {"b": {"weights": STATE}}, "epoch": 3}, "below 'a.b.weights'", True),
    "compiled inside": (below("model._orig_mod.", STATE), "below 'model._orig_mod'", True),
    "the only one that fits": (
        {"generator": {"a.weight": torch.ones(3)}, "discriminator": STATE},
        "below 'discriminator'",
        True,
    ),
    "two that differ": (
        {"teacher": below("backbone.", STATE), "student": {"a": torch.ones(3)}},
        "below 'teacher.backbone'",
        True,
    ),
    "another head": ({**BODY, **below("head.", HEAD)}, "at its top is taken", False),
    "projections beside": (
        {**STATE, **below("projection.0.", HEAD), **below("prototypes.", HEAD)},
        "left: projection, prototypes",
        True,
    ),
    "counts of thop": ({**STATE, **COUNTS, "total_ops": torch.ones(1)}, "", True),
    "counts inside": (below("net.", {**STATE, **COUNTS}), "below 'net'", True),
}


@pytest.mark.parametrize("name", FIT)
def test_the_one_part_that_fits_is_taken_and_told(filled, name):
    checkpoint, text, is_whole = FIT[name]
    network, log = Net(), Log()
    assert filled(checkpoint, network, log=log) == (() if is_whole else ("fc",))
    assert holds(network, STATE if is_whole else BODY)
    assert text in "".join(log.lines)
    assert len(log.lines) == bool(text)


@pytest.mark.parametrize("prefix", ["", "net.", "model.net."])
def test_a_network_inside_another_takes_the_file_of_either(filled, prefix):
    network = Around()
    filled(below(prefix, STATE), network)
    assert holds(network.net, STATE)


TWO = {
    "momentum": (
        {"state_dict": {**below("module.encoder_q.", STATE), **below("module.encoder_k.", OTHER)}},
        "encoder_q",
        "state_dict.module.encoder_q, state_dict.module.encoder_k",
    ),
    "teacher": (
        {"student": below("module.", OTHER), "teacher": below("module.", STATE)},
        "teacher",
        "student.module, teacher.module",
    ),
}


@pytest.mark.parametrize("name", TWO)
def test_where_several_fit_they_are_listed_with_the_flag_that_chooses(filled, name):
    checkpoint, key, names = TWO[name]
    with pytest.raises(WeightsError, match="several networks that fit.*--weights-key") as caught:
        filled(checkpoint, Net())
    assert str(caught.value).endswith(names)
    assert "Name the backbone" not in str(caught.value)
    for chosen in (key, names.split(", ")[names.split(", ")[1].endswith("teacher.module")]):
        network = Net()
        filled(checkpoint, network, key=chosen)
        assert holds(network, STATE)


def test_the_error_of_another_network_is_that_of_its_likeliest_part(filled):
    more = {**STATE, "norm.more.weight": torch.ones(3)}
    with pytest.raises(WeightsError, match=r"another.*: 1 unexpected \(norm.more.weight\). Name"):
        filled(below("model.", more), Net())
    with pytest.raises(WeightsError, match=r"1 unexpected \(token\)"):
        filled({**STATE, "token": torch.ones(3)}, Net())


@pytest.mark.parametrize("name", ["alexnet", "mobilenet_v3_small"])
def test_all_but_the_last_layer_of_a_classifier_is_used(tmp_path, name):
    network = getattr(models, name)(num_classes=3)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    last = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    inner = f"{last.partition('.')[0]}.{int(last.rpartition('.')[2]) - 1}"
    chosen = {"weights": str(tmp_path / "w.pth"), "overrides": {"input_size": 64}}
    backbone = open_backbone(name, layer=inner, **chosen)
    image = torch.randn(1, 3, 64, 64)
    seen = []
    network.eval().get_submodule(inner).register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.inference_mode():
        network(image)
        assert torch.allclose(backbone.network(image), seen[0], atol=1e-5)
    with pytest.raises(WeightsError, match="choose an earlier layer"):
        open_backbone(name, layer=last, **chosen)


# ---------------------------------------------------------------- timm


def opened(name, state, path, **options):
    torch.save(state, path)
    size = {"overrides": {"mean": (0.5,) * 3, "std": (0.5,) * 3, **options}}
    return open_backbone(f"timm/{name}", weights=str(path), **size)


CUT = ["convnext_atto", "regnety_002", "levit_128s", "efficientnet_b0"]


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("name", CUT)
def test_a_network_of_timm_saved_without_its_classifier_opens(tmp_path, name, prefix):
    network = timm.create_model(name, num_classes=0).eval()
    backbone = opened(name, below(prefix, network.state_dict()), tmp_path / "w.pth")
    image = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        wanted = network.forward_features(image)
        if backbone.layer == "pre_logits":
            wanted = network.forward_head(wanted, pre_logits=True)
        assert torch.allclose(backbone.network(image), wanted, atol=1e-4)


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_the_norm_in_a_file_shows_how_a_transformer_pools(tmp_path, pool):
    name = "vit_tiny_patch16_224"
    network = timm.create_model(name, num_classes=5, global_pool=pool).eval()
    backbone = opened(name, network.state_dict(), tmp_path / "w.pth")
    image = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        wanted = network.forward_head(network.forward_features(image), pre_logits=True)
        assert torch.allclose(backbone.network(image), wanted, atol=1e-4)


def openai_tower(width, n_outputs, n_blocks):
    """Names and shapes of the image tower of OpenAI's CLIP."""
    shapes = {"class_embedding": (width,), "positional_embedding": (197, width)}
    shapes |= {"conv1.weight": (width, 3, 16, 16), "proj": (width, n_outputs)}
    for norm in ("ln_pre", "ln_post"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    linear = {
        "attn.in_proj": (3, 1),
        "attn.out_proj": (1, 1),
        "mlp.c_fc": (4, 1),
        "mlp.c_proj": (1, 4),
    }
    for i in range(n_blocks):
        block = f"transformer.resblocks.{i}."
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}{norm}.weight": (width,), f"{block}{norm}.bias": (width,)}
        for part, (n_out, n_in) in linear.items():
            end = "_" if part.endswith("in_proj") else "."
            shapes[f"{block}{part}{end}weight"] = (n_out * width, n_in * width)
            shapes[f"{block}{part}{end}bias"] = (n_out * width,)
    return {name: torch.full(shape, 0.01) for name, shape in shapes.items()}


@pytest.mark.parametrize("prefix", ["", "visual.", "model.visual."])
def test_the_image_tower_of_a_clip_file_is_found(tmp_path, prefix):
    text = {"logit_scale": torch.ones(()), "text_projection": torch.ones(3, 3)}
    state = below(prefix, openai_tower(256, 512, 10)) | (below("model.", text) if prefix else {})
    backbone = opened("vit_xsmall_patch16_clip_224", state, tmp_path / "w.pth")
    tensors = dict(backbone.network.named_parameters())
    assert all(bool((value == 0.01).all()) for name, value in tensors.items() if "head" not in name)
    assert backbone.map_shape == (256,)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("timm/tv_resnet34", "timm/resnet34.tv_in1k"),
        ("timm/regnetz_040h", "timm/regnetz_040_h"),
        ("hf_hub:timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("timm/hf-hub:timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
    ],
)
def test_names_that_moved_are_those_of_today(typed, name):
    assert open_backbone(typed, weights="random", overrides={"input_size": 64}).name == name


def test_an_old_name_without_its_prefix_is_told():
    with pytest.raises(Exception, match=r"timm calls it timm/tf_efficientnet_b0\.ns_jft_in1k"):
        open_backbone("tf_efficientnet_b0_ns")


def test_notes_of_timm_are_shown(tmp_path, monkeypatch):
    log, config = Log(), timm_models.config
    monkeypatch.setattr(timm_models, "config", lambda *name: {**config(*name), "notes": ("read",)})
    torch.save(timm.create_model("convnext_atto").state_dict(), tmp_path / "w.pth")
    open_backbone("timm/convnext_atto", weights=tmp_path / "w.pth", reporter=log)
    assert "timm/convnext_atto: timm notes: read" in log.lines
