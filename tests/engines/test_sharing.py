"""Several devices, images resized on one, and memory: all with the CPU as the device."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from featx.backbones import BackboneGroup, open_backbone, open_backbones
from featx.engines import (
    LocalEngine,
    SeveralDevices,
    open_engine,
    resolve_devices,
)
from featx.engines.local import images_that_fit, pixel_bytes
from featx.errors import UsageError
from featx.memory import available_bytes
from featx.sources import open_data

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone():
    return open_backbone("squeezenet1_1", weights="random", overrides={"input_size": 64})


@pytest.fixture
def source(tmp_path):
    random = np.random.default_rng(0)
    for i in range(22):
        folder = tmp_path / "data" / ("a" if i % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i:02}.png")
    return open_data(tmp_path / "data")["all"]


def run(engine, backbone, source):
    return list(engine.run(backbone, source, range(-(-len(source) // engine.batch_size))))


def assert_same(parts, wanted):
    assert [part.start for part in parts] == [part.start for part in wanted]
    for part, other in zip(parts, wanted, strict=True):
        assert np.array_equal(part.features, other.features)
        assert dict(part.failed) == dict(other.failed)


@pytest.mark.parametrize("n", [2, 3])
def test_several_devices_give_what_one_gives(backbone, source, n):
    one = LocalEngine(CPU, "fp32", 4, 0)
    engine = SeveralDevices((one,) * n)
    assert engine.describe()["device"] == ", ".join(["cpu"] * n)
    assert_same(run(engine, backbone, source), run(one, backbone, source))


def test_an_error_on_one_device_reaches_the_caller(backbone, source):
    class Breaks(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, images):
            if threading.current_thread().name == "featx-device":
                raise RuntimeError("out of order")
            return self.network(images)

    broken = dataclasses.replace(backbone, network=Breaks(backbone.network))
    engine = SeveralDevices((LocalEngine(CPU, "fp32", 4, 0),) * 2)
    with pytest.raises(RuntimeError, match="out of order"):
        run(engine, broken, source)
    assert not [t for t in threading.enumerate() if t.name == "featx-device"]


def test_devices_stop_where_nobody_takes_their_batches(backbone, source):
    engine = SeveralDevices((LocalEngine(CPU, "fp32", 2, 0),) * 2)
    results = engine.run(backbone, source, range(11))
    next(results)
    results.close()
    assert not [t for t in threading.enumerate() if t.name == "featx-device"]


def test_lists_of_devices():
    assert resolve_devices(["cpu"]) == (CPU,)
    assert isinstance(open_engine([CPU], "fp32"), LocalEngine)
    shared = open_engine([CPU, CPU], "fp32", workers=4, images_per_batch=8)
    assert isinstance(shared, SeveralDevices)
    assert [engine.n_workers for engine in shared.engines] == [2, 2]
    with pytest.raises(UsageError, match="twice"):
        resolve_devices(["cpu", "cpu"])


def test_images_resized_on_the_device_are_the_same_pixels(backbone, source):
    plain = LocalEngine(CPU, "fp32", 8, 0)
    device = LocalEngine(CPU, "fp32", 8, 0, resize_on_device=True)
    assert_same(run(device, backbone, source), run(plain, backbone, source))


def test_a_batch_of_several_sizes_is_resized_by_the_workers(backbone, source, tmp_path):
    first, other = sorted((tmp_path / "data" / "a").iterdir())[:2]
    Image.open(other).resize((50, 40)).save(other)
    first.write_bytes(b"no image")
    mixed = open_data(tmp_path / "data")["all"]
    plain = LocalEngine(CPU, "fp32", 4, 0)
    device = LocalEngine(CPU, "fp32", 4, 2, resize_on_device=True)
    parts = run(device, backbone, mixed)
    assert [len(part.failed) for part in parts] == [1, 0, 0, 0, 0, 0]
    assert_same(parts, run(plain, backbone, mixed))


def test_the_batch_shrinks_with_the_memory():
    group = open_backbones("vgg16", weights="<outline>", overrides={"input_size": 224})
    most = images_that_fit(group, CPU, "fp32", 16, 1 << 40)
    assert most == 16
    sizes = [images_that_fit(group, CPU, "fp32", 16, n << 20) for n in (1, 100, 200, 400, 800)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert 1 < sizes[2] < 16


def test_a_small_memory_is_told(backbone):
    said = []
    engine = LocalEngine(CPU, tell=said.append, max_memory=1 << 20)
    fitted = engine.fitted_to(BackboneGroup.of(backbone))
    assert fitted.batch_size < 16
    assert said == [f"squeezenet1_1 at 64 pixels: {fitted.batch_size} images at once"]
    assert (
        LocalEngine(CPU, images_per_batch=5, max_memory=1)
        .fitted_to(BackboneGroup.of(backbone))
        .batch_size
        == 5
    )


def test_rows_that_are_there_decide_the_batch_size_unless_another_was_asked_for(backbone):
    group = BackboneGroup.of(backbone)
    for devices in ([CPU], [CPU, CPU]):
        engine = open_engine(devices, "fp32", workers=0).fitted_to(group)
        assert engine.going_on_with(group, 5).batch_size == 5
        assert engine.going_on_with(group, 1 << 60) is engine  # does not fit
        asked = open_engine(devices, "fp32", workers=0, images_per_batch=8)
        assert asked.going_on_with(group, 5).batch_size == 8
    one, other = open_engine([CPU, CPU], "fp32", workers=0).engines
    unlike = SeveralDevices((one, dataclasses.replace(other, max_memory=1)))
    assert unlike.going_on_with(group, 5) is unlike


def test_pixels_take_a_part_of_the_memory():
    assert pixel_bytes(1 << 20) == 1 << 18
    assert 0 < pixel_bytes(None) < available_bytes()
