"""Checkpoints that hold several networks, or averaged weights beside the plain ones."""

from __future__ import annotations

import argparse

import pytest
import torch
from heard import Log
from safetensors.torch import save_file
from timm.models import load_state_dict as load_by_timm
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision import models

from featx import FeatureExtractor
from featx.backbones import open_backbone
from featx.cli import main
from featx.errors import UsageError, WeightsError
from featx.store import Cache
from featx.weights import read_state_dict


def state(value, prefix=""):
    names = ("weight", "bias")
    return {f"{prefix}{name}": torch.full((2,), float(value)) for name in names}


def averaged():
    """What torchvision's reference training saves."""
    return AveragedModel(nn.Linear(2, 2), multi_avg_fn=get_ema_multi_avg_fn()).state_dict()


OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
REST = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "optimizer": OPTIMIZER}

# The checkpoint, the entry that is asked for, the value of its tensors.
TAKEN = {
    "timm": ({"state_dict": state(1), "state_dict_ema": state(2), **REST}, None, 2),
    "timm, plain": ({"state_dict": state(1), "state_dict_ema": state(2)}, "state_dict", 1),
    "timm, none": ({"state_dict": state(1), "state_dict_ema": None}, None, 1),
    "model_ema": ({"model": state(1), "model_ema": state(2, "module."), **REST}, None, 2),
    "model": ({"model": state(1), "model_ema": state(2, "module.")}, "model", 1),
    "ema": ({"model": state(1), "ema": {"state_dict": state(2)}}, None, 2),
    "module_ema": ({"module_ema": state(2), "state_dict": state(1)}, None, 2),
    "ema in module": ({"state_dict": state(1), "ema": {"module": state(2), "decay": 0.9}}, None, 2),
    "deepspeed": ({"module": state(1), "module_ema": state(2)}, None, 2),
    "no state dict": ({"model": state(1), "ema": {"decay": 0.9, "shadow": [1, 2]}}, None, 1),
    "a loss with weights": ({"model": state(1), "criterion": {"centre": torch.zeros(1)}}, None, 1),
    "the only one": ({"net": state(1, "module."), "acc": 0.9, **REST}, None, 1),
    "teacher": ({"teacher": state(1), "student": state(2)}, "teacher", 1),
    "deep": ({"state_dict": {**state(1, "net."), **state(2, "old.")}}, "state_dict.old", 2),
    "wrapped": ({"G": {"model": state(1)}, "D": {"model": state(2)}}, "G", 1),
    "flat": ({**state(1, "G."), **state(2, "D.")}, "D", 2),
}


@pytest.mark.parametrize("name", TAKEN)
def test_one_network_of_a_checkpoint_is_taken(name, tmp_path):
    checkpoint, key, value = TAKEN[name]
    torch.save(checkpoint, tmp_path / "w.pth")
    log = Log()
    found = read_state_dict(tmp_path / "w.pth", key=key, reporter=log)
    assert set(found) == {"weight", "bias"}
    assert all(torch.equal(tensor, torch.full((2,), float(value))) for tensor in found.values())
    text = "\n".join(log.lines)
    others = {"state_dict_ema", "model_ema", "state_dict", "model"} & set(checkpoint)
    if value == 2 and key is None:
        assert "averaged weights (EMA), which timm takes too; left: " in text
        assert "--weights-key NAME" in text
        assert len(log.lines) == 1
    if "ema" in name and others == {"state_dict", "state_dict_ema"}:
        by_timm = load_by_timm(str(tmp_path / "w.pth"), use_ema=key is None)
        assert all(torch.equal(by_timm[name], tensor) for name, tensor in found.items())


LISTS = {
    "with something else": ([state(1), {"epoch": 3}], None, 1),
    "of several": ([state(1), state(2)], "1", 2),
    "of pairs": (list(state(1).items()), None, 1),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_holds_its_parts_by_number(name, tmp_path):
    checkpoint, key, value = LISTS[name]
    torch.save(checkpoint, tmp_path / "w.pth")
    found = read_state_dict(tmp_path / "w.pth", key=key)
    assert {name: float(tensor[0]) for name, tensor in found.items()} == dict.fromkeys(
        ("weight", "bias"), value
    )


@pytest.mark.parametrize("content", [[torch.zeros(2)], torch.zeros(2), {}, (1, 2)])
def test_tensors_without_names_are_refused_with_what_to_do(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="without named tensors: save the weights with"):
        read_state_dict(tmp_path / "w.pth")


MMENGINE = {
    "state_dict": state(2),
    "ema_state_dict": {**state(1, "module."), "steps": torch.ones(())},
}
LEFT = {  # the checkpoint, the entry that is asked for, the value of its tensors, what is left
    "mmengine": (MMENGINE, None, 2, "left: ema_state_dict"),
    "mmengine, plain": (MMENGINE, "ema_state_dict", 1, ""),
    "its own file": ({**state(2, "module."), "n_averaged": torch.ones(())}, None, 2, ""),
    "callback": (
        {"state_dict": state(1), "callbacks": {"EMA": {"ema_state_dict": state(2)}}, **REST},
        *(None, 1, "left: callbacks"),
    ),
    "shadow": ({"model": state(1), "ema": {"shadow_params": [1]}, **REST}, None, 1, "left: ema"),
}


@pytest.mark.parametrize("name", LEFT)
def test_averaged_weights_that_are_left_are_named(name, tmp_path):
    checkpoint, key, value, text = LEFT[name]
    torch.save(checkpoint, tmp_path / "w.pth")
    log = Log()
    found = read_state_dict(tmp_path / "w.pth", key=key, reporter=log)
    assert {name: float(tensor[0]) for name, tensor in found.items()} == dict.fromkeys(
        ("weight", "bias"), value
    )
    assert text in "".join(log.lines)


def test_the_counter_of_averaged_weights_is_no_weight(tmp_path):
    torch.save({"model": state(1), "model_ema": averaged()}, tmp_path / "w.pth")
    assert set(read_state_dict(tmp_path / "w.pth")) == {"weight", "bias"}


def test_a_key_takes_a_part_of_safetensors_too(tmp_path):
    save_file({**state(1, "G."), **state(2, "D.")}, tmp_path / "w.safetensors")
    assert read_state_dict(tmp_path / "w.safetensors", key="G")["bias"][0] == 1


@pytest.mark.parametrize(
    ("checkpoint", "key", "message"),
    [
        ({"G": state(1), "D": state(2)}, None, "several networks: choose.*--weights-key.*: G, D$"),
        ({"teacher": state(1), "student": state(2), **REST}, None, ": teacher, student$"),
        ({"model": state(1), "teacher": state(2)}, None, "of one kind.*: model, teacher$"),
        ({"model_ema": state(1), "teacher": state(2)}, None, "of one kind.*: model_ema, teacher$"),
        ({"model": state(1)}, "ema", "no entry 'ema': --weights-key takes model$"),
        (state(1), "model", "no entry 'model': --weights-key takes bias, weight$"),
        ({"epoch": 3}, None, "epoch are not tensors"),
    ],
)
def test_nothing_is_guessed(checkpoint, key, message, tmp_path):
    torch.save(checkpoint, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=message) as caught:
        read_state_dict(tmp_path / "w.pth", key=key)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["squeezenet1_1", "timm/resnet10t", "efficientnet_lite0"])
def test_a_key_without_a_file_is_refused(name):
    for weights in (None, "random"):
        with pytest.raises(UsageError, match="give its file with --weights FILE"):
            open_backbone(name, weights=weights, weights_key="model")


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """Plain and averaged weights of SqueezeNet, as timm saves them."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    plain, ema = (models.squeezenet1_1().state_dict() for _ in range(2))
    torch.save({"state_dict": plain, "state_dict_ema": ema}, "run.pth")
    torch.save(plain, "plain.pth")
    torch.save(ema, "ema.pth")
    return tmp_path / "run.pth"


def digest(file, key=None):
    return open_backbone("squeezenet1_1", weights=str(file), weights_key=key).weights.sha256


def test_the_key_reaches_every_command_and_is_found_again(checkpoint, capsys):
    assert digest(checkpoint) == digest("ema.pth") != digest("plain.pth")
    assert digest(checkpoint, "state_dict") == digest("plain.pth")
    asked = ["--weights", "run.pth", "--weights-key", "state_dict", "--input-size", "32"]
    name = ["--backbone", "squeezenet1_1", *asked]
    data = ["--data", "digits", "--per-class", "3", "--test-per-class", "1", "--quiet"]
    assert main(["extract", *name, *data]) == 0
    assert main(["extract", "--backbone", "squeezenet1_1", *asked[:2], *asked[4:], *data]) == 0
    files = sorted((checkpoint.parent / "cache").glob("*train*.h5"))
    assert len(files) == 2
    wanted = {"": digest("ema.pth"), "state_dict": digest("plain.pth")}
    for file in files:
        with Cache.open(file) as cache:
            key = cache.meta["weights"]["key"]
            assert cache.meta["identity"]["weights_sha256"] == wanted[key]
    [plain] = [file for file in files if "run-state_dict" in file.name]
    before = plain.read_bytes()
    assert main(["repair", str(plain), "--quiet"]) == 0
    assert plain.read_bytes() == before
    assert main(["extract", *name, *data, "--append"]) == 0
    assert plain.read_bytes() == before
    capsys.readouterr()
    assert main(["verify", *name, "--quiet"]) == 0
    assert "PASS" in capsys.readouterr().out
    extractor = FeatureExtractor(
        "squeezenet1_1", weights="run.pth", weights_key="state_dict", input_size=32
    )
    assert extractor.fit(["any.png"]).weights_sha256_ == wanted["state_dict"]


def test_a_saved_model_opens_the_entry_that_it_was_fitted_behind(checkpoint, capsys):
    from PIL import Image

    asked = ["--weights", "run.pth", "--weights-key", "state_dict", "--input-size", "32"]
    data = ["--data", "digits", "--per-class", "10", "--test-per-class", "1", "--quiet"]
    assert main(["extract", "--backbone", "squeezenet1_1", *asked, *data]) == 0
    fit = ["fit", "--clf", "ncm", "--per-class", "10", "--repeats", "1", "--save-models", "--quiet"]
    assert main(fit) == 0
    [model] = (checkpoint.parent / "reports" / "models").glob("*.safetensors")
    Image.new("RGB", (40, 40), "navy").save("one.png")
    assert main(["predict", "--model", str(model), "one.png", "--quiet"]) == 0
    assert "one.png" in capsys.readouterr().out
