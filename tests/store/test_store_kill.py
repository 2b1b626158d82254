"""Real processes are killed; no row that was journalled is lost, and the end is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from store_helpers import SEED, check_partial, make_rows, make_spec, stored

from featx.store import Cache, find_partials

CHILD = Path(__file__).with_name("store_child.py")
N_ROWS, N_FEATURES = 640, 900
N_KILLS = int(os.environ.get("FEATX_TEST_KILLS", "15"))
N_KILLS_SLOW = int(os.environ.get("FEATX_TEST_KILLS_SLOW", "120"))


def start(target: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "error", CHILD, target, str(N_ROWS), str(N_FEATURES), *more]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    return child


def end(child: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, text = child.communicate(timeout=120)
    return child.returncode, text.decode()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
    """An uninterrupted run, and how long it took after it was ready."""
    target = tmp_path_factory.mktemp("whole") / "a.h5"
    child = start(target)
    began = time.monotonic()
    assert end(child) == (0, "")
    return target.read_bytes(), time.monotonic() - began


def check(target: Path, whole: bytes, n_before: int) -> int:
    """The invariants after a kill; return how many rows are safe."""
    if target.exists():
        assert target.read_bytes() == whole
        return N_ROWS
    spec = make_spec(N_ROWS, N_FEATURES)
    partials = find_partials(target)
    assert len(partials) <= 1
    n_rows = 0
    if partials and Path(f"{partials[0]}.journal").exists():
        n_rows = check_partial(partials[0], stored(spec, make_rows(spec)))
    assert n_rows >= n_before
    return n_rows


def kill_many(folder: Path, whole: tuple[bytes, float], n_kills: int) -> None:
    rng = np.random.default_rng(SEED)
    content, seconds = whole
    counts: list[int] = []
    target, n_safe = folder / "0" / "a.h5", 0
    # Where the load changes, moments of the clock fall on the start or the end: then more of them.
    while len(counts) < n_kills or len({n for n in counts if 0 < n < N_ROWS}) < n_kills // 6:
        child = start(target)
        time.sleep(rng.uniform(0, seconds))
        child.kill()
        code, text = end(child)
        assert code in (-signal.SIGKILL, 0), text
        n_safe = check(target, content, n_safe)
        counts.append(n_safe)
        # Half of the runs are killed again when resumed, the others go on in peace.
        if target.exists() or rng.random() < 0.5:
            assert end(start(target)) == (0, "")
            assert target.read_bytes() == content
            assert [p.name for p in target.parent.iterdir() if p.suffix != ".lock"] == ["a.h5"]
            target, n_safe = folder / str(len(counts)) / "a.h5", 0


def test_kills_at_random_moments(tmp_path: Path, whole: tuple[bytes, float]) -> None:
    kill_many(tmp_path, whole, N_KILLS)


@pytest.mark.slow
def test_many_kills_at_random_moments(tmp_path: Path, whole: tuple[bytes, float]) -> None:
    kill_many(tmp_path, whole, N_KILLS_SLOW)


N_START = 9  # allocate, head, tail, sync; journal: lines, sync, name, folder; first rows
N_CALLS_A_GROUP = 4
N_END = 8  # allocate, truncate, head, tail, sync, name, folder, journal's end


def test_kills_at_each_step_of_start_and_end(tmp_path: Path, whole: tuple[bytes, float]) -> None:
    n_before_end = (N_START - 1) + N_CALLS_A_GROUP * (N_ROWS // 8)
    steps = [*range(N_START), *range(n_before_end, n_before_end + N_END)]
    is_there = []
    for n in steps:
        target = tmp_path / str(n) / "a.h5"
        code, text = end(start(target, str(n)))
        assert code == -signal.SIGKILL, text
        is_there.append(target.exists())
        assert check(target, whole[0], 0) == (0 if n < n_before_end else N_ROWS)
        assert end(start(target)) == (0, "")
        assert target.read_bytes() == whole[0]
        assert [p.name for p in target.parent.iterdir() if p.suffix != ".lock"] == ["a.h5"]
    # The name appears with the rename, the last call but two.
    assert is_there == [False] * (len(steps) - 2) + [True] * 2
    assert end(start(tmp_path / "last" / "a.h5", str(n_before_end + N_END))) == (0, "")


def test_second_writer_is_told_who_is_first(tmp_path: Path) -> None:
    target = tmp_path / "a.h5"
    command = [sys.executable, CHILD, target, str(N_ROWS), str(N_FEATURES), "hold"]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert [first.stdout.readline() for _ in "12"] == ["ready\n", "open\n"]
    code, text = end(start(target))
    assert code == 1
    assert f"is being written by process {first.pid} on {os.uname().nodename}, since 2" in text
    first.kill()
    first.communicate()
    assert end(start(target)) == (0, "")
    with Cache.open(target) as cache:
        assert cache.verify() == []
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_interrupt_keeps_what_was_written(tmp_path: Path, whole: tuple[bytes, float]) -> None:
    child = start(tmp_path / "a.h5")
    time.sleep(whole[1] / 2)
    child.send_signal(signal.SIGINT)
    code, text = end(child)
    assert code in (0, -signal.SIGINT), text
    check(tmp_path / "a.h5", whole[0], 0)
    assert not (tmp_path / "a.h5.lock").exists()
