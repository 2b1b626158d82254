"""Rows that are there already, and the batch size of those that are computed beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from near import assert_near
from PIL import Image

from featx.cli import main
from featx.engines import LocalEngine
from featx.engines.runtimes.eager import EagerRuntime
from featx.extract import Plan, run_plan
from featx.progress import Reporter
from featx.store import Cache

N = 22
N_BEFORE = 8  # rows of two batches of four


@pytest.fixture(autouse=True)
def _photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    add_photos(range(N))


def add_photos(numbers):
    for i in numbers:
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)
        path = Path("photos", "cat" if i % 2 else "dog", f"{i:02}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


class Heard(Reporter):
    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    warn = say


def run(**options):
    """Extract; give the cache, and what was said about batch sizes."""
    usual = {
        "backbone": ("squeezenet1_1",),
        "weights": "random:3",
        "input_size": 40,
        "data": "photos",
    }
    usual |= {"workers": 0, "input_size": 40, "store_dtype": "float32", "pool": "avg"}
    heard = Heard()
    reports = run_plan(Plan(**usual | options), heard, tell=str)
    caches = [Cache.open(report.path) for report in reports]
    return caches, [line for line in heard.lines if "batch size" in line]


@pytest.fixture
def shapes(monkeypatch):
    """Number of images in every forward pass."""
    seen = []
    start = EagerRuntime.start

    def watched(self, pixels, *rest):
        seen.append(len(pixels))
        return start(self, pixels, *rest)

    monkeypatch.setattr(EagerRuntime, "start", watched)
    return seen


def interrupt(monkeypatch, **options):
    """Stop an extraction behind its second batch."""
    compute = LocalEngine.run_many

    def stopped(self, group, source, batches, **rest):
        yield from compute(self, group, source, batches[:2], **rest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalEngine, "run_many", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(**options)


def test_a_resumed_run_takes_up_the_batch_size(monkeypatch, shapes):
    [whole], _ = run(batch_size=4, cache_dir="whole")
    interrupt(monkeypatch, batch_size=4)
    shapes.clear()
    [cache], said = run()
    assert shapes == [4] * 4  # 16 by itself
    assert cache.meta["engine"] == whole.meta["engine"]
    assert np.array_equal(cache.X[:], whole.X[:])
    assert cache.fingerprint == whole.fingerprint
    assert said == []


@pytest.mark.parametrize(
    ("options", "size"),
    [({"batch_size": 3}, 3), ({"batch_size": 16}, 16), ({"max_memory": 1}, 1)],
)
def test_another_batch_size_is_said_and_recorded(monkeypatch, shapes, options, size):
    [whole], _ = run(batch_size=4, cache_dir="whole")
    interrupt(monkeypatch, batch_size=4)
    shapes.clear()
    [cache], said = run(**options)
    assert set(shapes) == {size}
    assert "computed with batch size 4; the rest is computed with" in said[-1]
    assert cache.meta["engine"]["batch_size"] == size
    assert cache.meta["engine"]["earlier_batch_sizes"] == [4]
    assert np.array_equal(cache.X[:N_BEFORE], whole.X[:N_BEFORE])
    assert_near(cache.X[:], whole.X[:])


def test_what_was_mixed_once_stays_recorded(monkeypatch):
    interrupt(monkeypatch, batch_size=4)
    interrupt(monkeypatch, batch_size=3)
    [cache], said = run()
    assert (cache.meta["engine"]["batch_size"], said) == (3, [])
    assert cache.meta["engine"]["earlier_batch_sizes"] == [4]


def test_layers_that_were_begun_unlike_are_said(monkeypatch, shapes):
    interrupt(monkeypatch, batch_size=4, layer=("features.5",))
    interrupt(monkeypatch, batch_size=2, layer=("features.8",))
    shapes.clear()
    caches, said = run(layer=("features.5", "features.8"))
    assert set(shapes) == {4}
    assert len(said) == 1
    engines = [cache.meta["engine"] for cache in caches]
    assert [engine.get("earlier_batch_sizes") for engine in engines] == [None, [2]]


def test_added_and_repaired_rows_take_the_batch_size_of_the_others(monkeypatch, shapes):
    """The command that made the file does not say it: it was resumed without."""
    interrupt(monkeypatch, batch_size=4)
    [cache], _ = run()
    path, row = cache.path, cache.X.stored[N - 1].tobytes()
    content = bytearray(path.read_bytes())
    content[content.rindex(row)] ^= 1
    path.write_bytes(content)
    shapes.clear()
    assert main(["repair", str(path), "--quiet"]) == 0
    assert set(shapes) == {4}
    with Cache.open(path) as repaired:
        assert repaired.X.stored[N - 1].tobytes() == row
        assert repaired.meta["engine"]["batch_size"] == 4
    add_photos(range(N, N + 5))
    shapes.clear()
    [longer], said = run(append=True)
    assert set(shapes) == {4}
    assert (longer.meta["engine"]["batch_size"], said) == (4, [])


@pytest.mark.parametrize(
    "record",
    [None, "fast", {}, {"batch_size": "4"}, {"batch_size": -4}, {"earlier_batch_sizes": 4}],
)
def test_a_record_without_a_batch_size_changes_nothing(monkeypatch, shapes, record):
    monkeypatch.setattr("featx.extract.run.find_begun", lambda *_: {"engine": record})
    [cache], said = run()
    assert set(shapes) == {16}
    assert said == []
    assert "earlier_batch_sizes" not in cache.meta["engine"]
