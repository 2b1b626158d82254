from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from forked import Forks, open_forks

# Examples may take any time on a loaded machine: what they find is the same.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

HAS_GPU = torch.cuda.is_available()
SEES_GPU, COUNT_GPUS = torch.cuda.is_available, torch.cuda.device_count
GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")
REQUIRED = set(filter(None, os.environ.get("FEATX_REQUIRE", "").split(",")))
ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_finish() -> None:
    """Modules and tests stay: a search for garbage need not look at them, some 0.2 s each time."""
    gc.collect()
    gc.freeze()


def skip_or_fail(need: str, reason: str) -> None:
    """Skip, or fail where FEATX_REQUIRE names what is missing."""
    if need in REQUIRED:
        pytest.fail(f"FEATX_REQUIRE={need}: {reason}")
    pytest.skip(reason)


@pytest.fixture(autouse=True, scope="session")
def _own_data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the person who runs the tests is read or written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATX_DATA", str(tmp_path_factory.mktemp("data")))
        # Kernels that torch compiled for other instructions of the processor end the process.
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        # OpenVINO reports each conversion to its makers, from a process of its own.
        patch.setitem(sys.modules, "openvino_telemetry", None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_gpu_by_itself() -> Iterator[None]:
    """Only tests that are marked gpu take one: others compare bits, which a GPU has of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        # Asked while none is visible, torch would remember that there is none.
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # for the processes that tests start
        yield


@pytest.fixture(autouse=True)
def _needs(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.node.get_closest_marker("gpu"):
        if not HAS_GPU:
            skip_or_fail("gpu", "no CUDA device")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", SEES_GPU)
            patch.setattr(torch.cuda, "device_count", COUNT_GPUS)
            patch.delenv("CUDA_VISIBLE_DEVICES")
            if GPUS is not None:
                patch.setenv("CUDA_VISIBLE_DEVICES", GPUS)
            yield
        return
    if request.node.get_closest_marker("network") and "network" not in REQUIRED:
        pytest.skip("needs the internet: set FEATX_REQUIRE=network")
    yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real images and weights, which is no part of the repository."""
    folder = Path(os.environ.get("FEATX_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        skip_or_fail("shared", f"no real data in {folder}: set FEATX_SHARED")
    return folder


@pytest.fixture(scope="session")
def photographs(shared: Path) -> list[Path]:
    return sorted((shared / "data" / "photographs").glob("*.jpg"))


@pytest.fixture(scope="session")
def squeezenet_file(shared: Path) -> Path:
    return shared / "weights" / "squeezenet1_0-imagenet.pth"


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with caches of some digits behind a small network, and its file of weights."""
    from torchvision.models import squeezenet1_1

    from featx.cli import main

    folder = tmp_path_factory.mktemp("digits")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        torch.save(squeezenet1_1(weights=None).state_dict(), folder / "weights.pth")
    words = ["extract", "--backbone", "squeezenet1_1", "--weights", str(folder / "weights.pth")]
    words += ["--input-size", "32", "--pool", "avg", "--data", "digits", "--per-class", "12"]
    words += ["--test-per-class", "4", "--cache", str(folder / "cache"), "-j", "0", "--quiet"]
    assert main(words) == 0
    return folder


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of this machine with three places, to which everything in this process connects."""
    ray = pytest.importorskip("ray", reason="needs featx[ray]")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    before = signal.getsignal(signal.SIGTERM)
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    # Ray's handler takes a lock, which a process that is forked later may find locked for ever.
    signal.signal(signal.SIGTERM, before)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def _forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with open_forks(tmp_path_factory.mktemp("f")) as forks:
        yield forks


@pytest.fixture
def forks(_forks: Forks) -> Iterator[Forks]:
    """Starts processes with featx and torch loaded; none outlives its test."""
    yield _forks
    _forks.end()
