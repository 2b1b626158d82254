"""What the card, the cores, the disk and the bus can do, and whether the tests pass there."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from ceilings import matmul_rate, write_rate
from PIL import features

from featx.engines.machine import n_cores
from featx.memory import available_bytes
from gpu_kit.kit import Kit

__all__ = ["look", "run_tests"]

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    *("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "h5py", "Pillow"),
    *("skorch", "triton", "pytest"),
)
SIZES = {"a batch of 256 (38.5 MB)": 256 * 3 * 224 * 224, "1 MB": 1 << 20}


def look(kit: Kit) -> None:
    """Tell what there is, and measure rates."""
    kit.row(what="cores, Python", found=f"{n_cores()}, {platform.python_version()}")
    kit.row(what="packages", found=", ".join(f"{p} {_version(p)}" for p in PACKAGES))
    turbo = features.check("libjpeg_turbo")
    kit.row(what="JPEG", found=f"libjpeg-turbo {features.version('libjpeg_turbo')}, {turbo}")
    kit.row(what="memory available, GB", found=available_bytes() / 1e9)
    shm = shutil.disk_usage("/dev/shm") if Path("/dev/shm").exists() else None
    kit.row(what="/dev/shm, MB", found=shm and shm.total / 1e6)
    disk = shutil.disk_usage(kit.scratch)
    kit.row(what="disk free, GB", found=disk.free / 1e9)
    for _ in range(1 if kit.is_small else 3):
        kit.row(what="disk, one writer, MB/s", found=write_rate(kit.scratch) / 1e6)
    began = time.perf_counter()
    torch.zeros(1, device=kit.device)
    kit.wait()
    kit.row(what="start of the device, s", found=time.perf_counter() - began)
    if kit.is_gpu:
        _card(kit)
    for label, n_bytes in SIZES.items():
        _copies(kit, label, n_bytes)
    if not kit.is_small:
        for precision in ("fp16", "bf16", "fp32"):
            found = matmul_rate(kit.device, precision, 0.3) / 1e12
            kit.row(what=f"large matrix product of ones, {precision}, TFLOP/s", found=found)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(none)"


def _card(kit: Kit) -> None:
    device = torch.cuda.get_device_properties(kit.device)
    kit.row(
        what="card",
        found=f"{device.name}, {device.total_memory / 1e9:.0f} GB, "
        f"{device.multi_processor_count} multiprocessors, {device.major}.{device.minor}",
    )
    kit.row(what="CUDA, cuDNN", found=f"{torch.version.cuda}, {torch.backends.cudnn.version()}")
    if shutil.which("nvidia-smi"):
        ask = ["nvidia-smi", "--query-gpu=driver_version,pcie.link.gen.current,clocks.max.sm"]
        told = subprocess.run(
            [*ask, "--format=csv,noheader"], check=False, capture_output=True, text=True
        )
        kit.row(what="driver, PCIe, clock", found=told.stdout.strip())


def _copies(kit: Kit, label: str, n_bytes: int) -> None:
    """GB/s of each way, from ordinary and from page-locked memory."""
    there = torch.empty(n_bytes, dtype=torch.uint8, device=kit.device)
    plain = torch.ones(n_bytes, dtype=torch.uint8)
    hosts = {"ordinary": plain} | ({"page-locked": plain.pin_memory()} if kit.is_gpu else {})
    n = 2 if kit.is_small else 20

    def rate(copy: Callable[[], object]) -> float:
        copy()
        return n * n_bytes / kit.seconds(lambda: [copy() for _ in range(n)]) / 1e9

    for kind, host in hosts.items():
        kit.row(
            what=f"copies of {label}, {kind} memory",
            **{
                "to the device, GB/s": rate(lambda h=host: there.copy_(h, non_blocking=True)),
                "back, GB/s": rate(lambda h=host: h.copy_(there, non_blocking=True)),
            },
        )
    if kit.is_gpu:
        kit.row(what=f"page-locking {label}, GB/s", found=rate(plain.pin_memory))


def run_tests(kit: Kit) -> None:
    """Run the tests marked ``gpu``, the files that have some."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if _has_gpu(path)]
    found = kit.scratch / "tests.xml"
    words = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "--tb=short", f"--junitxml={found}"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        *words,
        *map(str, files[: 1 if kit.is_small else 99]),
    ]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    shared = {"PYTHONPATH": path, "FEATX_SHARED": str(kit.pictures.shared)}
    log = kit.scratch / "tests.log"
    try:
        with log.open("w", encoding="utf-8") as stream:
            subprocess.run(
                command,
                cwd=ROOT,
                env=os.environ | shared | ({"FEATX_REQUIRE": "gpu"} if kit.is_gpu else {}),
                check=False,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=kit.left() - 2,
            )
        suite = next(ET.parse(found).getroot().iter("testsuite"))
    except (subprocess.TimeoutExpired, OSError):
        kit.text("pytest", log.read_text(encoding="utf-8")[-4000:])
        raise
    bad = [c for c in suite.iter("testcase") if {e.tag for e in c} & {"failure", "error"}]
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    kit.row(**counts, right=not bad and counts["tests"] > 0)
    for case in bad:
        kit.row(failed=f"{case.get('classname')}::{case.get('name')}")
    if bad:
        kit.text("pytest", log.read_text(encoding="utf-8")[-12000:])


def _has_gpu(path: Path) -> bool:
    return bool(re.search(r"mark\.gpu\b", path.read_text(encoding="utf-8")))
