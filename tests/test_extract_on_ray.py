"""Extractions by workers of a local Ray cluster: the files are those of one process."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from one_thread import one_thread
from small_photos import make_photos

import featx
from featx.cli import main
from featx.extract import Plan, on_ray
from featx.progress import Reporter
from featx.store import Cache, ShardedCache, verify_file

ray = pytest.importorskip("ray", reason="needs featx[ray]")

N_IMAGES = 44
LAYERS = ("features.3", "features")
ON_RAY = ("--engine", "ray", "--shard-rows", "4")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """As the other processes of these tests have."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from torchvision.models import squeezenet1_1

    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        torch.save(squeezenet1_1(weights=None).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of small photographs, of which one is broken."""
    root = make_photos(tmp_path_factory.mktemp("photos"), {"a": (40, 50), "b": (50, 40)}, 22)
    broken = root / "b" / "7.png"
    broken.write_bytes(broken.read_bytes()[:100])
    return root


def words(photos: Path, weights: Path, cache: Path) -> list[str]:
    asked = ["extract", "--backbone", "squeezenet1_1", "--weights", str(weights), "--data"]
    asked += [str(photos), "--input-size", "48", "--pool", "avg", "--batch-size", "4"]
    return [*asked, "-j", "0", "-q", "--cache", str(cache)]


def compare(here: Path, there: Path) -> None:
    """Whether the places of one folder hold the rows of the caches of another."""
    names = sorted(path.stem for path in here.glob("*.h5"))
    assert sorted(path.stem for path in there.glob("*.shards")) == names
    for name in names:
        assert verify_file(there / f"{name}.shards") == []
        with (
            Cache.open(here / f"{name}.h5") as one,
            ShardedCache.open(there / f"{name}.shards") as other,
        ):
            assert other.fingerprint == one.fingerprint
            np.testing.assert_array_equal(other.X[:], one.X[:])
            np.testing.assert_array_equal(other.status, one.status)
            np.testing.assert_array_equal(other.image_digests, one.image_digests)
            assert (other.errors, other.paths) == (one.errors, one.paths)
            np.testing.assert_array_equal(other.y, one.y)


@pytest.fixture(scope="module")
def local(photos: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    assert main([*words(photos, weights, folder), "--layer", *LAYERS]) == 0
    return folder


def test_shards_are_the_rows_of_one_process(
    local_ray: None,
    photos: Path,
    weights: Path,
    local: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path.parent)
    asked = [*words(photos, weights, Path(tmp_path.name)), "--layer", *LAYERS, *ON_RAY]
    assert main(asked) == 0
    told = capsys.readouterr()
    assert told.out.count(".h5: 4 x ") == 22
    assert told.out.count("in 11 shards, complete, 1 image could not be read") == 2
    compare(local, tmp_path)
    assert main(asked) == 0
    assert "11 shards finished before, every byte as written" in capsys.readouterr().out


def test_a_place_of_shards_is_fitted_there(
    local_ray: None, photos: Path, weights: Path, local: Path, tmp_path: Path
) -> None:
    place = tmp_path / "cache"
    shards = ["--layer", *LAYERS, "--shard", "1/1", "--shard-rows", "16"]
    assert main([*words(photos, weights, place), *shards]) == 0
    asked = ["fit", "--per-class", "4", "--repeats", "2", "--near", "off", "-q"]
    assert main([*asked, "--cache", str(local), "--reports", str(tmp_path / "here")]) == 0
    asked += ["--engine", "ray"]
    assert main([*asked, "--cache", str(place), "--reports", str(tmp_path / "there")]) == 0
    tables = [featx.results(tmp_path / name) for name in ("here", "there")]
    names = ["layer", "seed", "C", "acc1", "auroc", "train_acc1", "fit_id"]
    assert len(tables[0]) == 4
    assert tables[1][names].equals(tables[0][names])


def start(asked: list[str]) -> subprocess.Popen[str]:
    """Run a command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "featx", *asked],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_for_shards(folder: Path, n: int, driver: subprocess.Popen[str]) -> None:
    """Wait until some shards are finished, and not all."""
    while len([*folder.glob("*.shards/*/rows-*.h5")]) < n:
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def large(photos: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of larger images, which take longer."""
    folder = tmp_path_factory.mktemp("large")
    assert main([*words(photos, weights, folder), "--input-size", "320"]) == 0
    return folder


def asked_of(photos: Path, weights: Path, folder: Path, address: str) -> list[str]:
    asked = [*words(photos, weights, folder), "--input-size", "320"]
    return [*asked, *ON_RAY, "--address", address]


def workers_of(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """Processes of this machine's Ray that extract; those of others are asleep or elsewhere."""
    every = psutil.Process().children(recursive=True)
    every += psutil.Process(driver.pid).children(recursive=True)
    return [one for one in every if one.name().startswith("ray::_Worker")]


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_nothing(
    local_ray: None, photos: Path, weights: Path, large: Path, tmp_path: Path
) -> None:
    driver = start(asked_of(photos, weights, tmp_path, ray.get_runtime_context().gcs_address))
    wait_for_shards(tmp_path, 1, driver)
    for worker in workers_of(driver)[:2]:
        worker.kill()
    out, _ = driver.communicate(timeout=100)
    assert driver.returncode == 0, out
    assert "a worker was lost, another takes its place" in out
    compare(large, tmp_path)


@pytest.mark.slow
def test_a_driver_that_is_killed_goes_on_and_doubles_nothing(
    local_ray: None, photos: Path, weights: Path, large: Path, tmp_path: Path
) -> None:
    asked = [*asked_of(photos, weights, tmp_path, ray.get_runtime_context().gcs_address), "--json"]
    driver = start(asked)
    wait_for_shards(tmp_path, 2, driver)
    driver.kill()
    driver.communicate()
    again = start(asked)
    out, _ = again.communicate(timeout=100)
    assert again.returncode == 0, out
    reports = json.loads(out[out.index("[") :])
    assert 0 < sum(report["n_computed"] for report in reports) <= N_IMAGES - 8
    compare(large, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_driver_that_is_stopped_says_how_to_go_on(
    number: int, code: int, photos: Path, weights: Path, tmp_path: Path
) -> None:
    """Also where it began a Ray of its own, which ends with it."""
    driver = start(asked_of(photos, weights, tmp_path, "local"))
    wait_for_shards(tmp_path, 1, driver)
    ours = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(number)
    out, _ = driver.communicate(timeout=100)
    assert driver.returncode == code, out
    assert "what was done is kept, go on with:  featx extract" in out
    assert "Traceback" not in out
    assert psutil.wait_procs(ours, timeout=30)[1] == []


def test_what_is_for_one_process_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    asked = ["extract", "--backbone", "vgg16", "--data", "digits", "--cache", str(tmp_path / "c")]
    for more, text in [
        (["--address", "auto"], "give  --engine ray  too"),
        (["--num-gpus-per-worker", "1"], "give  --engine ray  too"),
        ([*ON_RAY, "--shard", "1/2"], "are for one process"),
        ([*ON_RAY, "--dry-run"], "are for one process"),
        ([*ON_RAY, "--profile"], "are for one process"),
        ([*ON_RAY, "--device", "cpu"], "a worker takes the GPUs of --num-gpus-per-worker"),
        ([*ON_RAY, "--address", "127.0.0.1:1"], "no Ray cluster to work on"),
    ]:
        assert main([*asked, *more]) == 2
        assert text in capsys.readouterr().err


def test_images_are_counted_once_and_warnings_told_once() -> None:
    stream = io.StringIO()
    reporter = Reporter(stream=stream)
    progress = on_ray._Progress(reporter)
    shards = [on_ray.Shard("vgg16", "all", i, 10 * i, 10 * i + 10, ()) for i in range(2)]
    progress.hear([(-1, "weights are odd"), (0, 3)])  # before the shards are known
    with reporter.bar(20, "images") as bar:
        progress.show(SimpleNamespace(n_workers=2), shards, bar)
        progress.hear([(0, 6), (1, 5), (0, 2), (1, "weights are odd")])
        assert bar.done == 11
        progress.finishing(0, [])
        progress.finishing(1, None)
        progress.hear([])
        assert bar.done == 20
    assert stream.getvalue().count("warning: weights are odd") == 1
    assert "images: 20/20" in stream.getvalue()
    assert "(2 workers)" in stream.getvalue()


@pytest.mark.parametrize(
    ("asked", "rooms", "need"),
    [
        ({}, [{"CPU": 8.0}], (1, 0)),
        ({"workers": 2}, [{"CPU": 8.0}], (3, 0)),
        ({}, [{"CPU": 32.0, "GPU": 8.0}, {"CPU": 8.0, "GPU": 4.0}], (2, 1)),
        ({"gpus": 0.5}, [{"CPU": 32.0, "GPU": 4.0}, {"CPU": 64.0}], (4, 0.5)),
        ({"gpus": 0}, [{"CPU": 32.0, "GPU": 8.0}], (1, 0)),
        ({"workers": 3}, [{"CPU": 32.0, "GPU": 8.0}], (4, 1)),
    ],
)
def test_what_a_worker_takes(asked: Any, rooms: Any, need: Any) -> None:
    nodes = [{"Alive": True, "Resources": room} for room in rooms]
    fake = SimpleNamespace(
        nodes=lambda: nodes,
        cluster_resources=lambda: {"GPU": sum(room.get("GPU", 0) for room in rooms)},
    )
    plan = Plan(backbone=("vgg16",), workers=asked.get("workers"))
    found = on_ray.Cluster(gpus_per_worker=asked.get("gpus")).need(fake, plan)
    assert (found.cpus, found.gpus) == need
    assert found.n_workers(fake) >= 1


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A cluster of its own: a head without room for workers."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield made
    made.shutdown()


@pytest.mark.slow
def test_a_node_that_is_lost_does_not_stop_the_others(
    cluster: Any, photos: Path, weights: Path, large: Path, tmp_path: Path
) -> None:
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    driver = start(asked_of(photos, weights, tmp_path, cluster.address))
    wait_for_shards(tmp_path, 1, driver)
    cluster.remove_node(nodes[0], allow_graceful=False)
    out, _ = driver.communicate(timeout=150)
    assert driver.returncode == 0, out
    assert "a worker was lost, another takes its place" in out
    assert "raylet" not in out
    compare(large, tmp_path)
