"""Processes that do not know each other fill one place; the result is that of one run."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from one_thread import one_thread
from PIL import Image

from featx.catalog import load
from featx.cli import main
from featx.errors import CacheMismatchError, UsageError
from featx.extract import Plan, ShardJob, Share, run_plan, run_shards
from featx.extract import run as extract_run
from featx.store import Cache, verify_file
from featx.store.lock import Lock
from featx.store.merge import merge_shards
from featx.store.recognise import PLACE_MANIFEST

SEED = int(os.environ.get("FEATX_TEST_SEED", "0"))
N_IMAGES, SHARD_ROWS, BATCH = 44, 16, 4


def picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_list(root: Path, n: int) -> None:
    """List the first images of a folder, in the order in which they were taken."""
    lines = [f"{i:03}.png,{'cat' if i % 3 else 'dog'}" for i in range(n)]
    (root / "list.csv").write_text("\n".join(["path,label", *lines]) + "\n")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """As the other processes of these tests have."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for i in range(N_IMAGES):
        picture(root / f"{i:03}.png", i)
    (root / "021.png").write_bytes((root / "021.png").read_bytes()[:90])  # cannot be decoded
    write_list(root, N_IMAGES)
    return root


def plan_of(root: Path, cache: Path, **more) -> Plan:
    given = {
        "backbone": ("squeezenet1_0",),
        "data": str(root / "list.csv"),
        "weights": "random",
        "input_size": 64,
        "pool": "avg",
        "device": "cpu",
        "batch_size": BATCH,
        "workers": 0,
        "cache_dir": str(cache),
    }
    return Plan(**(given | more))


@pytest.fixture(scope="module")
def one(images, tmp_path_factory):
    """What one run gives."""
    [report] = run_plan(plan_of(images, tmp_path_factory.mktemp("one")), tell=str)
    return report.path


@pytest.fixture
def told():
    return []


@pytest.fixture
def extract(images, tmp_path, told):
    """Compute a share of the shards in ``tmp_path / "c"``."""

    def run(share="1/1", *, root=images, rows=SHARD_ROWS, **more):
        plan = plan_of(root, tmp_path / "c", **more)
        return run_shards(plan, Share.parse(share), rows, tell=told.append)

    return run


@pytest.fixture
def place(one, tmp_path):
    return tmp_path / "c" / one.with_suffix(".shards").name


def content(path: Path):
    """All of a file, but for the moment at which it was made."""
    with h5py.File(path) as file:
        found = {name: file[name][()].tobytes() for name in file}
        meta = json.loads(file.attrs["meta"])
        del meta["created"]
        names = ("fingerprint", "block_rows", "complete")
        return found, meta, {name: file.attrs[name] for name in names}


def state(place: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in place.rglob("*.h5")}


def check_merged(place: Path, one: Path) -> None:
    out, _ = merge_shards(place)
    assert content(out) == content(one)
    assert verify_file(out) == []


def test_shares_together_are_one_run_to_the_bit(extract, place, one, told):
    assert {r.path.name for r in extract("2/2")} == {"rows-000000000016.h5"}
    assert told[-1] == f"{place}: 2 of 3 shards are missing: rows 0-15, 32-43"
    assert len(extract("1/2", rows=None)) == 2  # as many rows as those of the others
    assert told[-1].startswith(f"{place}: {N_IMAGES} x 512 float16 in 3 shards, complete, 1 image ")
    check_merged(place, one)
    with load(place) as many, Cache.open(one) as single:
        assert many.fingerprint == single.fingerprint
        assert list(many.errors) == [21]


@pytest.mark.parametrize("text", ["", "0/2", "3/2", "2", "a/b", "1/0", "-1/2", "1/2/3"])
def test_a_wrong_share_is_refused(text):
    with pytest.raises(UsageError, match="give I/N, as in 3/20"):
        Share.parse(text)


def test_every_shard_is_in_one_share():
    for n in range(1, 9):
        shares = [Share.parse(f"{i}/{n}") for i in range(1, n + 1)]
        taken = [number for share in shares for number in share.of(range(40))]
        assert sorted(taken) == list(range(40))


def test_what_is_finished_and_verifies_is_left_alone(extract, place, told):
    extract()
    before = state(place)
    assert extract() == []
    assert "3 shards of this share finished before, every byte as written" in told
    assert state(place) == before


@pytest.mark.parametrize("where", ["features", "names", "size"])
def test_a_damaged_shard_is_mended_and_the_others_stay(extract, place, one, where):
    extract()
    before = state(place)
    file = place / "0000/rows-000000000016.h5"
    with Cache.open(file) as cache:
        extents = cache._structure.extents
    with file.open("r+b") as stream:
        if where == "size":
            stream.truncate(file.stat().st_size - 100)
        else:
            name = "features" if where == "features" else "paths"
            stream.seek(extents[name].offset + 1)
            byte = stream.read(1)
            stream.seek(-1, os.SEEK_CUR)
            stream.write(bytes([byte[0] ^ 1]))
    assert verify_file(place) != []
    assert [report.path for report in extract()] == [file]
    after = state(place)
    assert [name for name in before if after[name] != before[name]] == [file.name]
    check_merged(place, one)


def grown(images: Path, root: Path, extract) -> Path:
    """Extract a list of 38 images, which then has all of them."""
    root.mkdir()
    for path in images.glob("*.png"):
        (root / path.name).symlink_to(path)
    write_list(root, 38)
    extract(root=root)
    write_list(root, N_IMAGES)
    return root


def test_new_images_at_the_end_cost_only_themselves(extract, images, place, tmp_path, told):
    root = grown(images, tmp_path / "images", extract)
    with pytest.raises(CacheMismatchError, match="give --append"):
        extract(root=root)
    before = state(place)
    first = extract("1/2", root=root, append=True)  # tries what failed again, too
    assert told[-1].startswith(f"{place}: ")
    reports = [*first, *extract("2/2", root=root, append=True)]
    n_computed = {report.path.name: report.n_computed for report in reports}
    assert n_computed == {"rows-000000000016.h5": 1, "rows-000000000032.h5": 6}
    assert state(place)["rows-000000000000.h5"] == before["rows-000000000000.h5"]
    [report] = run_plan(plan_of(root, tmp_path / "one"), tell=str)
    check_merged_features(place, report.path)


def check_merged_features(place: Path, one: Path) -> None:
    out, _ = merge_shards(place)
    assert content(out)[0] == content(one)[0]


def test_a_list_that_grew_is_never_read_with_old_shards(extract, images, place, tmp_path, told):
    root = grown(images, tmp_path / "images", extract)
    extract("1/3", root=root, append=True)  # the last shard is of the third share
    assert "not complete yet: " in told[-1]
    assert "does not hold the images of rows 32-43" in told[-1]


@pytest.mark.parametrize("text", [None, "", "{}"])
def test_a_manifest_that_is_lost_costs_no_shard(extract, place, one, text):
    extract()
    before = state(place)
    if text is None:
        (place / PLACE_MANIFEST).unlink()
    else:
        (place / PLACE_MANIFEST).write_text(text)
    extract(rows=None, overwrite=True)
    changed = {name for name, _ in before.items() ^ state(place).items()}
    assert changed == {"rows-000000000016.h5"}  # the failed row is tried again
    check_merged(place, one)


@pytest.mark.parametrize("names_place", [True, False])
def test_a_repair_computes_what_is_damaged_and_nothing_else(
    extract, place, one, capsys, names_place
):
    extract()
    whole = place / "0000" / "rows-000000000000.h5"
    damaged = place / "0000" / "rows-000000000032.h5"
    before = state(place)
    with damaged.open("r+b") as stream:
        stream.seek(-9, os.SEEK_END)
        stream.write(b"damaged!!")
    assert main(["repair", str(place if names_place else damaged), "-q"]) == 0
    after = state(place)
    assert before[whole.name] == after[whole.name]
    # A repair tries failed rows again too.
    assert (before["rows-000000000016.h5"] == after["rows-000000000016.h5"]) is not names_place
    check_merged(place, one)


def test_a_place_with_another_name_is_not_computed_anew(extract, place, capsys):
    extract()
    other = place.rename(place.with_name("other.shards"))
    assert main(["repair", str(other), "-q"]) == 2
    assert f"give its folder that name again ({place.name})" in capsys.readouterr().err
    assert not place.exists()


def test_other_settings_are_refused_field_by_field(extract, place, monkeypatch):
    extract()
    before = state(place)
    monkeypatch.setattr(extract_run, "DECODER", "another")
    with pytest.raises(CacheMismatchError) as caught:
        extract()
    [line] = caught.value.differences
    assert line.startswith("decoder: asked for 'another', the file has ")
    assert state(place) == before
    extract("1/3", overwrite=True)
    with load(place) as cache:
        cache.X[0]
        with pytest.raises(CacheMismatchError, match="decoder: asked for 'another'"):
            cache.X[16]
    extract(overwrite=True)
    assert verify_file(place) == []


def test_a_changed_image_is_told_and_computed_where_that_is_asked_for(
    extract, images, place, tmp_path
):
    root = tmp_path / "images"
    root.mkdir()
    for path in images.glob("*.png"):
        (root / path.name).symlink_to(path)
    write_list(root, N_IMAGES)
    extract(root=root)
    (root / "003.png").unlink()
    picture(root / "003.png", 1000)
    with pytest.raises(CacheMismatchError, match="1 image changed: 003.png"):
        extract(root=root)
    reports = extract(root=root, append=True)
    assert {r.path.name: r.n_computed for r in reports} == {
        "rows-000000000000.h5": 1,
        "rows-000000000016.h5": 1,  # the image that failed is tried again
    }


def test_a_shard_without_one_good_image_does_not_stop_the_others(tmp_path, told):
    root = tmp_path / "images"
    for i in range(12):
        picture(root / f"{i:03}.png", i)
    for i in range(4, 8):
        (root / f"{i:03}.png").write_bytes(b"no image")
    write_list(root, 12)
    run_shards(plan_of(root, tmp_path / "c"), None, 4, tell=told.append)
    assert told[-1].endswith("12 x 512 float16 in 3 shards, complete, 4 images could not be read")


def test_layers_are_computed_in_one_pass_into_a_place_each(images, tmp_path):
    layers = ("features.5", "features.12")
    plan = plan_of(images, tmp_path / "c", layer=layers)
    reports = run_shards(plan, None, SHARD_ROWS, tell=str)
    assert len(reports) == 6
    one = run_plan(replace(plan, cache_dir=str(tmp_path / "one")), tell=str)
    for report in one:
        check_merged(tmp_path / "c" / report.path.with_suffix(".shards").name, report.path)


def test_a_unit_of_work_is_computed_from_its_pickle(images, place, one, tmp_path):
    plan = plan_of(images, tmp_path / "c")
    shards = list(ShardJob.open(plan, SHARD_ROWS).shards())
    worker = ShardJob.open(pickle.loads(pickle.dumps(plan)))
    for shard in reversed(shards):
        same = pickle.loads(pickle.dumps(shard))
        assert same == shard
        assert worker.run(same) is not None
        assert worker.run(same) is None
    check_merged(place, one)


def test_a_shard_that_another_process_computes_is_left_to_it(extract, place, one, told):
    (place / "0000").mkdir(parents=True)
    lock = Lock(place / "0000/rows-000000000016.h5")
    lock.acquire()
    assert len(extract()) == 2
    [line] = [line for line in told if line.startswith("left to its process: ")]
    assert f"{place}/0000/rows-000000000016.h5 is being written by process" in line
    assert told[-1] == f"{place}: 1 of 3 shards are missing: rows 16-31"
    lock.release()
    assert len(extract()) == 1
    check_merged(place, one)


def test_the_commands(images, place, one, tmp_path, capsys):
    words = ["extract", "--backbone", "squeezenet1_0", "--data", str(images / "list.csv")]
    words += ["--weights", "random", "--input-size", "64", "--pool", "avg", "--device", "cpu"]
    words += ["--batch-size", str(BATCH), "--workers", "0", "--cache", str(tmp_path / "c"), "-q"]
    assert main([*words, "--shard", "1/2", "--shard-rows", str(SHARD_ROWS)]) == 0
    assert main(["merge", str(place)]) == 1
    assert "1 of 3 shards are missing: rows 16-31" in capsys.readouterr().err
    assert main([*words, "--shard", "5/2"]) == 2
    assert main([*words, "--shard", "2/2", "--shard-rows", "32"]) == 1
    assert "leave out --shard-rows" in capsys.readouterr().err
    assert main([*words, "--shard", "2/2"]) == 0
    assert main(["merge", str(place), "-q"]) == 0
    assert content(place.with_suffix(".h5")) == content(one)
    assert main(["info", str(place)]) == 0
    assert "shards: 3 of 16 rows" in capsys.readouterr().out
    assert main(["verify", str(place)]) == 0
    assert capsys.readouterr().out == f"{place}: intact\n"
    assert main(["export", str(place), "-f", "npz", "-o", str(tmp_path / "x.npz"), "-q"]) == 0
    with np.load(tmp_path / "x.npz") as arrays, Cache.open(one) as cache:
        good = np.delete(cache.X[:], 21, axis=0)
        assert any(np.array_equal(arrays[name], good) for name in arrays.files)


class Server:
    """The process that forks runs to be killed; see kill_server.py."""

    def __init__(self, process, words, log):
        self.process, self.words, self.log = process, words, log

    def start(self, **order):
        none = {"after": None, "step": None, "is_alone": False, "is_late": False, "calls": None}
        order = {**none, **order, "words": self.words, "log": str(self.log)}
        print(json.dumps(order), file=self.process.stdin, flush=True)

    def wait(self) -> int:
        return int(self.process.stdout.readline())


@pytest.fixture
def servers(images, tmp_path):
    """Two of them, which ask the same."""
    words = ["extract", "--backbone", "squeezenet1_0", "--data", str(images / "list.csv")]
    words += ["--weights", "random", "--input-size", "64", "--pool", "avg", "--device", "cpu"]
    words += ["--batch-size", str(BATCH), "--workers", "0", "--cache", str(tmp_path / "c")]
    words += ["--shard", "1/1", "--shard-rows", str(SHARD_ROWS)]
    started = [
        subprocess.Popen(
            [sys.executable, Path(__file__).with_name("kill_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for _ in range(2)
    ]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    yield [Server(p, words, tmp_path / f"log{i}") for i, p in enumerate(started)]
    for process in started:
        process.communicate()


def test_killed_and_racing_processes_lose_and_double_nothing(servers, place, one):
    rng = np.random.default_rng(SEED)
    finished: dict[str, tuple[int, int]] = {}
    n_killed = 0
    moments = [
        {"step": [name, n, how]}
        for name, n, how in (
            ("replace", 1, "before"),
            ("replace", 1, "after"),
            ("fdatasync", 2, "after"),
            ("pwrite", 4, "half"),
            ("unlink", 1, "after"),
        )
    ]
    moments += [{"after": float(rng.uniform(0.2, 3))} for _ in range(4)]
    for order in moments:
        servers[0].start(**order)
        servers[1].start(**moments[int(rng.integers(len(moments)))])
        codes = [server.wait() for server in servers]
        logs = [server.log.read_text() for server in servers]
        assert all(code in (0, -signal.SIGKILL) for code in codes), logs
        now = state(place)
        n_killed += codes.count(-signal.SIGKILL)
        assert finished.items() <= now.items(), "a finished shard was written again"
        finished = now
    assert n_killed >= 3
    servers[0].start()
    assert servers[0].wait() == 0, servers[0].log.read_text()
    leftovers = [p.name for p in place.rglob("*") if p.suffix in (".partial", ".journal")]
    assert leftovers == []
    check_merged(place, one)
