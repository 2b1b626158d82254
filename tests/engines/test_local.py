from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torchvision import models

from featx.backbones import open_backbone
from featx.engines import LocalEngine, resolve_device, resolve_precision
from featx.errors import BackboneError, UsageError
from featx.sources import open_data

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photo_source(photographs, tmp_path_factory):
    """The real photographs as a data set of two classes."""
    root = tmp_path_factory.mktemp("photos")
    for i, path in enumerate(photographs):
        folder = root / ("first" if i % 2 else "second")
        folder.mkdir(exist_ok=True)
        (folder / path.name).symlink_to(path)
    return root, open_data(root)["all"]


@pytest.fixture(scope="module")
def squeezenet(squeezenet_file):
    return open_backbone("squeezenet1_0", weights=str(squeezenet_file))


@pytest.fixture(scope="module")
def reference(photo_source, squeezenet_file):
    """One image at a time, through torchvision's transform and whole network."""
    root, source = photo_source
    network = models.squeezenet1_0()
    network.load_state_dict(torch.load(squeezenet_file, weights_only=True))
    network.eval()
    transform = models.SqueezeNet1_0_Weights.IMAGENET1K_V1.transforms()
    with torch.inference_mode():
        return np.stack(
            [
                network.features(transform(Image.open(root / path).convert("RGB"))[None])
                .flatten()
                .numpy()
                for path in source.paths
            ]
        )


def run(engine, backbone, source, batches=None):
    n_batches = -(-len(source) // engine.batch_size)
    return list(engine.run(backbone, source, range(n_batches) if batches is None else batches))


def rows(results):
    return np.concatenate([result.features for result in results])


class SmallMemory(torch.nn.Module):
    """Runs out of memory as CUDA does, with more than some images at once."""

    def __init__(self, network, most):
        super().__init__()
        self.network, self.most, self.seen = network, most, []

    def forward(self, images):
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.seen.append(len(images))
        return self.network(images)


def test_too_little_memory_halves_what_is_run_at_once(photo_source, squeezenet, reference):
    network, said = SmallMemory(squeezenet.network, 5), []
    small = dataclasses.replace(squeezenet, network=network)
    engine = LocalEngine(CPU, "fp32", 16, 0, said.append)
    np.testing.assert_allclose(rows(run(engine, small, photo_source[1])), reference, atol=2e-3)
    assert said == [
        "cpu has too little memory: 8 images at once from now on",
        "cpu has too little memory: 4 images at once from now on",
    ]
    assert network.seen == [4] * 12  # three batches of 16, the last one padded


def test_a_network_that_never_fits_says_what_to_do(photo_source, squeezenet):
    none = dataclasses.replace(squeezenet, network=SmallMemory(squeezenet.network, 0))
    engine = LocalEngine(CPU, "fp32", 4, 0, str)
    with pytest.raises(BackboneError, match=r"not even with one image at once.*--device cpu"):
        run(engine, none, photo_source[1])


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (7, 1), (64, 2)])
def test_features_equal_the_reference_path(
    photo_source, squeezenet, reference, batch_size, workers
):
    engine = LocalEngine(CPU, "fp32", batch_size, workers)
    features = rows(run(engine, squeezenet, photo_source[1]))
    assert features.dtype == np.float32
    assert np.abs(features - reference).max() <= 1e-5 * np.abs(reference).max()


def test_any_batch_alone_is_what_it_is_among_all_bit_for_bit(photo_source, squeezenet):
    source = photo_source[1]
    engine = LocalEngine(CPU, "fp32", 16, 0)
    whole = run(engine, squeezenet, source)
    assert [(part.start, len(part.features)) for part in whole] == [(0, 16), (16, 16), (32, 8)]
    again = run(LocalEngine(CPU, "fp32", 16, 2), squeezenet, source, batches=[2, 0])
    for part, number in zip(again, (2, 0), strict=True):
        assert np.array_equal(part.features, whole[number].features)


def test_the_padding_of_the_last_batch_changes_nothing(photo_source, squeezenet):
    source = photo_source[1].take(np.arange(20))
    features = rows(run(LocalEngine(CPU, "fp32", 16, 0), squeezenet, source))
    longer = rows(run(LocalEngine(CPU, "fp32", 16, 0), squeezenet, photo_source[1]))
    assert np.array_equal(features, longer[:20])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_stays_close(photo_source, squeezenet, reference, precision):
    source = photo_source[1].take(np.arange(16))
    features = rows(run(LocalEngine(CPU, precision, 16, 0), squeezenet, source))
    error = np.linalg.norm(features - reference[:16]) / np.linalg.norm(reference[:16])
    assert 1e-6 < error < {"bf16": 0.04, "fp16": 0.005}[precision]


def test_an_unreadable_image_is_reported_and_shifts_nothing(tmp_path, photographs, squeezenet):
    for name in "ab":
        (tmp_path / name).mkdir()
    for i, path in enumerate(photographs[:6]):
        (tmp_path / "ab"[i % 2] / f"{i}.jpg").write_bytes(path.read_bytes())
    source = open_data(tmp_path)["all"]
    good = rows(run(LocalEngine(CPU, "fp32", 4, 0), squeezenet, source))
    (tmp_path / "a" / "2.jpg").write_bytes(b"<html>")
    (tmp_path / "b" / "5.jpg").write_bytes(photographs[5].read_bytes()[:3000])
    parts = run(LocalEngine(CPU, "fp32", 4, 2), squeezenet, source)
    failed = {row: reason for part in parts for row, reason in part.failed.items()}
    bad = {source.paths.index("a/2.jpg"), source.paths.index("b/5.jpg")}
    assert set(failed) == bad
    assert all(failed.values())
    kept = [row for row in range(6) if row not in bad]
    assert np.array_equal(rows(parts)[kept], good[kept])


MEMORY_SCRIPT = """
import numpy as np, psutil, torch
from featx.backbones import open_backbone
from featx.engines import LocalEngine
from featx.sources import ArraySource
n = 3200
source = ArraySource(name="x", split="all", class_names=("a",), labels=np.zeros(n, np.int64),
                     paths=tuple(str(i) for i in range(n)), rows=np.arange(n),
                     pixels=np.zeros((n, 8, 8, 3), np.uint8))
backbone = open_backbone("squeezenet1_1", weights="random", overrides={"input_size": 64})
engine = LocalEngine(torch.device("cpu"), "fp32", 16, 1)
for part in engine.run(backbone, source, range(n // 16)):
    print(psutil.Process().memory_info().rss)
"""


def test_memory_does_not_grow_with_the_number_of_images():
    command = [sys.executable, "-c", MEMORY_SCRIPT]
    # Freed blocks go back to the system at once, so that the figure shows what is held.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    used = [int(line) for line in result.stdout.split()]
    # 100 batches of features are 30 MB,
    # with their pixels, as uint8 and as float32, 128 MB.
    assert max(used[100:]) - max(used[:100]) < 15e6


def test_workers_end_with_the_run(photo_source, squeezenet):
    before = {child.pid for child in psutil.Process(os.getpid()).children(recursive=True)}
    results = LocalEngine(CPU, "fp32", 16, 2).run(squeezenet, photo_source[1], range(3))
    next(results)
    results.close()
    left = {child.pid for child in psutil.Process(os.getpid()).children(recursive=True)}
    assert left <= before


def test_devices():
    assert resolve_device("cpu") == CPU
    if not torch.cuda.is_available():
        assert resolve_device("auto") == CPU
        with pytest.raises(UsageError, match="no CUDA device.*--device auto"):
            resolve_device("cuda")
    for name in ("gpu", "cuda:x", "cpu:", "cuda:99"):
        with pytest.raises(UsageError, match="device"):
            resolve_device(name)


def test_precision_auto_gives_its_reason():
    precision, why = resolve_precision("auto", CPU)
    assert precision in ("fp32", "bf16")
    assert "processor" in why
    assert resolve_precision("fp32", CPU)[0] == "fp32"
    with pytest.raises(UsageError, match="bf16"):
        resolve_precision("fp8", CPU)


@pytest.mark.parametrize("options", [{"images_per_batch": 0}, {"workers": -1}])
def test_sizes_out_of_range_are_refused(options):
    with pytest.raises(UsageError, match="at least"):
        LocalEngine(CPU, **options)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.04), ("fp16", 0.005)]
)
def test_a_gpu_gives_the_reference_within_tolerance(
    photo_source, squeezenet, reference, precision, tolerance
):
    engine = LocalEngine(resolve_device("cuda"), precision, 16, 2)
    features = rows(run(engine, squeezenet, photo_source[1]))
    squeezenet.network.to("cpu")
    assert np.linalg.norm(features - reference) <= tolerance * np.linalg.norm(reference)
