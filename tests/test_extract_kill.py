"""Real extractions are killed: no committed row is lost, and the resumed file is the same."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from featx.store import verify_file

SERVER = Path(__file__).with_name("kill_server.py")
SHARED = Path(os.environ.get("FEATX_SHARED", Path(__file__).resolve().parents[2] / "shared"))
WEIGHTS = SHARED / "weights" / "squeezenet1_0-imagenet.pth"
SEED = int(os.environ.get("FEATX_TEST_SEED", "0"))
N_KILLS = int(os.environ.get("FEATX_TEST_KILLS", "12"))
N_KILLS_SLOW = int(os.environ.get("FEATX_TEST_KILLS_SLOW", "120"))
N_IMAGES, BAD_ROW = 320, 77
N_OLD = 200  # whole batches, so that the rows computed later are those of one run
# torch's decoding processes look every 5 s whether they are orphans, later on a loaded machine.
N_SECONDS_ORPHANS = 300

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")


def jpeg_tree(root: Path, n_images: int = N_IMAGES) -> Path:
    """Two classes of small noisy photographs, one of which is broken."""
    rng = np.random.default_rng(5)
    for i in range(n_images):
        path = root / f"class{i // (N_IMAGES // 2)}" / f"{i:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (48, 60, 3), np.uint8)).save(path)
        if i == BAD_ROW:
            path.write_bytes(path.read_bytes()[:100])
    return root


@dataclass
class Server:
    """The process that forks, and what an uninterrupted run gave."""

    process: subprocess.Popen[str]
    data: Path
    log: Path
    name: str = ""
    whole: dict[str, bytes] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    n_calls: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    old: bytes = b""  # a finished cache of fewer images, which lies there at first

    def run(self, cache: Path, workers: int = 0, **order: Any) -> int:
        """Extract, and perhaps be killed; return the exit code."""
        words = ["extract", "--backbone", "squeezenet1_0", "--device", "cpu", "--batch-size", "4"]
        words += ["--weights", str(WEIGHTS) if WEIGHTS.exists() else "random", "--input-size", "64"]
        words += ["--data", str(self.data), "--cache", str(cache), "--workers", str(workers)]
        words += ["--append"] if self.old else []
        none = {"after": None, "step": None, "is_alone": False, "is_late": False, "calls": None}
        order = {**none, **order, "words": words, "log": str(self.log)}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("killed")
    with subprocess.Popen(
        [sys.executable, "-W", "error", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        found = Server(process, jpeg_tree(folder / "d"), folder / "log")
        began = time.monotonic()
        assert found.run(folder / "whole", calls=str(folder / "calls")) == 0, found.log.read_text()
        found.seconds = time.monotonic() - began
        found.n_calls = Counter(json.loads((folder / "calls").read_text()))
        (path,) = (folder / "whole").glob("*.h5")
        found.name = path.name
        found.whole, found.attributes = content(path)
        assert np.flatnonzero(np.frombuffer(found.whole["status"], "u1") == 2).tolist() == [BAD_ROW]
        yield found
        process.communicate()


def content(path: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The bytes of all datasets, and the attributes but `meta`, which names the workers."""
    with h5py.File(path, "r") as file:
        attributes = {name: value for name, value in file.attrs.items() if name != "meta"}
        return {name: dataset[()].tobytes() for name, dataset in file.items()}, attributes


def journal_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal that docs/cache-format.md says are to be believed."""
    found = []
    for line in path.read_bytes().split(b"\n"):
        digits, _, text = line.partition(b" ")
        if hashlib.sha256(text).hexdigest()[:16].encode() == digits:
            found.append(json.loads(text))
    return found


def lay_old(server: Server, cache: Path) -> None:
    """Begin a cache folder; with the finished cache of fewer images, if that is the case."""
    cache.mkdir()
    if server.old:
        (cache / server.name).write_bytes(server.old)


def check(cache: Path, server: Server, before: np.ndarray) -> np.ndarray:
    """The invariants after a kill; return which rows are safe, as a mask."""
    for path in cache.glob("*.h5"):
        if server.old and path.read_bytes() == server.old:
            continue
        check_whole(path, server)
        return np.ones(N_IMAGES, bool)
    is_safe = np.zeros(N_IMAGES, bool)
    partials = list(cache.glob("*.partial"))
    assert len(partials) <= 1
    for path in partials:
        journal = Path(f"{path}.journal")
        if journal.exists():
            check_partial(path, journal, server, is_safe)
    assert (is_safe >= before).all(), "rows that were committed are no more"
    return is_safe


def check_whole(path: Path, server: Server) -> None:
    assert content(path) == (server.whole, server.attributes)
    assert verify_file(path) == []


def check_partial(path: Path, journal: Path, server: Server, is_safe: np.ndarray) -> None:
    header, *ranges = journal_lines(journal)
    assert header["n_rows"] == N_IMAGES
    features, status = server.whole["features"], server.whole["status"]
    with path.open("rb") as stream:
        for item in ranges:
            first, last = (item[name] * header["row_bytes"] for name in ("start", "stop"))
            stream.seek(header["features_offset"] + first)
            assert stream.read(last - first) == features[first:last], f"rows of {item}"
            failed = [row for row in range(item["start"], item["stop"]) if status[row] == 2]
            assert [int(row) for row in item["failed"]] == failed
            assert not is_safe[item["start"] : item["stop"]].any()
            is_safe[item["start"] : item["stop"]] = True


def run_when_free(server: Server, cache: Path, patience: float, **order: Any) -> int:
    """Run; where decoding processes outlived a kill, wait until they let go of the lock."""
    deadline = time.monotonic() + patience
    while True:
        code, text = server.run(cache, **order), server.log.read_text()
        is_busy = code == 1 and "is being written by process" in text
        if not is_busy or time.monotonic() > deadline:
            assert code in (0, -signal.SIGKILL), text
            return code
        time.sleep(0.2)


def finish(server: Server, cache: Path, workers: int, patience: float = 0) -> None:
    assert run_when_free(server, cache, patience, workers=workers) == 0
    (path,) = cache.glob("*.h5")
    check_whole(path, server)
    assert [p.name for p in cache.glob("[!.]*") if p.suffix != ".lock"] == [path.name]
    shutil.rmtree(cache)


def steps_to_kill_at(server: Server, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Moments without end: of the clock, and before, in or after what changes the disk."""
    n = server.n_calls
    while True:
        for how in ("before", "after"):
            yield {"step": ["replace", n["replace"], how]}  # the finishing rename
            yield {"after": rng.uniform(0, server.seconds)}
            yield {"step": ["fdatasync", int(rng.integers(1, n["fdatasync"])), how]}
            yield {"after": rng.uniform(0, server.seconds)}
            # Half a group of rows, or half a line of the journal.
            yield {"step": ["pwrite", int(rng.integers(1, n["pwrite"])), "half"]}
            yield {"after": rng.uniform(0, server.seconds)}
            name = str(rng.choice(sorted(n)))
            yield {"step": [name, int(rng.integers(1, n[name] + 1)), how]}
            yield {"after": rng.uniform(0, server.seconds)}


def kill_many(folder: Path, server: Server, n_kills: int, **fault: bool) -> list[int]:
    """Kill, check, resume or kill again; return how many rows each kill left."""
    rng = np.random.default_rng(SEED)
    moments = steps_to_kill_at(server, rng)
    counts: list[int] = []
    cache, is_safe, patience = folder / "cache", np.zeros(N_IMAGES, bool), 0.0
    lay_old(server, cache)
    # Moments of the clock may all fall on the start or the end where the load changes.
    while len(counts) < n_kills or not any(0 < n < N_IMAGES for n in counts):
        workers, is_alone = int(rng.integers(3)), bool(rng.random() < 0.1)
        order = {**next(moments), **fault, "is_alone": is_alone, "workers": workers}
        code = run_when_free(server, cache, patience, **order)
        is_safe = check(cache, server, is_safe)
        if code != 0:
            counts.append(int(is_safe.sum()))
        patience = N_SECONDS_ORPHANS if is_alone and workers else 0
        # Half of the runs are killed again when resumed, the others go on in peace.
        if code == 0 or rng.random() < 0.5:
            finish(server, cache, int(rng.integers(3)), patience)
            lay_old(server, cache)
            is_safe, patience = np.zeros(N_IMAGES, bool), 0.0
    return counts


def test_kills_at_random_moments_and_at_each_kind_of_step(tmp_path: Path, server: Server) -> None:
    counts = kill_many(tmp_path, server, N_KILLS)
    assert N_IMAGES in counts, "no kill behind the finishing rename"


@pytest.fixture
def appending(server: Server, tmp_path: Path) -> Server:
    """The same with --append, where a finished cache of the first images is replaced."""
    fewer = replace(server, data=jpeg_tree(tmp_path / "fewer" / "d", N_OLD))
    assert fewer.run(tmp_path / "old") == 0
    found = replace(server, old=(tmp_path / "old" / server.name).read_bytes())
    lay_old(found, tmp_path / "once")
    finish(found, tmp_path / "once", 0)
    assert f"reused: {N_OLD - 1} of {N_IMAGES} rows" in found.log.read_text()
    return found


def test_kills_while_a_finished_cache_is_replaced(tmp_path: Path, appending: Server) -> None:
    counts = kill_many(tmp_path, appending, max(3, N_KILLS // 3))
    assert N_IMAGES in counts


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_kills_while_a_finished_cache_is_replaced(tmp_path: Path, appending: Server) -> None:
    counts = kill_many(tmp_path, appending, N_KILLS_SLOW // 3)
    assert len({n for n in counts if 0 < n < N_IMAGES}) > N_KILLS_SLOW // 30, counts


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_kills_at_random_moments(tmp_path: Path, server: Server) -> None:
    counts = kill_many(tmp_path, server, N_KILLS_SLOW)
    assert len({n for n in counts if 0 < n < N_IMAGES}) > min(20, N_KILLS_SLOW // 4), counts
    assert N_IMAGES in counts


def test_a_journal_that_runs_ahead_of_the_rows_is_noticed(tmp_path: Path, server: Server) -> None:
    """The check itself: with this fault planted, kills must break it."""
    with pytest.raises(AssertionError, match="rows of"):
        kill_many(tmp_path, server, 20, is_late=True)


def test_a_committed_row_that_changes_is_noticed_and_computed_again(
    tmp_path: Path, server: Server
) -> None:
    step = ["fdatasync", server.n_calls["fdatasync"] // 2, "after"]
    assert server.run(tmp_path, step=step) == -signal.SIGKILL
    nothing = np.zeros(N_IMAGES, bool)
    is_safe = check(tmp_path, server, nothing)
    (path,) = tmp_path.glob("*.partial")
    header = journal_lines(Path(f"{path}.journal"))[0]
    row = int(np.flatnonzero(is_safe)[-1])
    with path.open("r+b") as stream:
        stream.seek(header["features_offset"] + row * header["row_bytes"])
        stream.write(b"\x55")
    with pytest.raises(AssertionError, match="rows of"):
        check(tmp_path, server, nothing)
    finish(server, tmp_path, 1)
    assert "computed again: 0 damaged lines" in server.log.read_text()
