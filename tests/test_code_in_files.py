"""Code that a file names is imported only where the user names it too."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featx
from featx import FeatureExtractor, plugins
from featx.backbones import TrainedRecord, list_layers, open_backbone, open_trained, save_trained
from featx.cli import main
from featx.errors import CodeError, UsageError
from featx.evaluate import Settings
from featx.extract import Plan, run_plan
from featx.networks import FineTuned, get_top
from featx.progress import SILENT
from featx.reproduce import find_recipes
from featx.store import find_caches
from featx.train import TrainPlan, run_train

NET, HEAD = "evilmod:net", "evilmod:Head"
EVIL = """
from pathlib import Path

import torch
from sklearn.neighbors import NearestCentroid as Head
from torch import nn
from featx.preprocess import Preprocessing

Path("marker").write_text("imported")

def net():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    return nn.Sequential(*layers).eval(), Preprocessing(16, 16, "bilinear", (0.5,) * 3, (0.5,) * 3)
"""
QUICK = ["--device", "cpu", "--workers", "0"]
TRAIN = "--data pictures --per-class 4 --epochs 1 --patience 0 --input-size 16 --layer 1"
RECIPE = """
[system]
source = "somebody"
title = "a recipe from the internet"

[data]
data = "pictures"

"""
RECIPES = {
    "net": '[extract]\nbackbone = ["evilmod:net"]\n\n[fit]\nper_class = [2]\nrepeats = 1\n',
    "file": '[extract]\nbackbone = ["net.safetensors"]\n\n[fit]\nper_class = [2]\nrepeats = 1\n',
    "head": (
        '[extract]\nbackbone = ["squeezenet1_1"]\nweights = "random"\ninput_size = 32\n\n'
        '[fit]\nheads = ["evilmod:Head"]\nper_class = [2]\nrepeats = 1\n'
    ),
    "train": (
        '[train]\nnetwork = "evilmod:net"\nper_class = [4]\nepochs = 1\npatience = 0\n'
        'layer = "1"\ninput_size = 16\n'
    ),
}


@contextmanager
def _imported():
    """Forget the module, and whether it was imported, before and after."""

    def forget():
        sys.modules.pop("evilmod", None)
        Path("marker").unlink(missing_ok=True)

    forget()
    yield
    forget()


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    """A folder with every kind of file that can name code, as a stranger may have made it."""
    folder = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [part for part in sys.path if part])
        Path("evilmod.py").write_text(EVIL)
        _pictures()
        with _imported():
            _networks()
            _caches_and_models()
        for name, text in RECIPES.items():
            Path(f"{name}.toml").write_text(RECIPE + text)
        yield folder


def _pictures():
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, level in (("dark", 0), ("light", 100)):
            place = Path("pictures") / split / name
            place.mkdir(parents=True)
            for i in range(6):
                pixels = level + rng.integers(0, 100, (20, 20, 3), np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")


def _networks():
    """One network on the code, and one that was fine-tuned from that file."""
    for path, backbone in (("net.safetensors", NET), ("tuned.safetensors", "net.safetensors")):
        opened = open_backbone(backbone, layer="1", allow_code=(NET,))
        network = FineTuned(opened.network, get_top("linear").build(opened.map_shape, 2, seed=0))
        record = TrainedRecord(
            class_names=("dark", "light"),
            preprocessing=opened.preprocessing,
            backbone=backbone,
            layer="1",
            top="linear",
        )
        save_trained(Path(path), network, record)


def _caches_and_models():
    for name, backbone in (("direct", NET), ("chain", "net.safetensors")):
        words = ["extract", "--data", "pictures", "--backbone", backbone, "--cache", name, *QUICK]
        assert main([*words, "--allow-code", NET]) == 0
        words = ["fit", "--per-class", "4", "--repeats", "1", "--cache", name, "--save-models"]
        assert main([*words, "--reports", f"{name}-reports"]) == 0
        os.link(*_only(f"{name}-reports/models/*.safetensors"), f"{name}-model.safetensors")
        cache = next(path for path in find_caches(Path(name)) if "train" in path.name)
        os.link(cache, f"{name}.h5")


def _only(pattern):
    (found,) = Path().glob(pattern)
    return [found]


COMMANDS = [
    ("extract --backbone net.safetensors --data pictures", NET),
    ("extract --backbone tuned.safetensors --data pictures", NET),
    ("list layers net.safetensors", NET),
    ("list layers tuned.safetensors", NET),
    ("verify --backbone net.safetensors --device cpu", NET),
    ("sweep --backbone net.safetensors --pool avg max --data pictures --per-class 2", NET),
    (f"train --network net.safetensors {TRAIN}", NET),
    ("predict --model direct-model.safetensors pictures/test/dark/1.png", NET),
    ("predict --model chain-model.safetensors pictures/test/dark/1.png", NET),
    ("repair direct.h5", NET),
    ("repair chain.h5", NET),
    ("reproduce net.toml", NET),
    ("reproduce file.toml", NET),
    ("reproduce head.toml", HEAD),
    ("reproduce head.toml --list", HEAD),
    ("reproduce train.toml", NET),
]  # fmt: skip


@pytest.mark.parametrize(("line", "name"), COMMANDS, ids=[line for line, _ in COMMANDS])
def test_a_command_runs_no_code_that_only_a_file_names(line, name, tmp_path, capsys):
    words = line.split()
    places = {"extract": ["--cache"], "sweep": ["--cache", "--reports"], "train": ["--reports"]}
    places["reproduce"] = places["sweep"]
    for option in places.get(words[0], []):
        words += [option, str(tmp_path / option.strip("-"))]
    file = next(Path(word).name for word in words if Path(word).is_file())
    with _imported():
        assert main(words) != 0
        error = capsys.readouterr().err
        assert not Path("marker").exists()
        assert "evilmod" not in sys.modules
        assert f"names the code {name}," in error
        assert f"--allow-code {name} " in error
        assert file in error
        # A name that is alike allows nothing.
        assert main([*words, "--allow-code", f"{name}work"]) != 0
        assert not Path("marker").exists()
        assert main([*words, "--allow-code", name]) == 0, capsys.readouterr().err
        assert Path("marker").exists()


def _predict(model):
    image = Image.new("RGB", (20, 20))
    return lambda codes: featx.load_model(model).predict_images([image], allow_code=codes)


CALLS = {
    "open_backbone": lambda codes: open_backbone("net.safetensors", allow_code=codes),
    "open_backbone by chain": lambda codes: open_backbone("tuned.safetensors", allow_code=codes),
    "open_trained": lambda codes: open_trained("net.safetensors", allow_code=codes),
    "list_layers": lambda codes: list_layers("net.safetensors", allow_code=codes),
    "FeatureExtractor": lambda codes: FeatureExtractor("net.safetensors", allow_code=codes).fit(
        [Image.new("RGB", (20, 20))]
    ),
    "predict_images": _predict("direct-model.safetensors"),
    "predict_images by chain": _predict("chain-model.safetensors"),
    "run_plan": lambda codes: run_plan(
        Plan(
            backbone=("net.safetensors",),
            data="pictures",
            cache_dir="called",
            overwrite=True,
            allow_code=codes,
        ),
        SILENT,
    ),
    "run_train": lambda codes: run_train(
        TrainPlan(
            network="net.safetensors",
            data="pictures",
            epochs=1,
            patience=0,
            refit=True,
            reports_dir="called-reports",
            allow_code=codes,
        ),
        SILENT,
    ),
    "find_recipes": lambda codes: find_recipes(["head.toml"], codes),
    "Settings": lambda codes: Settings(heads=(f"{HEAD}(metric=manhattan)",), allow_code=codes),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_runs_no_code_that_only_a_file_names(name):
    code = HEAD if name in ("find_recipes", "Settings") else NET
    with _imported():
        for codes in ((), (f"{code}work",), f"{code}work"):
            with pytest.raises(CodeError, match=rf'allow_code=\("{code}",\)'):
                CALLS[name](codes)
        assert not Path("marker").exists()
        CALLS[name]((code,))
        assert Path("marker").exists()


def test_what_is_typed_is_allowed(tmp_path):
    words = ["extract", "--backbone", NET, "--data", "pictures", "--cache", str(tmp_path), *QUICK]
    assert main(words) == 0
    image = "pictures/test/dark/1.png"
    assert main(["predict", "--model", "direct-model.safetensors", "--backbone", NET, image]) == 0
    words = ["reproduce", "net.toml", "--backbone", f"{NET}=squeezenet1_1", "--weights"]
    words += ["squeezenet1_1=random", "--cache", str(tmp_path), "--reports", str(tmp_path)]
    assert main(words) == 0
    assert open_backbone(NET).name == NET
    assert FeatureExtractor(NET).fit([Image.new("RGB", (20, 20))]).n_features_out_ == 4 * 14 * 14


def test_the_name_of_an_entry_point_is_code_too(monkeypatch, tmp_path, capsys):
    point = importlib.metadata.EntryPoint("evil", NET, "featx.backbones")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point])
    plugins.offered.cache_clear()
    Path("entry.toml").write_text(Path("net.toml").read_text().replace(NET, "evil"))
    words = ["reproduce", "entry.toml", "--cache", str(tmp_path), "--reports", str(tmp_path)]
    try:
        with _imported():
            assert main(words) != 0
            assert "entry.toml names the code evil," in capsys.readouterr().err
            assert not Path("marker").exists()
            assert main([*words, "--allow-code", "evil"]) == 0
    finally:
        plugins.offered.cache_clear()


def test_no_file_allows_its_own_code(monkeypatch, tmp_path, capsys):
    for section in ("extract", "fit"):
        text = Path("net.toml").read_text()
        Path("own.toml").write_text(
            text.replace(f"[{section}]", f'[{section}]\nallow_code = "{NET}"')
        )
        with pytest.raises(
            UsageError, match=rf"unknown key in \[{section}\] of own.toml 'allow_code'"
        ):
            find_recipes(["own.toml"])
    request = Plan.request
    monkeypatch.setattr(Plan, "request", lambda *a: {**request(*a), "allow_code": [NET]})
    words = ["extract", "--backbone", NET, "--data", "pictures", "--cache", str(tmp_path), *QUICK]
    assert main(words) == 0
    with _imported():
        assert main(["repair", *map(str, find_caches(tmp_path))]) == 2
        assert not Path("marker").exists()
    assert "unknown key in the record of" in capsys.readouterr().err


def test_the_record_of_a_network_leads_to_no_other_file():
    """A file that names itself would be opened for ever."""
    record = open_trained("net.safetensors", allow_code=(NET,)).record
    values = {**record.as_json(), "backbone": "net.safetensors"}
    with pytest.raises(ValueError, match="another file"):
        TrainedRecord.from_json(values)


def test_the_given_case(shared):
    file = shared / "cases" / "network-naming-code.safetensors"
    if not file.is_file():
        pytest.skip("the case is not there")
    with _imported(), pytest.raises(CodeError, match="network-naming-code.safetensors names"):
        list_layers(str(file))
