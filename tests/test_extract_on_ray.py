"""Extractions by workers of a local Ray cluster: the files are those of one process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from small_photos import make_photos

from featx.cli import main
from featx.store import Cache, ShardedCache, verify_file

ray = pytest.importorskip("ray", reason="needs featx[ray]")

N_IMAGES = 44
LAYERS = ("features.3", "features")
ON_RAY = ("--engine", "ray", "--shard-rows", "4")


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
