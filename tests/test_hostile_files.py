"""Files that a stranger made to fill the memory, or to end the program, are refused in words."""

from __future__ import annotations

import fcntl
import hashlib
import json
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from featx.backbones import open_backbone, open_trained
from featx.backbones.trained import _FILES
from featx.errors import CodeError, FeatxError, UsageError, WeightsError
from featx.networks import get_network
from featx.records import RecordError, read_record
from featx.reproduce import find_recipes
from featx.sources import open_data
from featx.store.journal import read_journal
from featx.store.lock import Lock
from featx.weights import read_state_dict
from featx.weights.sealed_state import write_state

DEEP = "[" * 100_000


def hub(path: Path) -> None:
    path.mkdir()
    for name in ("state.json", "dataset_info.json"):
        (path / name).write_text(DEEP)
    open_data(str(path))


def trained(path: Path) -> None:
    save_file({"a": torch.zeros(1)}, path, {"featx": DEEP})
    open_trained(path)


def recipe(path: Path) -> None:
    path = path.with_suffix(".toml")
    path.write_text(f"[data]\ndata = {DEEP}")
    find_recipes([str(path)])


def record(path: Path) -> None:
    path.write_text(DEEP)
    read_record("fit", path)


def journal(path: Path) -> None:
    check = hashlib.sha256(DEEP.encode()).hexdigest()[:16]
    path.write_text(f"{check} {DEEP}")
    read_journal(path)


def lock(path: Path) -> None:
    held = path.with_name(path.name + ".lock")
    with held.open("w") as stream:
        stream.write(DEEP[:4096])
        stream.flush()
        fcntl.flock(stream, fcntl.LOCK_EX)
        Lock(path).acquire()


@pytest.mark.parametrize("read", [hub, trained, recipe, record, journal, lock])
def test_brackets_nested_too_deep_are_damage(read, tmp_path):
    with pytest.raises((FeatxError, RecordError)):
        read(tmp_path / "file.safetensors")


RECORD = {
    "class_names": ["a", "b"],
    "preprocessing": {
        **{"resize_px": 32, "crop_px": 32, "interpolation": "bilinear"},
        **{"mean": [0.5] * 3, "std": [0.5] * 3},
    },
}
TUNED = {**RECORD, "backbone": "squeezenet1_1", "layer": "features.3", "top": "linear"}


def chain(n: int) -> dict[str, object]:
    value: dict[str, object] = TUNED
    for _ in range(n):
        value = {**TUNED, "backbone": "x.safetensors", "base": value}
    return value


RECORDS = {
    "filters": {**RECORD, "network": "auto-cnn(filters=200000 max_filters=200000)"},
    "units": {**RECORD, "network": "ann-nellangara(hidden=1000000,1000000)"},
    "beyond counting": {**RECORD, "network": f"ann-nellangara(hidden={10**18},{10**30})"},
    "layers": {**RECORD, "network": "auto-cnn(convs=100000000 filters=1)"},
    "pixels": {
        **{**RECORD, "network": "cnn-nellangara"},
        "preprocessing": {**RECORD["preprocessing"], "crop_px": 16000, "resize_px": 16000},
    },
    "top": {**TUNED, "top": "flatten(hidden=10000000,10000000)"},
    "backbone": {**TUNED, "backbone": "timm/vit_giant_patch14_dinov2", "layer": "norm"},
    "chain": chain(300),
    "base is a list": {**TUNED, "backbone": "x.safetensors", "base": [1]},
    "base without base": {**TUNED, "base": {**TUNED, "backbone": "x.safetensors"}},
    "network is a list": {**RECORD, "network": ["auto-cnn"]},
    "layer is a list": {**TUNED, "layer": ["features.3"]},
}


@pytest.mark.parametrize("case", RECORDS)
def test_the_record_of_a_network_fills_no_memory(case, tmp_path, monkeypatch):
    monkeypatch.setattr("featx.networks.spec.available_bytes", lambda: 2_000_000_000)
    path = tmp_path / "evil.safetensors"
    write_state(_FILES, path, RECORDS[case], {"a": torch.zeros(1)})
    with pytest.raises(FeatxError, match="memory|damaged|must be in"):
        open_trained(path)


def test_networks_that_fit_are_built_as_before(monkeypatch):
    monkeypatch.setattr("featx.networks.spec.available_bytes", lambda: 3_000_000)
    network = get_network("cnn-hoogasian-cifar").build(9, 32, seed=0)
    assert not any(parameter.is_meta for parameter in network.parameters())
    with pytest.raises(UsageError, match="GB of memory"):
        get_network("ann-nellangara").build(9, 32, seed=0)


STATE = models.squeezenet1_1().state_dict()


def packed(path: Path) -> None:
    torch.save({**STATE, "more": torch.zeros(100_000_000)}, path)
    with zipfile.ZipFile(path) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as small:
        for name, data in parts.items():
            small.writestr(name, data)


def nested(path: Path) -> None:
    value: dict[str, object] = {}
    for _ in range(400):
        value = {"state_dict": value}
    torch.save(value, path)


def within(path: Path) -> None:
    value: dict[str, object] = {}
    value["state_dict"] = value
    torch.save(value, path)


def changed(**tensors: torch.Tensor):
    return lambda path: torch.save({**STATE, **tensors}, path)


BIAS = STATE["classifier.1.bias"]
FILES = {
    "packed zeros": packed,
    "one value repeated": changed(**{"classifier.1.bias": BIAS[:1].expand(10**9)}),
    "nested": nested,
    "in itself": within,
    "sparse": changed(**{"classifier.1.bias": BIAS.to_sparse()}),
    "complex": changed(**{"classifier.1.bias": BIAS.to(torch.complex64)}),
    "no values": changed(**{"classifier.1.bias": BIAS.to("meta")}),
}


@pytest.mark.parametrize("case", FILES)
def test_weights_that_are_not_plain_are_refused(case, tmp_path):
    path = tmp_path / "evil.pth"
    FILES[case](path)
    with pytest.raises(WeightsError, match="refused|nested|real numbers|sparse"):
        open_backbone("squeezenet1_1", weights=str(path))


@pytest.mark.parametrize("noted", [5, {"": 7}, {"features.0": {"version": "x"}}])
def test_versions_that_are_no_numbers_are_not_read(noted, tmp_path):
    state = OrderedDict(STATE)
    state._metadata = noted
    torch.save(state, tmp_path / "odd.pth")
    assert read_state_dict(tmp_path / "odd.pth").keys() == STATE.keys()
    open_backbone("squeezenet1_1", weights=str(tmp_path / "odd.pth"))


def test_a_name_that_is_copied_from_the_error_runs_nothing_else():
    text = str(CodeError("os:abort; rm -rf ~"))
    assert "--allow-code 'os:abort; rm -rf ~' " in text
    assert "\x1b" not in str(CodeError("\x1b[2Jmod:net"))
    assert json.dumps("ｍod:net") in str(CodeError("ｍod:net"))  # noqa: RUF001 - looks like "mod"
