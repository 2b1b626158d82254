"""The GPU's kit runs whole on a CPU, and a step that fails, hangs or dies ends alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
STEPS = "machine,resize,waits,race,numbers,memory,rates,profile,resume,heads,train,main"

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs processes that fork")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short name: processes send data through sockets in it, whose names may have 107 bytes."""
    return tmp_path_factory.mktemp("kit")


def run(code: list[str], out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *code, "--out", str(out), "--device", "cpu"],
        cwd=out.parent,
        env=os.environ | {"TMPDIR": str(out.parent)},
        check=False,
        capture_output=True,
        text=True,
    )


def steps_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "gpu.json").read_text())["steps"]


def test_every_step_finds_on_a_cpu_what_it_should(folder):
    words = [str(BENCHMARKS / "gpu.py"), "--small", "--minutes", "60", "--steps", STEPS]
    found = run(words, folder / "out")
    steps = steps_of(folder / "out")
    assert {name: step["state"] for name, step in steps.items()} == dict.fromkeys(
        STEPS.split(","), "done"
    ), found.stdout + found.stderr
    assert found.returncode == 0
    rates = [row for row in steps["rates"]["rows"] if "featx" in row]
    assert [row["to"] for row in rates] == ["disk", "memory", "FeatureExtractor(memory=)"]
    assert all(
        row[name] > 0 for row in rates for name in ("bare", "own_forward", "decode", "featx")
    )
    assert rates[0]["script"] > 0
    assert rates[0]["timm"] > 0
    assert any("the bottleneck" in text for text in steps["rates"]["texts"].values())
    kept = {
        row["run"]: row["computed"] + row["kept"] for row in steps["resume"]["rows"] if "run" in row
    }
    assert kept == {"not killed": 72, "resumed": 72}
    table = (folder / "out" / "gpu.md").read_text()
    assert all(f"## {name}: " in table for name in steps)
    # multiprocessing leaves folders of sockets, pymp-..., where processes are killed; the package
    # wandb makes a folder where it is imported, as timm does where it is installed.
    left = {path.name.partition("-")[0] for path in folder.iterdir()}
    assert {name for name in left if not name.endswith("wandb")} <= {"out", "pymp"}


BAD = """
import sys, time, os
sys.path.insert(0, {folder!r})
import gpu, gpu_kit.steps as steps
from gpu_kit.kit import Step

def fail(kit):
    kit.row(what="before", found=1.0)
    raise ValueError("as told")

def hang(kit):
    kit.row(what="before", found=2.0)
    time.sleep(600)

def wrong(kit):
    kit.row(what="a sum", found=5, right=False)
    with kit.trying(what="a part"):
        raise ValueError("of it")
    kit.row(what="behind it", found=6)

def child(kit):
    trials = {{"dies": lambda kit: os._exit(7), "lives": lambda kit: kit.row(what="alive")}}
    kit.in_children(trials, 60)

def die(kit):
    os._exit(9)

steps.STEPS[:] = [
    Step(name, f"{{module}}:{{name}}", 4 if name == "hang" else 60, "")
    for module, name in [
        ("__main__", "fail"), ("no_such_package", "missing"), ("__main__", "die"),
        ("__main__", "hang"), ("__main__", "wrong"), ("__main__", "child"),
    ]
]
sys.exit(gpu.main())
"""


def test_a_step_that_fails_hangs_or_dies_ends_alone(folder):
    found = run(["-c", BAD.format(folder=str(BENCHMARKS))], folder / "out")
    steps = steps_of(folder / "out")
    assert {name: step["state"] for name, step in steps.items()} == {
        "fail": "failed: ValueError: as told",
        "missing": "failed: ModuleNotFoundError: No module named 'no_such_package'",
        "die": "failed: the process ended with 9",
        "hang": "ended after 4 s: it took longer than its time",
        "wrong": "2 wrong",
        "child": "1 wrong",
    }, found.stdout + found.stderr
    assert found.returncode == 1
    assert steps["fail"]["rows"] == [{"what": "before", "found": 1.0}]
    assert (
        'raise ValueError("as told")' not in steps["fail"]["texts"]["traceback"]
    )  # -c has no lines
    assert "ValueError: as told" in steps["fail"]["texts"]["traceback"]
    assert steps["hang"]["rows"] == [{"what": "before", "found": 2.0}]
    assert [row.get("right", True) for row in steps["wrong"]["rows"]] == [False, False, True]
    assert {"what": "dies", "right": False, "found": "ended with 7"} in steps["child"]["rows"]
    assert {"what": "alive"} in steps["child"]["rows"]


def test_no_step_begins_without_time_and_none_is_unknown(folder):
    words = [str(BENCHMARKS / "gpu.py"), "--minutes", "0", "--steps", "machine, resize"]
    assert run(words, folder / "out").returncode == 1
    states = {name: step["state"] for name, step in steps_of(folder / "out").items()}
    assert states == dict.fromkeys(("machine", "resize"), "skipped: no time")
    found = run([str(BENCHMARKS / "gpu.py"), "--steps", "machine,resise"], folder / "out")
    assert found.returncode == 1
    assert "no step resise: choose from machine, tests, resize" in found.stderr
