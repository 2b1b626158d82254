"""Networks of the user's own: functions, entry points, checkpoints."""

from __future__ import annotations

import importlib.metadata
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from heard import Log
from PIL import Image
from torch import nn
from torchvision import models

import featx
from featx import FeatureExtractor, plugins
from featx.backbones import available_backbones, list_layers, open_backbone
from featx.backbones.recipe import preprocessing_from_options
from featx.cli import main
from featx.errors import BackboneError, ModelError, UsageError, WeightsError
from featx.network_names import GROUP

MODULE = '''
import torch
from torch import nn
from torchvision import models
from featx.errors import WeightsError
from featx.preprocess import Preprocessing

PREPROCESSING = Preprocessing(36, 32, "bilinear", (0.5,) * 3, (0.25,) * 3, "mine")
TIMM = {"input_size": (3, 32, 32), "crop_pct": 0.9, "interpolation": "bicubic",
        "mean": (0.4,) * 3, "std": (0.2,) * 3}
NUMBER = 3

def small():
    return models.squeezenet1_1(num_classes=7), PREPROCESSING

def of_timm_kind():
    return models.squeezenet1_1(), TIMM

def of_torchvision_kind():
    return models.squeezenet1_1(), models.SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms()

def not_square():
    return models.squeezenet1_1(), TIMM | {"input_size": (3, 32, 48)}

def not_square_in_torchvision():
    transform = models.ViT_B_16_Weights.IMAGENET1K_V1.transforms(crop_size=[224, 160])
    return models.squeezenet1_1(), transform

def bare():
    return models.squeezenet1_1()

def at_a_layer():
    return models.resnet18(), PREPROCESSING, "layer2"

def headless():
    network = models.resnet18()
    network.fc = nn.Identity()
    return network, PREPROCESSING

def in_parallel():
    return nn.DataParallel(models.squeezenet1_1(num_classes=7)), PREPROCESSING

def compiled():
    return torch.compile(nn.DataParallel(models.squeezenet1_1(num_classes=7))), PREPROCESSING

def as_average():
    plain = models.squeezenet1_1(num_classes=7)
    return torch.optim.swa_utils.AveragedModel(plain), PREPROCESSING

class Turns(nn.Module):
    """Cannot be traced, and returns a dictionary."""
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.block = nn.ReLU(inplace=True)
    def forward(self, images):
        mapped = self.block(self.stem(images))
        return {"map": mapped} if mapped.mean() > 1e9 else {"map": -mapped}

def turns():
    return Turns(), PREPROCESSING

class Tokens(nn.Module):
    num_prefix_tokens = 2
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 8, 8)
        self.prefix = nn.Parameter(torch.ones(1, 2, 6))
        self.norm = nn.LayerNorm(6)
        self.fc = nn.Linear(6, 2)
    def forward(self, images):
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(images), -1, -1), tokens], 1)
        return self.fc(self.norm(tokens)[:, 0])

def tokens():
    return Tokens(), PREPROCESSING

def wrong():
    return 3, PREPROCESSING

def too_many():
    return models.squeezenet1_1(), PREPROCESSING, "features", 4

def odd_preprocessing():
    return models.squeezenet1_1(), "imagenet"

def partial_preprocessing():
    return models.squeezenet1_1(), {"input_size": (3, 32, 32)}

def fails():
    raise OSError("no such disk")

def fails_on_purpose():
    raise WeightsError("give it a file")

class Holder:
    @staticmethod
    def inner():
        return small()
'''


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory):
    """A module in the current folder, as somebody has it who runs featx there."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "my_networks.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [p for p in sys.path if p])
        yield folder
    sys.modules.pop("my_networks", None)


def test_a_function_gives_the_network_and_its_preprocessing():
    state = torch.random.get_rng_state()
    backbone = open_backbone("my_networks:small")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert backbone.name == "my_networks:small"
    assert backbone.preprocessing.describe().endswith("(mine)")
    assert (backbone.layer, backbone.feature_shape) == ("features", (512, 1, 1))
    assert (backbone.weights.label, backbone.weights.is_default) == ("own", True)
    assert not backbone.network.training
    again = open_backbone("my_networks:small")
    assert again.identity() == backbone.identity()
    points, default = list_layers("my_networks:small")
    assert (len(points) > 10, default) == (True, "features")


@pytest.mark.parametrize("name", ["in_parallel", "compiled", "as_average"])
def test_what_only_runs_a_network_is_taken_off(name):
    plain, other = open_backbone("my_networks:small"), open_backbone(f"my_networks:{name}")
    assert other.layer == plain.layer
    assert other.weights.sha256 == plain.weights.sha256
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(other.network(images), plain.network(images))


@pytest.mark.parametrize("name", ["not_square", "not_square_in_torchvision"])
def test_an_input_that_is_not_square_is_refused(name):
    with pytest.raises(UsageError, match=r"(32 x 48|224 x 160), and featx gives square images"):
        open_backbone(f"my_networks:{name}")


@pytest.mark.parametrize(
    ("name", "resize", "crop"), [("of_timm_kind", 35, 32), ("of_torchvision_kind", 256, 224)]
)
def test_other_kinds_of_preprocessing_are_read(name, resize, crop):
    preprocessing = open_backbone(f"my_networks:{name}").preprocessing
    assert (preprocessing.resize_px, preprocessing.crop_px) == (resize, crop)


def test_a_network_alone_must_be_given_its_preprocessing():
    with pytest.raises(UsageError, match="not known.*--mean R G B --std R G B --input-size N"):
        open_backbone("my_networks:bare")
    overrides = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": 64}
    backbone = open_backbone("my_networks:bare", overrides=overrides)
    assert backbone.preprocessing.describe() == (
        "resize 73 bilinear, centre crop 64, mean 0.5 0.5 0.5, std 0.5 0.5 0.5 (given by options)"
    )
    squeezed = preprocessing_from_options("x", overrides | {"crop_pct": 1.0})
    assert squeezed.resize_px == 64
    with pytest.raises(UsageError, match="give --std R G B$"):
        preprocessing_from_options("x", {"mean": (0.5,) * 3, "input_size": 64})


def test_the_layer_may_be_named_and_a_headless_network_needs_none():
    assert open_backbone("my_networks:at_a_layer").layer == "layer2"
    headless = open_backbone("my_networks:headless")
    assert (headless.layer, headless.feature_shape) == ("layer4", (512, 1, 1))


def test_a_network_that_cannot_be_traced_wants_a_layer():
    with pytest.raises(UsageError, match="choose one with --layer") as caught:
        open_backbone("my_networks:turns")
    assert "stem, block" in caught.value.__notes__[0]
    backbone = open_backbone("my_networks:turns", layer="stem")
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert backbone.features(images).min() < 0  # before the ReLU in place
    points, default = list_layers("my_networks:turns")
    assert ([p.name for p in points], default) == (["stem", "block"], None)


def test_a_transformer_may_tell_its_prefix():
    backbone = open_backbone("my_networks:tokens", layer="norm", pool="avg")
    assert backbone.n_prefix_tokens == 2
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        tokens = backbone.network(images)
        assert tokens.shape == (2, 18, 6)
        assert torch.equal(backbone.features(images), tokens[:, 2:].mean(1))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("no_such_module:small", UsageError, "cannot be imported: ModuleNotFoundError"),
        ("my_networks:smal", UsageError, "unknown function of my_networks 'smal': did you mean sm"),
        ("my_networks:NUMBER", UsageError, "is a int, not a function"),
        ("my_networks:wrong", BackboneError, r"returns \(int, Preprocessing\): it must return"),
        ("my_networks:too_many", BackboneError, "it must return"),
        ("my_networks:odd_preprocessing", UsageError, "returns a str as its preprocessing"),
        ("my_networks:partial_preprocessing", UsageError, "lacks 'crop_pct'"),
        ("my_networks:fails", BackboneError, "failed: OSError: no such disk"),
        ("my_networks:fails_on_purpose", WeightsError, "^give it a file$"),
        ("network.pt", WeightsError, "any code.*--backbone module:function"),
        ("network.pt2", WeightsError, "any code.*--weights FILE"),
        ("tiny_resnet", UsageError, "unknown backbone"),
    ],
)
def test_bad_input_is_one_line(name, error, message):
    with pytest.raises(error, match=message) as caught:
        open_backbone(name)
    assert "\n" not in str(caught.value)


def test_random_weights_are_the_functions_own_business():
    with pytest.raises(UsageError, match="leave --weights out, or give a file"):
        open_backbone("my_networks:small", weights="random")


def test_an_attribute_of_a_class_is_found():
    assert open_backbone("my_networks:Holder.inner").n_features == 512


def test_an_entry_point_is_a_backbone_like_any_other(monkeypatch):
    group = GROUP
    points = [
        importlib.metadata.EntryPoint("my_squeezenet", "my_networks:small", group),
        importlib.metadata.EntryPoint("resnet18", "my_networks:fails", group),
    ]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    plugins.offered.cache_clear()
    try:
        assert "my_squeezenet" in available_backbones()
        assert available_backbones().count("resnet18") == 1
        assert open_backbone("my_squeezenet").name == "my_squeezenet"
        # An installed package takes no name away from torchvision.
        assert open_backbone("resnet18", weights="random").weights.label == "random:0"
    finally:
        plugins.offered.cache_clear()


# ---------------------------------------------------------------- checkpoints


def trained(n_classes):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return models.resnet18(num_classes=n_classes).eval()


@pytest.mark.parametrize("kind", ["smaller", "deeper", "none"])
def test_a_checkpoint_with_another_classifier_loads_and_says_so(tmp_path, kind):
    network = trained(10)
    if kind == "deeper":
        network.fc = nn.Sequential(nn.Dropout(), nn.Linear(512, 64), nn.Linear(64, 3))
    if kind == "none":
        network.fc = nn.Identity()
    wrapped = {"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}
    torch.save(wrapped, tmp_path / "mine.pth")
    log = Log()
    backbone = open_backbone("resnet18", weights=str(tmp_path / "mine.pth"), reporter=log)
    text = "\n".join(log.lines)
    assert "its classifier (fc) is another one than resnet18's, or empty, and is not" in text
    assert "'state_dict'" in text
    assert "'module.'" in text
    assert "that of resnet18 IMAGENET1K_V1 is assumed" in text
    assert len(backbone.weights.file_sha256) == 64
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        whole = nn.Sequential(*list(network.children())[:-2])
        assert torch.equal(backbone.features(images), whole(images).flatten(1))


def test_nothing_is_tapped_in_a_classifier_that_was_not_loaded(tmp_path):
    path = tmp_path / "mine.pth"
    torch.save(trained(10).state_dict(), path)
    assert open_backbone("resnet18", weights=str(path), layer="avgpool").n_features == 512
    with pytest.raises(WeightsError, match="fc is, or lies behind, the classifier.*mine.pth"):
        open_backbone("resnet18", weights=str(path), layer="fc")
    torch.save(trained(1000).state_dict(), path)
    assert open_backbone("resnet18", weights=str(path), layer="fc").n_features == 1000


def test_a_given_mean_and_std_are_not_assumed(tmp_path):
    torch.save(trained(1000).state_dict(), tmp_path / "mine.pth")
    log = Log()
    overrides = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    open_backbone("resnet18", weights=str(tmp_path / "mine.pth"), overrides=overrides, reporter=log)
    assert log.lines == []


def test_another_body_is_an_error_that_names_keys(tmp_path):
    torch.save(models.resnet34().state_dict(), tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"unexpected \(layer1\.2\.conv1\.weight"):
        open_backbone("resnet18", weights=str(tmp_path / "other.pth"))
    torch.save({"fc.weight": torch.zeros(2, 512)}, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match=r"missing \(conv1\.weight, bn1\.weight"):
        open_backbone("resnet18", weights=str(tmp_path / "part.pth"))


def test_a_function_takes_a_checkpoint_too(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = models.squeezenet1_1(num_classes=3).eval()
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    log = Log()
    backbone = open_backbone("my_networks:small", weights=str(tmp_path / "mine.pth"), reporter=log)
    assert "classifier is another one" in log.lines[0]
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(backbone.features(images), network.features(images).flatten(1))


# ---------------------------------------------------------------- changed code

CODE = """
import torch
from torch import nn
from featx.preprocess import Preprocessing
from parts import Scaled

def net():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), Scaled(), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers), Preprocessing(16, 16, "bilinear", (0.5,) * 3, (0.5,) * 3), "2"
"""
PARTS = """
from torch import nn

class Scaled(nn.Module):
    def forward(self, images):
        return images * 1.0
"""


def write_code(name, text):
    """As it is found by a new process."""
    Path(name).write_text(text)
    for module in ("changing", "parts"):
        sys.modules.pop(module, None)


@pytest.fixture
def changing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [part for part in sys.path if part])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    write_code("parts.py", PARTS)
    write_code("changing.py", CODE)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for i in range(2):
                image = Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8))
                image.save(tmp_path / "pictures" / split / name / f"{i}.png")
    yield image
    write_code("parts.py", PARTS)


DOUBLED = PARTS.replace("1.0", "2.0")


def test_a_cache_of_changed_code_is_not_complete_already(changing, capsys):
    """The tensors are the same ones; only what is done with them is another."""
    words = ["extract", "--backbone", "changing:net", "--data", "pictures", "--store-dtype"]
    words += ["float32", "--device", "cpu", "--workers", "0", "--quiet"]
    assert main(words) == 0
    assert main(["fit", "--clf", "ncm", "--per-class", "2", "--save-models", "--quiet"]) == 0
    before = featx.load("changing:net", split="train")
    features = before.X[:]
    write_code("parts.py", PARTS)  # nothing has changed
    assert main(words) == 0
    assert "complete already" in capsys.readouterr().out
    write_code("parts.py", DOUBLED)
    for more in ([], ["--append"]):
        assert main([*words, *more]) == 1
        assert "source_sha256" in capsys.readouterr().err
    (model,) = Path("reports/models").iterdir()
    with pytest.raises(ModelError, match="takes other features.*source_sha256"):
        featx.load_model(model).predict_images([changing], backbone="changing:net")
    assert main([*words, "--overwrite"]) == 0
    after = featx.load("changing:net", split="train")
    np.testing.assert_allclose(after.X[:], 2 * features, rtol=1e-6)


def test_an_extractor_in_the_same_process_sees_code_that_is_loaded_again(changing, tmp_path):
    kept = {"memory": tmp_path / "memory"}
    old = FeatureExtractor("changing:net", **kept).fit([changing])
    before = old.transform([changing])
    Path("parts.py").write_text(DOUBLED)  # Python runs what it has loaded
    assert np.array_equal(
        FeatureExtractor("changing:net", **kept).fit_transform([changing]), before
    )
    importlib.reload(sys.modules["parts"])
    importlib.reload(sys.modules["changing"])
    after = FeatureExtractor("changing:net", **kept).fit_transform([changing])
    np.testing.assert_allclose(after, 2 * before, rtol=1e-6)
    with pytest.raises(WeightsError, match="source_sha256. Fit it again"):
        old.transform([changing])


def test_code_without_a_file_is_known_to_its_process_only(changing, monkeypatch):
    """A function of a notebook, defined again."""
    notebook = types.ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", notebook)
    exec(CODE.replace("from parts", "# from parts") + PARTS, notebook.__dict__)
    before = FeatureExtractor("notebook:net").fit([changing])
    assert np.array_equal(before.transform([changing]), before.transform([changing]))
    exec(CODE.replace("from parts", "# from parts") + DOUBLED, notebook.__dict__)
    after = FeatureExtractor("notebook:net").fit([changing])
    assert after.identity_["source_sha256"] != before.identity_["source_sha256"]
    with pytest.raises(WeightsError, match="fitted: source_sha256"):
        before.transform([changing])


@pytest.mark.parametrize("name", ["squeezenet1_1", "efficientnet_lite0", "timm/resnet18"])
def test_networks_of_libraries_have_no_source(name):
    """Their identities, and the names of caches, are what they were."""
    identity = open_backbone(name, weights="random").identity()
    names = ["backbone", "weights_sha256", "preprocessing", "input_size", "point"]
    assert list(identity) == names


def test_what_the_code_reads_elsewhere_is_no_longer_what_it_was(changing):
    """Tensors and settings that lie in files beside the source, which is the same."""
    Path("kind").write_text("ReLU")
    torch.save(nn.Conv2d(3, 4, 3).state_dict(), "own.pth")
    more = "layers[0].load_state_dict(torch.load('own.pth'))\n    layers = layers[0], "
    more += "getattr(nn, Path('kind').read_text())(), layers[2]\n    return nn.Seq"
    own = CODE.replace("return nn.Seq", more)
    write_code("changing.py", f"from pathlib import Path\n{own}")
    before = FeatureExtractor("changing:net").fit([changing])
    Path("kind").write_text("Tanh")
    settings = FeatureExtractor("changing:net").fit([changing])
    assert settings.identity_["source_sha256"] != before.identity_["source_sha256"]
    torch.save(nn.Conv2d(3, 4, 3).state_dict(), "own.pth")
    tensors = FeatureExtractor("changing:net").fit([changing])
    assert tensors.identity_["weights_sha256"] != settings.identity_["weights_sha256"]


def test_code_edited_after_python_loaded_it_is_not_taken_for_what_runs(changing, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    write_code("changing.py", CODE)
    module = importlib.import_module("changing")
    Path("changing.py").write_text(CODE.replace("Scaled()", "nn.Tanh()"))
    runs = plugins.Imported(None, module).source_sha256
    importlib.reload(module)
    now = plugins.Imported(None, module).source_sha256
    assert runs != now == plugins.Imported(None, module).source_sha256
