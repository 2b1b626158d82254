"""Every call that changes the disk fails once, and locks that do not work."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

import pytest
from store_helpers import check_partial, fill, make_rows, make_spec, stored, write_missing
from store_seam import ROWS, RUNS, SPEC, FailAt, count_calls, run, seam, whole

from featx import atomic
from featx.errors import CacheError
from featx.store import Cache, CacheWriter, disk, find_partials, lock


def test_call_number_n_fails(tmp_path: Path) -> None:
    expected = whole(tmp_path)
    n_calls = count_calls(tmp_path, "")
    assert n_calls > 30
    for n in range(n_calls):
        target, code = tmp_path / str(n) / "a.h5", (errno.ENOSPC, errno.EIO)[n % 2]
        fill(target, make_spec(identity={"old": 1}), make_rows(make_spec()))
        old = target.read_bytes()
        RUNS[-1] = []
        failure = FailAt(n, code)
        with seam(failure), pytest.raises(CacheError, match=f"{os.strerror(code)}|free some space"):
            run(target)
        assert failure.has_failed
        # The target is what it was, or complete.
        content = target.read_bytes() if target.exists() else b""
        assert content in (old, expected)
        if content != expected:
            partials = find_partials(target)
            kept = check_partial(partials[0], stored(SPEC, ROWS)) if partials else 0
            assert kept >= len(RUNS[-1])
            if partials and RUNS[-1]:
                with CacheWriter.open(target, SPEC, overwrite=True) as writer:
                    assert not writer.missing()[RUNS[-1]].any()
        run(target)
        assert target.read_bytes() == expected
        assert [p.name for p in target.parent.iterdir()] == ["a.h5"]


def test_a_run_that_failed_takes_no_more_rows(tmp_path: Path) -> None:
    writer = CacheWriter.open(tmp_path / "a.h5", SPEC)
    writer.write(0, ROWS[:4])
    with (
        seam(FailAt(0, errno.EIO, "fdatasync")),
        pytest.raises(CacheError, match="0 rows are safe"),
    ):
        writer.commit()
    for call in (writer.commit, writer.finish, lambda: writer.write(4, ROWS[4:8])):
        with pytest.raises(CacheError, match="failed before"):
            call()
    assert writer.missing().all()
    writer.close()
    assert list(tmp_path.iterdir()) == []  # no row was promised, so nothing is kept


def test_two_writers_without_locks_make_one_valid_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock.Lock, "acquire", lambda self: None)
    target = tmp_path / "a.h5"
    with CacheWriter.open(target, SPEC) as one, CacheWriter.open(target, SPEC) as two:
        assert "another process" in two.notices[0]
        for start in range(0, 24, 4):
            for writer in (one, two):
                writer.write(start, ROWS[start : start + 4])
                writer.commit()
        one.finish()
        assert Cache.open(target).verify() == []
        two.finish()
    assert Cache.open(target).verify() == []
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(atomic.fcntl, "flock", no_locks)
    target = tmp_path / "a.h5"
    with CacheWriter.open(target, SPEC) as writer:
        assert "no file locks" in writer.notices[0]
        writer.write(0, ROWS[:4])
    with CacheWriter.open(target, SPEC) as writer:  # never shared, so never resumed
        assert writer.missing().all()
        assert "left alone" in "".join(writer.notices)
        write_missing(writer, ROWS)
        writer.finish()
    assert Cache.open(target).verify() == []


def test_the_seam_is_the_only_way_to_the_disk() -> None:
    folder = Path(disk.__file__).parent
    calls = (
        "os.pwrite",
        "os.write",
        "os.fsync",
        "os.replace",
        "os.rename",
        ".write_bytes",
        "os.remove",
    )
    for path, call in itertools.product(sorted(folder.glob("*.py")), calls):
        if path.name not in ("disk.py", "lock.py"):
            assert call not in path.read_text(), f"{path.name}: {call}"
