from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models

from featx.backbones import (
    TrainedRecord,
    check_backbone,
    list_layers,
    open_backbone,
    open_trained,
    save_trained,
)
from featx.cli import main
from featx.errors import BackboneError, UsageError, WeightsError
from featx.networks import FineTuned, get_network, get_top
from featx.preprocess import Preprocessing

HALF = (0.5, 0.5, 0.5)
CLASSES = tuple("abcdefghi")


def plain(px: int) -> Preprocessing:
    return Preprocessing(px, px, "bilinear", HALF, HALF)


def save_own(path: Path, text: str, px: int, seed: int = 3) -> nn.Module:
    """A network with values, running statistics too, that no fresh one has."""
    network = get_network(text).build(len(CLASSES), px, seed)
    network.train()(torch.randn(8, 3, px, px))
    record = TrainedRecord(
        network=text, class_names=CLASSES, preprocessing=plain(px), training={"epochs": 2}
    )
    save_trained(path, network, record)
    return network.eval()


def save_fine_tuned(
    path: Path, name: str, top: str = "linear", px: int = 64, weights: str | None = "random:7"
) -> FineTuned:
    backbone = open_backbone(name, weights=weights, overrides={"input_size": px})
    network = FineTuned(backbone.network, get_top(top).build(backbone.map_shape, 9, seed=0))
    network.train()(torch.randn(8, 3, px, px))
    record = TrainedRecord(
        backbone=name,
        layer=backbone.layer,
        top=top,
        class_names=CLASSES,
        preprocessing=backbone.preprocessing,
    )
    save_trained(path, network, record)
    return network.eval()


@pytest.mark.parametrize(
    ("text", "px"),
    [
        ("cnn-hoogasian-cifar", 32),
        ("cnn-veer(dropout=0.1)", 32),
        ("auto-cnn(filters=8)", 48),
        ("ann-nellangara(hidden=20,10)", 16),
        ("densenet121-small", 32),
    ],
)
def test_own_network_comes_back_with_its_logits(tmp_path: Path, text: str, px: int) -> None:
    network = save_own(tmp_path / "net.safetensors", text, px)
    opened = open_trained(tmp_path / "net.safetensors")
    images = torch.randn(3, 3, px, px)
    with torch.no_grad():
        assert torch.equal(opened.network(images), network(images))
    assert opened.record.class_names == CLASSES
    assert opened.record.preprocessing.identity() == plain(px).identity()
    assert opened.record.training == {"epochs": 2}
    assert not opened.network.training


@pytest.mark.parametrize(
    ("name", "top"),
    [
        ("squeezenet1_1", "linear"),
        ("resnet18", "flatten(hidden=8 dropout=0.2 batch_norm=before)"),
        ("efficientnet_lite0", "gap(hidden=8)"),
        ("timm/resnet10t", "linear"),
    ],
)
def test_fine_tuned_network_comes_back_with_its_logits(tmp_path: Path, name: str, top: str) -> None:
    network = save_fine_tuned(tmp_path / "net.safetensors", name, top)
    opened = open_trained(tmp_path / "net.safetensors")
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(opened.network(images), network(images))
        backbone = open_backbone(str(tmp_path / "net.safetensors"))
        assert torch.equal(backbone.network(images), network.body(images))


def test_default_point_is_the_last_map(tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    network = save_own(file, "cnn-hoogasian-cifar", 32)
    backbone = open_backbone(str(file))
    assert (backbone.layer, backbone.map_shape, backbone.is_default_layer) == (
        "features",
        (64, 8, 8),
        True,
    )
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(backbone.network(images), network.features(images))
    points, default = list_layers(str(file))
    assert default == "features"
    assert {"features.0", "classifier.1", "classifier"} <= {point.name for point in points}
    dense = open_backbone(str(file), layer="classifier.2")
    assert dense.n_features == 128


def test_default_point_of_an_averaging_network(tmp_path: Path) -> None:
    save_own(tmp_path / "net.safetensors", "densenet121-small", 32)
    backbone = open_backbone(str(tmp_path / "net.safetensors"))
    # 32 pixels, halved by the pooling of the stem and three transitions.
    assert backbone.map_shape == (1024, 2, 2)
    with torch.no_grad():
        assert backbone.network(torch.randn(2, 3, 32, 32)).min() >= 0


def test_trained_at_32_pixels_runs_at_96(tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    network = save_own(file, "cnn-hoogasian-cifar", 32)
    backbone = open_backbone(str(file), overrides={"input_size": 96})
    assert backbone.map_shape == (64, 24, 24)
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(backbone.network(images), network.features(images))
    assert backbone.preprocessing.resize_px == backbone.preprocessing.crop_px == 96
    names = [point.name for point in list_layers(str(file), overrides={"input_size": 96})[0]]
    assert not any(name.startswith("classifier") for name in names)


def test_dense_network_tells_that_it_has_one_size(tmp_path: Path) -> None:
    save_own(tmp_path / "net.safetensors", "ann-nellangara(hidden=20,10)", 16)
    backbone = open_backbone(str(tmp_path / "net.safetensors"))
    assert backbone.n_features == 10
    with pytest.raises(BackboneError, match="does not run at an input size of 32"):
        open_backbone(str(tmp_path / "net.safetensors"), overrides={"input_size": 32})


def test_fine_tuned_network_at_other_layers_and_sizes(tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    network = save_fine_tuned(file, "resnet18")
    early = open_backbone(str(file), layer="layer1", overrides={"input_size": 96})
    whole = models.get_model("resnet18", weights=None).eval()
    whole.load_state_dict(network.body.state_dict(), strict=False)
    whole.layer2 = whole.layer3 = whole.layer4 = nn.Identity()
    whole.avgpool, whole.fc = nn.Identity(), nn.Identity()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(early.features(images), whole(images))


def test_what_lies_behind_the_cut_is_refused(tmp_path: Path) -> None:
    save_fine_tuned(tmp_path / "net.safetensors", "resnet18")
    with pytest.raises(WeightsError, match="does not fill"):
        open_backbone(str(tmp_path / "net.safetensors"), layer="fc")


def test_trained_network_is_fine_tuned_and_no_longer_needed(tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_own(first, "resnet18-small", 32)
    network = save_fine_tuned(second, str(first), px=32, weights=None)
    first.unlink()
    opened = open_trained(second)
    assert opened.record.base is not None
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(opened.network(images), network(images))
        backbone = open_backbone(str(second), overrides={"input_size": 48})
        assert backbone.network(torch.randn(2, 3, 48, 48)).shape == (2, 512, 3, 3)


def test_huyvnphan_style_state_dict_fits(tmp_path: Path) -> None:
    # The collection's own files have torchvision's names; those of a 10-class network fill it.
    network = get_network("densenet121-small").build(10, 32, seed=0)
    usual = models.get_model("densenet121", weights=None, num_classes=10).state_dict()
    usual["features.conv0.weight"] = torch.zeros(64, 3, 3, 3)
    network.load_state_dict(usual)


def test_file_is_the_same_on_any_path_and_for_any_copy(tmp_path: Path) -> None:
    file, copy = tmp_path / "net.safetensors", tmp_path / "other" / "copy.safetensors"
    save_own(file, "cnn-veer", 32)
    copy.parent.mkdir()
    copy.write_bytes(file.read_bytes())
    own = open_backbone(str(file))
    moved = open_backbone(str(file), weights=str(copy))
    assert own.identity() == moved.identity()
    assert open_backbone(f"{tmp_path}/./net.safetensors").identity() == own.identity()
    save_own(copy, "cnn-veer", 32, seed=4)
    assert open_backbone(str(file), weights=str(copy)).identity() != own.identity()
    with pytest.raises(UsageError, match="has its own weights"):
        open_backbone(str(file), weights="random")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_own(tmp_path / "net.safetensors", "auto-cnn(filters=4)", 32)
    return tmp_path / "net.safetensors"


def test_damaged_tensors_are_found(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[-100] ^= 1
    saved.write_bytes(data)
    with pytest.raises(WeightsError, match="tensors do not fit their digest"):
        open_trained(saved)
    saved.write_bytes(data[:-200])
    with pytest.raises(WeightsError, match="damaged"):
        check_backbone(str(saved))


def rewrite(file: Path, change: dict[str, Any]) -> None:
    with safe_open(file, framework="pt") as stream:
        values = json.loads(stream.metadata()["featx"])
    save_file(load_file(file), file, {"featx": json.dumps(values | change)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input_px": 3}, "does not fit its digest"),
        ({"class_names": ["a"] * 9}, "does not fit its digest"),
        ({"version": 2}, "version 2 of the format"),
        ({"format": "featx model"}, "not a trained network but a featx model"),
    ],
)
def test_what_it_says_is_checked(saved: Path, change: dict[str, Any], words: str) -> None:
    rewrite(saved, change)
    with pytest.raises(WeightsError, match=words):
        open_trained(saved)


def test_files_that_are_no_trained_network(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="featx train --save"):
        check_backbone(str(tmp_path / "none.safetensors"))
    save_file({"x": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(WeightsError, match="--backbone NAME --weights"):
        open_backbone(str(tmp_path / "plain.safetensors"))
    with pytest.raises(UsageError, match="must end in .safetensors"):
        save_own(tmp_path / "net.pth", "cnn-veer", 32)


def test_save_replaces_whole_files_only(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(WeightsError, match="No space left"):
        save_own(saved, "cnn-veer", 32)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_records_that_say_too_little() -> None:
    with pytest.raises(UsageError, match="one of featx.networks, or a backbone"):
        TrainedRecord(class_names=CLASSES, preprocessing=plain(32))
    with pytest.raises(UsageError, match="needs the layer"):
        TrainedRecord(backbone="resnet18", class_names=CLASSES, preprocessing=plain(32))


def test_every_command_takes_the_file(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = saved.name
    words = ["extract", "--backbone", name, "--data", "digits", "--per-class", "6"]
    words += ["--test-per-class", "4", "-j", "0", "--quiet"]
    assert main(words) == 0
    assert main([*words, "--input-size", "48"]) == 0
    assert main(["fit", "--clf", "ncm", "--per-class", "3", "--repeats", "1", "--save-models"]) == 0
    out = capsys.readouterr().out
    assert out.count(name) >= 4
    assert main(["list", "layers", name]) == 0
    assert "features" in capsys.readouterr().out
    assert main(["verify", "--backbone", name]) == 0
    assert "PASS" in capsys.readouterr().out
    assert main(["list", "caches"]) == 0
    images = tmp_path / "images"
    images.mkdir()
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    Image.fromarray(noise).save(images / "a.png")
    model = next(path for path in (tmp_path / "reports" / "models").glob("*.safetensors"))
    capsys.readouterr()
    words = ["predict", "--model", str(model), str(images), "-j", "0", "--quiet"]
    assert main(words) == 0
    assert "a.png" in (before := capsys.readouterr().out)
    # From any folder, and where the whole project moved; a file of the same name is no other one.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(words) == 0
    assert capsys.readouterr().out == before
    (tmp_path / "elsewhere" / name).write_bytes(b"another")
    project = tmp_path / "moved" / "project"
    shutil.copytree(tmp_path / "reports", project / "reports")
    saved.rename(project / "reports" / name)
    words[2] = str(project / "reports" / "models" / model.name)
    assert main(words) == 0
    assert capsys.readouterr().out == before
    (project / "reports" / name).rename(tmp_path / "gone")
    (tmp_path / "elsewhere" / name).unlink()
    assert main(words) == 1
    assert "give the same file with --weights FILE" in capsys.readouterr().err
    (tmp_path / "gone").rename(tmp_path / "copy.safetensors")
    assert main([*words, "--weights", str(tmp_path / "copy.safetensors")]) == 0
    assert capsys.readouterr().out == before
