"""Trainings are killed for real; what goes on gives what an uninterrupted one gives."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from featx.errors import WeightsError
from featx.progress import SILENT, Reporter
from featx.train import TrainPlan, run_train
from featx.train.checkpoint import (
    Checkpoint,
    from_json,
    read_checkpoint,
    to_json,
    write_checkpoint,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")

ASKED: dict[str, Any] = {
    "network": "auto-cnn(filters=8 blocks=2 dropout=0.3)",  # and batch normalisation
    "data": "digits",
    "per_class": (60,),
    "test_per_class": 10,
    "epochs": 14,
    "patience": 6,
    "validation": 0.2,
    "augment": ("flip", "rotation=0.05", "crop=1"),
    "scheduler": "plateau",
    "step_size": 1,
    "optimizer": "Nesterov",
    "lr": 0.01,
    "freeze": "1",
    "unfreeze_after": 3,
    "device": "cpu",
    "workers": 0,
}


def plan(reports: Path) -> TrainPlan:
    return TrainPlan(**ASKED, save=True, reports_dir=str(reports))


# It waits behind its 12th epoch: a loaded machine might look away until a training is over.
HELD = """
import time
from featx.cli import main
from featx.train.checkpoint import Checkpoint
def hold(self, net, real=Checkpoint.on_epoch_end):
    real(self, net)
    if len(net.history) == 12:
        time.sleep(3600)
Checkpoint.on_epoch_end = hold
raise SystemExit(main())
"""


def command(reports: Path, *python: str) -> list[str]:
    words = [sys.executable, *python, "train", "--save", "--reports", str(reports)]
    for key, value in ASKED.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{key.replace('_', '-')}", *map(str, values)]
    return words


def outcome(reports: Path) -> tuple[Any, dict[str, Any]]:
    (path,) = (reports / "fits").glob("*.json")
    record = json.loads(path.read_text())
    curves = [{k: v for k, v in e.items() if k != "dur"} for e in record["trained"]["curves"]]
    (network,) = (reports / "networks").glob("*.safetensors")
    told = (curves, record["predictions"], record["fit"]["log_loss"], record["fit"]["train_acc1"])
    return (told, record["trained"]["best_epoch"]), load_file(network)


def state_in(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = read_checkpoint(path, path.stem.rpartition("-")[2])
    return state


def epochs_in(folder: Path) -> int:
    """Count the epochs of a checkpoint, which a training may be replacing."""
    for path in folder.glob("*.safetensors"):
        # Reading opens the file twice. A link is one file, whatever takes its name meanwhile.
        with tempfile.TemporaryDirectory(dir=folder.parent) as own:
            link = Path(own) / path.name
            link.hardlink_to(path)
            return len(state_in(link)["history"])
    return 0


@pytest.mark.timeout(600)
def test_killed_trainings_end_as_uninterrupted_ones(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_train(plan(whole), SILENT, lambda line: None)
    last = 0
    for least in (2, 5):
        words = command(broken, "-c", HELD)
        process = subprocess.Popen(words, stdout=-3, stderr=subprocess.PIPE, text=True)
        try:
            while process.poll() is None and epochs_in(broken / "checkpoints") < least:
                time.sleep(0.03)
            assert process.poll() is None, "it failed"
        finally:
            process.kill()
        _, told = process.communicate()
        assert (f"{last} epochs taken up" in told) == (last > 0)
        last = epochs_in(broken / "checkpoints")
        (checkpoint,) = (broken / "checkpoints").glob("*.safetensors")
        # As if it had been killed while it wrote one.
        checkpoint.with_name(f".{checkpoint.name}.abcdefgh.part").write_bytes(b"half")
    assert 5 <= last < 14
    run_train(plan(broken), SILENT, lambda line: None)
    (told, tensors), (wanted, expected) = outcome(broken), outcome(whole)
    assert told == wanted
    assert tensors.keys() == expected.keys()
    assert all((tensors[name] == expected[name]).all() for name in tensors)
    assert not list((broken / "checkpoints").iterdir())


def test_ctrl_c_keeps_the_epochs_and_says_how_to_go_on(tmp_path: Path) -> None:
    words = command(tmp_path, "-m", "featx")
    words[words.index("--epochs") + 1] = "500"
    words[words.index("--patience") + 1] = "0"
    # A shell starts what runs in the background with Ctrl-C ignored, and that is inherited.
    words = ["env", "--default-signal=INT", *words]
    process = subprocess.Popen(words, stdout=-3, stderr=subprocess.PIPE, text=True)
    while not epochs_in(tmp_path / "checkpoints"):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130
    assert "go on with:  featx train" in told
    assert not list((tmp_path).glob("fits/*"))


def small(reports: Path, **options: Any) -> TrainPlan:
    usual: dict[str, Any] = {
        "network": "auto-cnn(filters=4 blocks=1)",
        "data": "digits",
        "per_class": (5,),
        "test_per_class": 3,
        "epochs": 2,
        "patience": 0,
        "validation": 0.0,
        "workers": 0,
        "device": "cpu",
        "reports_dir": str(reports),
    }
    return TrainPlan(**{**usual, **options})


class Heard(Reporter):
    """A reporter that keeps its warnings."""

    def warn(self, text: str) -> None:
        HEARD.append(text)


HEARD: list[str] = []


def break_off(reports: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Path:
    """Leave the checkpoint of a training that broke off behind its first epoch."""
    original = Checkpoint.on_epoch_end

    def stop(self: Checkpoint, net: Any) -> None:
        original(self, net)
        self.wait()
        raise KeyboardInterrupt

    HEARD.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "on_epoch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            run_train(small(reports, **options), SILENT, lambda line: None)
    (path,) = (reports / "checkpoints").iterdir()
    return path


@pytest.mark.parametrize("damage", ["torn", "of another training", "nonsense", "of an older featx"])
def test_a_checkpoint_that_cannot_be_taken_up_is_told_and_kept(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (wanted,) = run_train(small(tmp_path / "a"), SILENT, lambda line: None)
    path = break_off(tmp_path / "b", monkeypatch)
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "nonsense":
        path.write_bytes(b"nonsense")
    elif damage == "of another training":
        tensors: dict[str, Any] = {}
        write_checkpoint(path, "another", to_json(state_in(path), tensors), tensors)
    else:
        path = path.rename(path.with_suffix(".pt"))
    content = path.read_bytes()
    (found,) = run_train(small(tmp_path / "b"), Heard(quiet=True), lambda line: None)
    assert [e["train_loss"] for e in found.curves] == [e["train_loss"] for e in wanted.curves]
    assert found.fit.detail["predictions"] == wanted.fit.detail["predictions"]
    (kept,) = (tmp_path / "b" / "checkpoints").iterdir()
    assert kept.read_bytes() == content
    (text,) = HEARD
    assert text.startswith(f"{path} ")
    assert f"it is kept as {kept}" in text


def test_no_flipped_bit_of_a_checkpoint_changes_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = break_off(tmp_path, monkeypatch, optimizer="Adam", patience=3, validation=0.3)
    key, content = path.stem.rpartition("-")[2], path.read_bytes()
    wanted = repr(read_checkpoint(path, key))
    rng = np.random.default_rng(0)
    for bit in [*rng.integers(0, 8 * len(content), 300).tolist(), 0, 8 * len(content) - 1]:
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(WeightsError, match=r"damaged|another training|no checkpoint|is not a"):
            read_checkpoint(path, key)
    path.write_bytes(content)
    assert repr(read_checkpoint(path, key)) == wanted


def test_whatever_a_training_keeps_comes_back_as_it_was() -> None:
    values = [1.5, float("inf"), float("-inf"), True, None, "é", 1 << 40]
    tensors = [torch.tensor(0.1, dtype=torch.bfloat16), torch.arange(3)[::2], torch.zeros(0, 2)]
    state = {"a": {0: [*values, (0.9, 0.999)], "tensor": tensors}, "mapping": {}, 7: {"float": 1}}
    apart: dict[str, torch.Tensor] = {}
    plain = json.loads(json.dumps(to_json(state, apart), allow_nan=False))
    back = from_json(plain, apart)
    assert repr(back) == repr(state)
