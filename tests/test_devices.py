"""Names of devices are understood, and refused, in one way wherever they are given."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

from featx import devices
from featx.cli import main
from featx.devices import find_device
from featx.engines import LocalEngine, resolve_device, resolve_devices
from featx.errors import UsageError
from featx.heads.base import FitOptions
from featx.heads.device import choose_device
from featx.heads.rowspace import Pool, RowSpace
from featx.heads.torch_mlp import MLP_TORCH

UNKNOWN = [
    "",
    "mps",
    "cuda:",
    "cuda:-1",
    "cuda:x",
    "cuda: 1",
    "cuda:\N{ARABIC-INDIC DIGIT ONE}",
    "cpu:",
    "cpu:0",
    "CPU",
    "xpu",
]


def fit_mlp(name):
    space = RowSpace(Pool(np.eye(6, dtype=np.float32)), np.arange(6))
    dataclasses.replace(MLP_TORCH, device=name).fit(space, np.arange(6) % 2, FitOptions())


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many GPUs."""

    def has(n):
        monkeypatch.setattr(devices, "_has_driver", lambda: n > 0)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n)

    return has


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize("take", [resolve_device, choose_device, fit_mlp], ids=lambda f: f.__name__)
@pytest.mark.parametrize("n", [0, 2])
def test_unknown_names_are_refused_alike(name, take, n, machine):
    machine(n)
    with pytest.raises(UsageError) as caught:
        take(name)
    assert str(caught.value) == f"device {name!r} is unknown: choose auto, cpu, cuda or cuda:N"


@pytest.mark.parametrize("take", [resolve_device, choose_device, fit_mlp], ids=lambda f: f.__name__)
def test_devices_that_are_not_there_are_refused_alike(take, machine):
    machine(0)
    for name in ("cuda", "cuda:0", "cuda:99"):
        with pytest.raises(
            UsageError, match=r"is not there: choose from cpu \(this machine has no"
        ):
            take(name)
    machine(2)
    with pytest.raises(
        UsageError, match="'cuda:99' is not there: choose from cpu, cuda:0, cuda:1,"
    ):
        take("cuda:99")


def test_names_that_are_understood(machine):
    machine(0)
    assert find_device() == find_device("cpu") == "cpu"
    machine(2)
    assert find_device() == find_device("cuda") == find_device("cuda:0") == "cuda:0"
    assert find_device("cuda:1") == "cuda:1"
    assert find_device("cpu") == "cpu"
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UsageError, match="twice"):
        resolve_devices(["cuda", "cuda:0"])


def test_an_engine_takes_a_cpu_or_a_gpu():
    with pytest.raises(UsageError, match="device 'mps' is unknown"):
        LocalEngine(torch.device("mps"))


def test_commands_refuse_it_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    network = ["--backbone", "squeezenet1_1", "--weights", "random:0"]
    for command in ("extract", "verify"):
        assert main([command, *network, "--device", "mps", "--quiet"]) == 2
        assert capsys.readouterr().err.startswith("featx: device 'mps' is unknown: choose auto,")


def test_no_driver_is_known_without_torch():
    code = "import sys; from featx.devices import find_device, _has_driver as has\n"
    code += "has() or find_device(); print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
