"""Every runtime is held to PyTorch as it is."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from featx.backbones import open_backbone, open_backbones
from featx.backbones.base import BackboneGroup
from featx.engines import LocalEngine, resolve_runtime
from featx.engines.runtimes import forms, openvino
from featx.errors import BackboneError, MissingExtraError, UsageError
from featx.preprocess import Preprocessing
from featx.sources import open_data

CPU = torch.device("cpu")
NEEDS_OPENVINO = pytest.mark.skipif(
    not openvino.has_openvino(), reason="the extra openvino is not installed"
)
FAST = [pytest.param("openvino", marks=NEEDS_OPENVINO), "compile"]


@pytest.fixture(scope="module")
def source(photographs, tmp_path_factory):
    root = tmp_path_factory.mktemp("photos") / "photos"
    for i, path in enumerate(photographs[:14]):
        folder = root / ("first" if i % 2 else "second")
        folder.mkdir(exist_ok=True, parents=True)
        (folder / path.name).symlink_to(path)
    return open_data(root)["all"]


@pytest.fixture(scope="module")
def squeezenet(squeezenet_file):
    return open_backbone("squeezenet1_0", weights=str(squeezenet_file))


@pytest.fixture(scope="module")
def first_layers(squeezenet_file):
    """For runtimes that need long for each layer: torch.compile compiles C++ for it."""
    return open_backbone("squeezenet1_0", weights=str(squeezenet_file), layer="features.4")


def features(engine, backbone, source, batches=None, dtype="float32"):
    n_batches = -(-len(source) // engine.batch_size)
    wanted = range(n_batches) if batches is None else batches
    parts = list(engine.run(backbone, source, wanted, dtype=dtype))
    return np.concatenate([part.features for part in parts])


@pytest.mark.parametrize("runtime", FAST)
def test_float32_is_that_of_torch(squeezenet, first_layers, source, runtime):
    network = first_layers if runtime == "compile" else squeezenet
    wanted = features(LocalEngine(CPU, "fp32", 8, 0), network, source)
    mine = features(LocalEngine(CPU, "fp32", 8, 0, runtime=runtime), network, source)
    assert mine.dtype == np.float32
    assert mine.shape == wanted.shape == (14, network.n_features)
    assert np.abs(mine - wanted).max() <= 1e-5 * np.abs(wanted).max()


@NEEDS_OPENVINO
def test_an_equal_mean_and_deviation_are_converted(source):
    same = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "input_size": 64}
    network = open_backbone("squeezenet1_1", weights="random:3", overrides=same)
    wanted = features(LocalEngine(CPU, "fp32", 8, 0), network, source)
    mine = features(LocalEngine(CPU, "fp32", 8, 0, runtime="openvino"), network, source)
    assert np.abs(mine - wanted).max() <= 1e-5 * np.abs(wanted).max()


# OpenVINO asks the processor whether it has bfloat16, and this variable holds its kernels back.
NEEDS_KERNELS = pytest.mark.skipif(
    "ONEDNN_MAX_CPU_ISA" in os.environ, reason="ONEDNN_MAX_CPU_ISA is set"
)


@pytest.mark.parametrize(
    "runtime", [pytest.param("openvino", marks=[NEEDS_OPENVINO, NEEDS_KERNELS]), "compile"]
)
def test_bfloat16_is_as_near_to_float32_as_torchs(squeezenet, first_layers, source, runtime):
    network = first_layers if runtime == "compile" else squeezenet
    exact = features(LocalEngine(CPU, "fp32", 8, 0), network, source)
    by_torch = features(LocalEngine(CPU, "bf16", 8, 0), network, source)
    mine = features(LocalEngine(CPU, "bf16", 8, 0, runtime=runtime), network, source)
    error, allowed = (np.linalg.norm(f - exact, axis=1) for f in (mine, by_torch))
    assert (error > 0).all()
    assert (error <= 1.2 * allowed).all()


@NEEDS_OPENVINO
def test_openvino_gives_any_batch_alone_bit_for_bit(squeezenet, source):
    engine = LocalEngine(CPU, "fp32", 4, 0, runtime="openvino")
    whole = features(engine, squeezenet, source)
    assert np.array_equal(features(engine, squeezenet, source, [2]), whole[8:12])
    again = features(LocalEngine(CPU, "fp32", 4, 2, runtime="openvino"), squeezenet, source)
    assert np.array_equal(again, whole)


@NEEDS_OPENVINO
def test_signals_arrive_when_networks_were_opened_and_closed(first_layers, source):
    """Two cores of OpenVINO, the first one gone, would leave a freed stack for signals."""
    for _ in range(3):
        features(LocalEngine(CPU, "fp32", 16, 0, runtime="openvino"), first_layers, source)
        features(LocalEngine(CPU, "fp32", 8, 2, runtime="openvino"), first_layers, source)
    subprocess.run([sys.executable, "-c", ""], check=True)


@NEEDS_OPENVINO
def test_verify_and_the_transformer_and_saved_models_take_the_runtime(
    squeezenet_file, photographs, tmp_path, monkeypatch, capsys
):
    from featx import FeatureExtractor
    from featx.cli import main

    monkeypatch.chdir(tmp_path)
    name = ["--backbone", "squeezenet1_0", "--weights", str(squeezenet_file), "--pool", "avg"]
    fast = ["--runtime", "openvino"]
    assert main(["verify", *name, *fast, "--photographs", str(photographs[0]), "-b", "8"]) == 0
    assert "openvino, fp32" in capsys.readouterr().out
    options = {"weights": str(squeezenet_file), "pool": "avg"}
    paths = [str(path) for path in photographs[:5]]
    by_torch = FeatureExtractor("squeezenet1_0", **options).fit_transform(paths)
    extractor = FeatureExtractor("squeezenet1_0", runtime="openvino", **options).fit(paths)
    mine = extractor.transform(paths)
    assert extractor.identity_["runtime"] == "openvino"
    assert np.abs(mine - by_torch).max() <= 1e-5 * np.abs(by_torch).max()
    data = ["--data", "digits", "--per-class", "12", "--test-per-class", "3", "--input-size", "48"]
    assert main(["extract", *name, *fast, *data, "--quiet"]) == 0
    assert "-openvino.h5" in capsys.readouterr().out
    fit = ["fit", "--clf", "ncm", "--per-class", "10", "--repeats", "1", "--save-models", "--quiet"]
    assert main(fit) == 0
    [model] = (tmp_path / "reports" / "models").glob("*.safetensors")
    capsys.readouterr()
    assert main(["predict", "--model", str(model), str(photographs[0]), "--quiet"]) == 0
    assert photographs[0].name in capsys.readouterr().out


@NEEDS_OPENVINO
def test_several_layers_pooled_and_a_transformer(source):
    for name, layers, pool in (
        ("resnet18", ("layer2", "layer4"), "avg"),
        ("vit_b_32", (None,), "none"),
        ("timm/efficientnet_lite0", (None,), "max"),
    ):
        options = {"weights": "random", "overrides": {"input_size": 64}}
        group = open_backbones(name, layers=layers, pool=pool, **options)
        both = []
        for runtime in ("torch", "openvino"):
            engine = LocalEngine(CPU, "fp32", 16, 0, runtime=runtime)
            [parts] = engine.run_many(group, source, [0])
            both.append([part.features for part in parts])
        for wanted, mine in zip(*both, strict=True):
            assert np.abs(mine - wanted).max() <= 2e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("runtime", ["torch", *FAST])
def test_what_float16_cannot_hold_is_infinite(first_layers, source, runtime):
    large = dataclasses.replace(first_layers, network=Times(first_layers.network, 1e6))
    engine = LocalEngine(CPU, "fp32", 16, 0, runtime=runtime)
    mine = features(engine, large, source, dtype="float16")
    assert mine.dtype == np.float16
    assert np.isinf(mine).any()
    assert not np.isnan(mine).any()


class Times(nn.Module):
    def __init__(self, network, factor):
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, images):
        return self.network(images) * self.factor


class Unconvertible(nn.Module):
    def forward(self, images):
        return torch.special.airy_ai(images.mean((2, 3)))


@pytest.fixture
def odd(squeezenet):
    return dataclasses.replace(squeezenet, network=Unconvertible(), map_shape=(3,))


@NEEDS_OPENVINO
def test_a_network_whose_kernels_are_missing_says_what_to_do(squeezenet, source, monkeypatch):
    def fail(*_):
        raise RuntimeError("Supported primitive descriptors list is empty\nfor node: MaxPool")

    monkeypatch.setattr(openvino.core(), "compile_model", fail, raising=False)
    with pytest.raises(BackboneError, match=r"list is empty. Say --runtime torch"):
        features(LocalEngine(CPU, "bf16", 16, 0, runtime="openvino"), squeezenet, source)


@NEEDS_OPENVINO
def test_a_network_that_cannot_be_converted_says_what_to_do(odd, source):
    with pytest.raises(BackboneError, match=r"cannot be converted to OpenVINO.*--runtime torch"):
        features(LocalEngine(CPU, "fp32", 16, 0, runtime="openvino"), odd, source)


@NEEDS_OPENVINO
def test_auto_takes_torch_for_a_network_that_cannot_be_converted(odd, tmp_path, monkeypatch):
    from featx.extract import Plan, prepare
    from featx.progress import Reporter

    lines = []
    reporter = Reporter()
    monkeypatch.setattr(Reporter, "say", lambda self, text: lines.append(text))
    job = prepare(Plan(backbone=(), data="digits", runtime="auto", per_class=2), reporter)
    assert job.engine.runtime == "openvino"
    assert "runtime openvino (OpenVINO is installed" in "\n".join(lines)
    fitted = job.fitted_to(BackboneGroup.of(odd))
    assert fitted.engine.runtime == "torch"
    assert "cannot be converted" in lines[-1]


def test_the_runtime_is_part_of_what_made_a_cache_unless_it_is_torch():
    assert LocalEngine(CPU, "bf16").identity() == {"precision": "bf16"}
    other = LocalEngine(CPU, "bf16", runtime="openvino")
    assert other.identity() == {"precision": "bf16", "runtime": "openvino"}
    assert other.describe()["runtime"] == "openvino"


@NEEDS_OPENVINO
def test_runtimes_are_resolved_with_a_reason(monkeypatch):
    assert resolve_runtime("torch", CPU, "fp32") == ("torch", "as asked")
    assert resolve_runtime("auto", CPU, "fp32")[0] == "openvino"
    with pytest.raises(UsageError, match="did you mean openvino"):
        resolve_runtime("openvin", CPU, "fp32")
    with pytest.raises(UsageError, match="fp32 or bf16, not in fp16"):
        resolve_runtime("openvino", CPU, "fp16")
    with pytest.raises(UsageError, match="not on cuda:0"):
        resolve_runtime("openvino", torch.device("cuda", 0), "fp32")
    find = importlib.util.find_spec
    monkeypatch.setattr(openvino, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"featx\[openvino\]"):
        resolve_runtime("openvino", CPU, "fp32")
    assert find("openvino") is not None
    runtime, why = resolve_runtime("auto", CPU, "fp32", 100)
    assert (runtime, "do not repay" in why) == ("torch", True)
    assert resolve_runtime("auto", CPU, "fp32", 100_000)[0] == "compile"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert resolve_runtime("auto", CPU, "fp32", 100_000)[0] == "torch"
    with pytest.raises(UsageError, match=r"C\+\+ compiler"):
        resolve_runtime("compile", CPU, "fp32")


FORMS = forms.Form.choices(4, 2)


def runtime_of(squeezenet, *, n_expected=0):
    """A runtime of two threads, so that it has forms to choose from on any machine."""
    runtime = openvino.OpenVinoRuntime(
        BackboneGroup.of(squeezenet), "fp32", torch.float32, n_rows=4, n_threads=2
    )
    runtime.n_expected = n_expected
    return runtime


@pytest.fixture
def pixels():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, 224, 224, 3), generator=generator, dtype=torch.uint8)


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """A clock of the test's that the end of a turn moves on; nothing is remembered before."""
    monkeypatch.setenv("FEATX_DATA", str(tmp_path))
    clock = Clock()
    monkeypatch.setattr(forms, "time", clock)
    real = openvino._Program.wait

    def wait(program):
        real(program)
        clock.now += 0.02 if program.form == FORMS[0] else 0.01

    monkeypatch.setattr(openvino._Program, "wait", wait)
    return clock


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


class Racer:
    """Takes so long for its turns, one after the other."""

    def __init__(self, clock, *seconds):
        self.clock, self.seconds = clock, list(seconds)

    def wait(self):
        self.clock.now += self.seconds.pop(0)


@pytest.mark.parametrize(
    ("usual", "other", "winner"),
    [
        ((4, 4, 4), (3, 3, 3), 1),
        ((4, 4, 4), (5, 5, 5), 0),
        ((4, 4, 4), (3.95, 3.95, 3.95), 0),  # as good as equal
        ((4, 8, 2), (3, 6, 1.5), 1),  # the machine's speed changes
        ((4, 4, 4), (1, 5, 5), 0),  # one turn is no proof
    ],
)
def test_a_race_is_won_clearly_in_most_turns(monkeypatch, usual, other, winner):
    clock = Clock()
    monkeypatch.setattr(forms, "time", clock)
    racers = [Racer(clock, *usual), Racer(clock, *other)]
    best = []

    def race():
        best.append((yield from forms.raced(racers)))

    assert list(race()) == [racers[i // 4 % 2] for i in range(24)]
    assert best == [racers[winner]]


def test_forms_are_whole_batches_one_by_one_and_parts_of_them_side_by_side():
    assert list(FORMS) == [forms.Form("LATENCY", 4), forms.Form("THROUGHPUT", 2)]
    assert forms.Form.choices(16, 1) == [forms.Form("LATENCY", 16)]
    assert forms.Form.choices(15, 4)[-1] == forms.Form("THROUGHPUT", 3)
    assert forms.Form.choices(7, 64)[-1] == forms.Form("THROUGHPUT", 1)


def in_a_run(runtime, pixels, n_batches):
    """Features of a batch over and over, two of them under way; and the form of each."""
    waiting, found, used = [], [], []
    for _ in range(n_batches):
        waiting.append(runtime.start(pixels))
        used.append(runtime.form)
        if len(waiting) > 1:
            found.append(waiting.pop(0)()[0])
    return [*found, waiting.pop()()[0]], used


@NEEDS_OPENVINO
def test_the_fastest_form_is_found_once_and_remembered(small, small_pixels, clock):
    usual = runtime_of(small, n_expected=63)
    [wanted, _], used = in_a_run(usual, small_pixels, 2)
    assert used == [FORMS[0]] * 2  # so few batches do not repay it
    first = runtime_of(small, n_expected=64)
    found, used = in_a_run(first, small_pixels, 26)
    assert used == [FORMS[i // 4 % 2] for i in range(24)] + [FORMS[1]] * 2
    again = runtime_of(small, n_expected=64)
    more, used = in_a_run(again, small_pixels, 2)
    assert used == [FORMS[1]] * 2
    for rows in (*found, *more):
        assert np.array_equal(rows, wanted)
    again.memory.path.write_text("{}")
    _, used = in_a_run(runtime_of(small, n_expected=64), small_pixels, 6)
    assert {*used} == {*FORMS}


@NEEDS_OPENVINO
def test_a_run_goes_on_after_an_error_in_a_race(small, small_pixels, clock, monkeypatch):
    runtime = runtime_of(small, n_expected=64)
    [wanted, *_], _ = in_a_run(runtime, small_pixels, 3)
    with monkeypatch.context() as broken:
        broken.setattr(openvino._Program, "wait", Racer.wait)  # it lacks what that asks for
        with pytest.raises(AttributeError):
            in_a_run(runtime, small_pixels, 3)
    found, _ = in_a_run(runtime, small_pixels, 3)
    assert all(np.array_equal(rows, wanted) for rows in found)


@NEEDS_OPENVINO
def test_the_arrays_of_a_batch_stay_until_it_is_computed(small, small_pixels, monkeypatch):
    waited, real = [], openvino._Batch.wait
    monkeypatch.setattr(
        openvino._Batch, "wait", lambda batch: waited.append(len(batch.requests)) or real(batch)
    )
    runtime = runtime_of(small)
    runtime.start(small_pixels)  # nobody asks for the result
    assert waited == [1]
    first = runtime.start(small_pixels)()[0]
    kept = first.copy()
    assert not np.array_equal(runtime.start(255 - small_pixels)()[0], kept)
    assert np.array_equal(first, kept)


@pytest.fixture
def small():
    return open_backbone("squeezenet1_0", weights="random", overrides={"input_size": 64})


@pytest.fixture
def small_pixels(pixels):
    return pixels[:, :64, :64].contiguous()


@pytest.mark.parametrize(
    "change", ["other hint", "another's", "cut", "[]", "null", "[" * 100_000, "\0"], ids=repr
)
def test_a_record_that_is_broken_or_anothers_is_no_memory(tmp_path, monkeypatch, change):
    monkeypatch.setenv("FEATX_DATA", str(tmp_path))
    memory, other = (forms.FormMemory({"processor": name}) for name in "ab")
    assert memory.recall() is None
    for one in (memory, other):
        one.keep(FORMS[0])
        assert one.recall() == FORMS[0]
    text = memory.path.read_text()
    made = {
        "other hint": text.replace('"LATENCY"', '"THROUGHPUT"'),
        "another's": other.path.read_text(),
        "cut": text[:40],
    }
    memory.path.write_text(made.get(change, change))
    assert memory.recall() is None
    memory.keep(FORMS[1])
    assert memory.recall() == FORMS[1]


@NEEDS_OPENVINO
def test_a_form_whose_features_differ_in_a_bit_is_not_taken(
    small, small_pixels, clock, monkeypatch
):
    fetch = openvino._Program._fetch

    def differing(program, batch):
        [rows] = fetch(program, batch)
        return [np.nextafter(rows, np.inf) if program.form == FORMS[1] else rows]

    monkeypatch.setattr(openvino._Program, "_fetch", differing)
    _, used = in_a_run(runtime_of(small, n_expected=64), small_pixels, 26)
    assert {*used} == {FORMS[0]}


@NEEDS_OPENVINO
@pytest.mark.parametrize("name", ["squeezenet1_0", "timm/efficientnet_lite0", "resnet18"])
def test_every_form_gives_the_same_bits(name, pixels):
    """Caches say the runtime and no form: a run goes on in any of them."""
    backbone = open_backbone(name, weights="random", overrides={"input_size": 64})
    network, small = runtime_of(backbone)._network, pixels[:, :64, :64].contiguous().numpy()
    wanted, *others = [network.compiled(form).start(small)()[0] for form in FORMS]
    assert wanted.any()
    for found in others:
        assert np.array_equal(found, wanted)


@NEEDS_OPENVINO
def test_a_transformer_makes_its_network_ready_once(monkeypatch):
    from featx import FeatureExtractor
    from featx.engines import local
    from featx.extractor.open_networks import engine_once

    engine_once.cache_clear()
    opened, real = [], local.open_runtime
    monkeypatch.setattr(local, "open_runtime", lambda *a, **k: opened.append(a) or real(*a, **k))
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)
    options = {"weights": "random", "input_size": 48, "pool": "avg"}
    extractor = FeatureExtractor("resnet18", **options).fit(images)
    first = extractor.transform(images)
    assert np.array_equal(extractor.transform(images), first)
    assert np.array_equal(FeatureExtractor("resnet18", **options).fit_transform(images), first)
    assert len(opened) == 1
    FeatureExtractor("resnet18", runtime="openvino", **options).fit_transform(images)
    assert len(opened) == 2


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.conv(images)


def test_one_program_is_compiled_for_all_batches_however_they_come(source, squeezenet, tmp_path):
    """Warmed up, on devices in threads, enlarged on the device and by the workers."""
    for i in range(6):
        side = 20 if i < 4 else 21
        pixels = np.random.default_rng(i).integers(0, 256, (side, side, 3), np.uint8)
        path = tmp_path / "images" / "ab"[i // 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    small = open_data(tmp_path / "images")["all"]
    preprocessing = Preprocessing(40, 32, "bilinear", (0.5,) * 3, (0.25,) * 3)
    network, shape = Small().eval(), (4, 30, 30)
    backbone = dataclasses.replace(
        squeezenet, network=network, preprocessing=preprocessing, map_shape=shape
    )
    wanted = features(LocalEngine(CPU, "fp32", 2, 0), backbone, small)
    engine = LocalEngine(CPU, "fp32", 2, 0, runtime="compile", resize_on_device=True)
    stats = torch._dynamo.utils.counters["stats"]
    before = stats["unique_graphs"]
    engine.warm_up(BackboneGroup.of(backbone), "float32")
    assert stats["unique_graphs"] == before + 1
    mine = features(engine, backbone, small)
    np.testing.assert_allclose(mine, wanted, atol=1e-5)
    with ThreadPoolExecutor(1) as lane:
        assert np.array_equal(lane.submit(features, engine, backbone, small).result(), mine)
    assert stats["unique_graphs"] == before + 1
    assert not torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]


def test_openvino_reports_nothing_to_its_makers():
    pytest.importorskip("openvino", reason="needs featx[openvino]")
    code = (
        "import sys\n"
        "from featx.engines.runtimes.openvino import core; core()\n"
        "from openvino.tools.ovc import convert_impl\n"
        "print(convert_impl.tm.__name__, 'openvino_telemetry' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "False"]
