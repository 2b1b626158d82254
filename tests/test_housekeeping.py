"""Nothing in use, and nothing of others, is ever removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from featx.errors import CacheBusyError, CacheError, UsageError
from featx.export import export_cache
from featx.housekeeping import find_garbage, list_entries, plan_removal, remove
from featx.store import Cache, CacheSpec, CacheWriter
from featx.store.pack import pack_cache

HOLD = """
import sys
from test_housekeeping import begin
with begin(sys.argv[1]) as writer:
    print("open", flush=True)
    sys.stdin.readline()
"""


def make_spec(n_rows=10):
    meta = {"backbone": "vgg16", "data": "cifar10", "split": "test", "layer": "features"}
    labels, paths = np.zeros(n_rows, int), [str(i) for i in range(n_rows)]
    return CacheSpec({"n": n_rows}, meta, labels, ["cat"], paths, 4, "float16")


def begin(path, n_rows=4):
    writer = CacheWriter.open(path, make_spec())
    writer.write(0, np.ones((n_rows, 4), np.float32))
    writer.commit()
    return writer


def make_cache(path):
    with begin(path, 10) as writer:
        writer.finish()
    return path


def make_old(*paths):
    for path in paths:
        os.utime(path, (time.time() - 30 * 86_400,) * 2)


@pytest.fixture
def folder(tmp_path):
    """A cache, an archive, a partial file, and what belongs to others."""
    root = tmp_path / "cache"
    pack_cache(make_cache(root / "a.h5"))
    begin(root / "sub" / "b.h5").close()
    (root / "notes.txt").write_text("mine")
    (root / "other.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    (tmp_path / "outside.h5").write_bytes((root / "a.h5").read_bytes())
    (root / "link.h5").symlink_to(tmp_path / "outside.h5")
    return root


@pytest.fixture
def busy(tmp_path):
    """Another process writes ``c.h5``."""
    path = tmp_path / "cache" / "c.h5"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert child.stdout.readline() == b"open\n"
    yield path, child.pid
    child.communicate(b"\n", timeout=300)


def names(root):
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if not p.is_dir())


def test_list_names_what_there_is(folder):
    found = {entry.path.relative_to(folder).as_posix(): entry for entry in list_entries(folder)}
    partial = next(name for name in found if name.endswith(".partial"))
    assert set(found) == {"a.h5", "a.featx.h5", partial}
    assert found["a.h5"].state == "complete"
    assert found["a.h5"].n_bytes == (folder / "a.h5").stat().st_size
    assert found["a.h5"].made_by == "vgg16 cifar10 test features"
    assert found["a.featx.h5"].state == "packed"
    assert found[partial].state == "partial 40 %"
    assert found[partial].n_bytes > (folder / partial).stat().st_size
    assert all(0 <= entry.age_seconds < 600 for entry in found.values())
    content = bytearray((folder / "a.h5").read_bytes())
    content[100] ^= 1
    (folder / "a.h5").write_bytes(content)
    entry = next(e for e in list_entries(folder) if e.path.name == "a.h5")
    assert entry.state == "damaged"
    with pytest.raises(CacheError, match="--cache DIR"):
        list_entries(folder / "none")


def test_removal_takes_what_was_named_and_no_more(folder):
    before = names(folder)
    paths = plan_removal(folder, ["a.h5", str(folder / "sub" / "b.h5")])
    assert names(folder) == before
    n_bytes = sum(
        p.stat().st_size for p in folder.rglob("*") if p.name.startswith(("a.h5", "b.h5"))
    )
    with Cache.open(folder / "a.h5") as cache:  # open files stay readable
        assert remove(paths) == n_bytes
        assert (cache.X[:] == 1).all()
    assert names(folder) == ["a.featx.h5", "link.h5", "notes.txt", "other.h5"]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("../outside.h5", UsageError, "outside the cache folder"),
        ("..", UsageError, "outside the cache folder"),
        (".", UsageError, "outside the cache folder"),
        ("/etc/passwd", UsageError, "outside the cache folder"),
        ("way/x.h5", UsageError, "outside the cache folder"),
        ("notes.txt", CacheError, "not a cache of featx"),
        ("other.h5", CacheError, "not a cache of featx"),
        ("link.h5", CacheError, "not a cache of featx"),
        ("sub", CacheError, "not a cache of featx"),
        ("a.h6", UsageError, "did you mean a.h5"),
    ],
)
def test_removal_refuses_what_is_not_its_own(folder, name, kind, message):
    (folder / "way").symlink_to(folder.parent)
    before = names(folder.parent)
    with pytest.raises(kind, match=message):
        plan_removal(folder, ["a.h5", name])
    assert names(folder.parent) == before


def test_what_is_being_written_is_never_removed(folder, busy):
    path, pid = busy
    partial = next(path.parent.glob("c.h5.*.partial"))
    for name in ("c.h5", partial.name):
        with pytest.raises(CacheBusyError, match=f"process {pid} on"):
            plan_removal(folder, [name])
    with pytest.raises(CacheBusyError, match=f"process {pid} on"):
        remove([partial])
    path.with_name("c.h5.lock").unlink()  # by hand: the partial file itself is locked too
    with pytest.raises(CacheBusyError, match="another process"):
        plan_removal(folder, [partial.name])
    assert partial.exists()


def test_gc_leaves_what_is_in_use(folder, busy):
    path, _ = busy
    ours = [*path.parent.glob("c.h5*")]
    assert len(ours) == 3
    make_old(*ours)
    garbage, notices = find_garbage(folder)
    assert garbage == []
    assert any("c.h5.lock is in use" in notice for notice in notices)
    assert any(".partial is in use" in notice for notice in notices)


def leftovers(folder):
    """All kinds of them, by name."""
    partial = next((folder / "sub").glob("*.partial"))
    journal = folder / "x.h5.0123456789ab-01234567.partial.journal"
    journal.write_bytes(partial.with_name(partial.name + ".journal").read_bytes())
    lock = folder / "a.h5.lock"
    lock.write_text(json.dumps({"pid": 1, "host": "h", "since": "then"}))
    temporary = folder / "a.npz.0a1b2c3d.featx-tmp"
    temporary.write_bytes(b"half")
    tensors = folder / "a.projector.0a1b2c3d.featx-tmp"
    tensors.mkdir()
    (tensors / "tensors.tsv").write_text("1")
    make_old(partial, partial.with_name(partial.name + ".journal"), journal, lock, temporary)
    make_old(tensors / "tensors.tsv", tensors)
    return {partial, journal, lock, temporary, tensors}


def foreign(folder):
    """What looks a little like featx's own."""
    (folder / "yarn.lock").write_text("{}")
    (folder / "x.h5.lock").write_text("poetry")
    (folder / "a.partial").write_text("x")
    (folder / "y.h5.0123456789ab-01234567.partial").write_text("not ours")
    (folder / "z.h5.0123456789ab-01234567.partial.journal").write_text("dear diary")
    (folder / "b.featx-tmp").write_text("x")
    (folder / "b.projector.0a1b2c3d.featx-tmp").mkdir()
    (folder / "b.projector.0a1b2c3d.featx-tmp" / "thesis.tex").write_text("x")
    (folder / "l.npz.0a1b2c3d.featx-tmp").symlink_to(folder / "notes.txt")
    make_old(*folder.glob("*"), *folder.glob("*/*"))


def test_gc_removes_what_stopped_runs_left(folder):
    expected = leftovers(folder)
    before = set(names(folder))
    garbage, notices = find_garbage(folder)
    assert {item.path for item in garbage} == expected
    assert notices == []
    reasons = " ".join(item.reason for item in garbage)
    for text in ("partial 40 %, resumable", "journal without", "lock of no", "stopped pack"):
        assert text in reasons
    assert find_garbage(folder, 31) == ([], [])
    assert remove(item.path for item in garbage) == sum(item.n_bytes for item in garbage)
    gone = {p.relative_to(folder).as_posix() for p in expected}
    rest = {n for n in before if not any(n.startswith(g) for g in gone)}
    assert set(names(folder)) == rest
    assert rest == {"a.featx.h5", "a.h5", "link.h5", "notes.txt", "other.h5"}


def test_gc_never_touches_what_is_of_others(folder):
    foreign(folder)
    before = names(folder)
    partial = next((folder / "sub").glob("*.partial"))
    garbage, _ = find_garbage(folder, 0)
    assert {item.path for item in garbage} == {partial}
    remove([partial])
    assert set(before) - set(names(folder)) == {
        f"sub/{partial.name}",
        f"sub/{partial.name}.journal",
    }


def test_gc_leaves_a_running_export(folder, monkeypatch):
    seen = []

    def look(*args):
        make_old(*folder.glob("*.featx-tmp"), *folder.glob("*.featx-tmp/*"))
        seen.append(find_garbage(folder))
        with pytest.raises(CacheBusyError):
            remove(folder.glob("*.featx-tmp"))

    monkeypatch.setattr("featx.store.new_file.disk.fsync", look)
    for format in ("npz", "projector"):
        export_cache(folder / "a.h5", format)
    assert len(seen) >= 2
    for garbage, notices in seen:
        assert garbage == []
        assert "featx-tmp is in use" in notices[0]
