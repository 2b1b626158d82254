"""What would be faster is measured in a long run, said once, and changes nothing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from heard import Log
from small_photos import make_photos

from featx.backbones import open_backbones
from featx.cli import main
from featx.engines import LocalEngine
from featx.extract import Plan, hint, run_plan
from featx.extract.hint import Hint
from featx.extract.times import StageTimes
from featx.sources import open_data
from featx.store import Cache

BASE = {"backbone": "squeezenet1_1", "weights": "random:3", "pool": "avg", "input_size": 64}
FASTER = (
    r"faster on this machine: --fast \(runtime openvino, precision (fp32|bf16)\) makes this run "
    r"\d+\.\d times as fast; its features differ by at most [1-9]e-0[2-9] of the largest"
)


@pytest.fixture
def pets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "pets", {"cat": (64, 64), "dog": (64, 64)}, n=10)
    return "pets"


@pytest.fixture
def long(monkeypatch):
    """Take any run for a long one, and anything for faster."""
    monkeypatch.setattr(hint, "_LONG_SECONDS", 0.0)
    monkeypatch.setattr(hint, "_WORTH_SAYING", 0.0)
    return monkeypatch


def extract(data, cache, **changes):
    log = Log()
    plan = Plan(
        **BASE | {"data": data, "cache_dir": cache, "batch_size": 4, "workers": 0} | changes
    )
    [report] = run_plan(plan, log, tell=lambda _: None)
    with Cache.open(report.path) as found:
        return found.X[:], [line for line in log.lines if "--fast" in line]


def test_what_is_faster_is_said_once_and_changes_no_feature(pets, long):
    pytest.importorskip("openvino")
    X, said = extract(pets, "one")
    assert len(said) == 1
    assert re.match(FASTER, said[0])
    long.setattr(hint, "_LONG_SECONDS", 1e9)
    again, said = extract(pets, "two")
    np.testing.assert_array_equal(X, again)
    assert said == []


def test_a_run_that_is_fast_already_says_nothing(pets, long):
    pytest.importorskip("openvino")
    _, said = extract(pets, "one", runtime="auto", precision="auto")
    assert said == []


def test_without_the_package_the_command_that_installs_it_is_said(pets, long, monkeypatch):
    monkeypatch.setattr(hint, "has_openvino", lambda: False)
    monkeypatch.setattr(hint, "resolve_runtime", lambda *_: ("torch", ""))
    monkeypatch.setattr(hint, "resolve_precision", lambda *_: ("fp32", ""))
    _, [said] = extract(pets, "one")
    assert "pip install 'featx[openvino]', then  --fast" in said


def test_only_a_long_run_is_measured(pets, monkeypatch):
    monkeypatch.setattr(hint, "_find_faster", lambda *_: "measured")
    group = open_backbones("squeezenet1_1", weights="random:3", pool="avg")
    engine = LocalEngine(torch.device("cpu"), images_per_batch=4, workers=0)
    source = open_data("./pets")["all"]
    [parts] = engine.run_many(group, source, [0])
    for n_batches, expected in ((10, []), (1_000_000_000, ["measured"])):
        log, times = Log(), StageTimes(0)
        looked = Hint(engine, group, source, "float32", log)
        for _ in range(5):
            times.add(4, {"forward": 0.1})
            looked.look(parts, times, n_batches)
        assert log.lines == expected


def test_fast_is_short_for_both(pets):
    pytest.importorskip("openvino")
    command = "extract --backbone squeezenet1_1 --weights random:3 --pool avg --data pets --fast"
    assert main([*command.split(), "--input-size", "64"]) == 0
    assert main([*command.split(), "--input-size", "32", "--precision", "fp32"]) == 0
    both = [Cache.open(path) for path in sorted(Path("cache").glob("*.h5"))]
    runtimes = {cache.meta["input_size"]: cache.meta["request"]["runtime"] for cache in both}
    assert runtimes == {32: "openvino", 64: "openvino"}
    assert {c.meta["precision"] for c in both if c.meta["input_size"] == 32} == {"fp32"}
