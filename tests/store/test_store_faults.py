"""Every call that changes the disk fails once; every unsynced write is lost once."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_helpers import SEED, check_partial, fill, make_rows, make_spec, stored, write_missing

from featx.errors import CacheError
from featx.store import Cache, CacheWriter, disk, find_partials, lock

SEAM = ("allocate", "fdatasync", "fsync", "fsync_folder", "pwrite", "replace", "truncate", "unlink")
SPEC = make_spec(24)
ROWS = make_rows(SPEC)
FAILED = {5: "truncated"}
Hook = Callable[[str, tuple[Any, ...]], None]


@contextmanager
def seam(hook: Hook) -> Iterator[None]:
    """Call `hook` before each call that changes the disk."""
    real = {name: getattr(disk, name) for name in SEAM}

    def wrapped(name: str) -> Callable[..., None]:
        def call(*args: Any) -> None:
            hook(name, args)
            real[name](*args)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in SEAM:
            patch.setattr(disk, name, wrapped(name))
        yield


class FailAt:
    """Fail call number `n` of one function, or of all."""

    def __init__(self, n: int, code: int, name: str = "") -> None:
        self.left, self.code, self.name = n, code, name
        self.has_failed = False

    def __call__(self, name: str, args: tuple[Any, ...]) -> None:
        if self.name not in ("", name):
            return
        self.left -= 1
        if self.left < 0 and not self.has_failed:
            self.has_failed = True
            if name == "pwrite":  # half of it arrives
                os.pwrite(args[0], bytes(args[1])[: len(args[1]) // 2], args[2])
            raise OSError(self.code, os.strerror(self.code))


def run(target: Path) -> list[int]:
    """One run; the rows that it was told are safe."""
    safe: list[int] = []
    with CacheWriter.open(target, SPEC, overwrite=True) as writer:
        for start in range(0, 24, 4):
            todo = writer.missing()[start : start + 4]
            if todo.all():
                writer.write(
                    start,
                    ROWS[start : start + 4],
                    {r: w for r, w in FAILED.items() if start <= r < start + 4},
                )
                writer.commit()
            safe = np.flatnonzero(~writer.missing()).tolist()
            RUNS[-1] = safe
        writer.finish()
    return safe


RUNS: list[list[int]] = [[]]


def whole(tmp_path: Path) -> bytes:
    fill(tmp_path / "reference" / "a.h5", SPEC, ROWS, failed=FAILED)
    return (tmp_path / "reference" / "a.h5").read_bytes()


def count_calls(tmp_path: Path, name: str) -> int:
    calls: list[str] = []
    with seam(lambda called, _: calls.append(called)):
        run(tmp_path / "count" / "a.h5")
    return sum(name in ("", called) for called in calls)


@pytest.mark.parametrize("has_old_file", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_call_number_n_fails(tmp_path: Path, code: int, has_old_file: bool) -> None:
    expected = whole(tmp_path)
    old = b""
    n_calls = count_calls(tmp_path, "")
    assert n_calls > 30
    for n in range(n_calls):
        target = tmp_path / str(n) / "a.h5"
        if has_old_file:
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


def test_interruption_inside_any_call_loses_nothing(tmp_path: Path) -> None:
    expected = whole(tmp_path)

    class Interrupt(FailAt):
        def __call__(self, name: str, args: tuple[Any, ...]) -> None:
            try:
                super().__call__(name, args)
            except OSError:
                raise KeyboardInterrupt from None

    for n in range(count_calls(tmp_path, "")):
        target = tmp_path / str(n) / "a.h5"
        RUNS[-1] = []
        with seam(Interrupt(n, errno.EINTR)), pytest.raises(KeyboardInterrupt):
            run(target)
        if target.exists():
            assert target.read_bytes() == expected
        else:
            partials = find_partials(target)
            assert len(RUNS[-1]) <= sum(check_partial(p, stored(SPEC, ROWS)) for p in partials)
        run(target)
        assert target.read_bytes() == expected


def name_of(fd: int) -> str:
    return Path(f"/proc/self/fd/{fd}").readlink().name


@dataclass
class Inode:
    """A file's content on the disk, and what was done to it since it was synced."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[str, Any]] = field(default_factory=list)

    def after(self, chosen: Callable[[], bool]) -> bytes:
        content = bytearray(self.durable)
        for op in self.pending:
            if chosen():
                apply(content, op)
        return bytes(content)

    def sync(self) -> None:
        for op in self.pending:
            apply(self.durable, op)
        self.pending.clear()


def apply(content: bytearray, op: tuple[str, Any]) -> None:
    kind, value = op
    if kind == "grow" and len(content) < value:
        content.extend(bytes(value - len(content)))
    elif kind == "truncate":
        del content[value:]
        content.extend(bytes(value - len(content)))
    elif kind == "pwrite":
        data, offset = value
        content.extend(bytes(max(0, offset + len(data) - len(content))))
        content[offset : offset + len(data)] = data


class Disk:
    """A disk that keeps only what was synced, and any part of the rest.

    Names are durable up to the last sync of their folder; of the changes after
    it, the first few may have arrived.
    """

    def __init__(self) -> None:
        self.inodes: dict[int, Inode] = {}
        self.names: dict[str, int] = {}
        self.changes: list[tuple[str, str, int]] = []
        self.seen: dict[str, int] = {}

    def _of(self, fd: int) -> Inode:
        stat, name = os.fstat(fd), name_of(fd)
        if self.seen.get(name) != stat.st_ino:
            self.seen[name] = stat.st_ino
            self.inodes[stat.st_ino] = Inode()
            self.changes.append(("link", name, stat.st_ino))
        return self.inodes[stat.st_ino]

    def __call__(self, op: str, args: tuple[Any, ...]) -> None:
        if op in ("fsync", "fdatasync"):
            self._of(args[0]).sync()
        elif op == "pwrite":
            data, offset = bytes(args[1]), args[2]
            piece = max(1, len(data) // 4)  # a write may arrive in part
            for start in range(0, len(data), piece):
                part = (data[start : start + piece], offset + start)
                self._of(args[0]).pending.append((op, part))
        elif op in ("allocate", "truncate"):
            kind = "grow" if op == "allocate" else op
            self._of(args[0]).pending.append((kind, args[1]))
        elif op == "replace":
            ino = self.seen.pop(args[0].name)
            self.seen[args[1].name] = ino
            self.changes += [("link", args[1].name, ino), ("unlink", args[0].name, ino)]
        elif op == "unlink":
            self.changes.append(("unlink", args[0].name, self.seen.pop(args[0].name, -1)))
        elif op == "fsync_folder":
            self.names = self.folder(len(self.changes))
            self.changes.clear()

    def folder(self, n_changes: int) -> dict[str, int]:
        names = dict(self.names)
        for kind, name, ino in self.changes[:n_changes]:
            if kind == "link":
                names[name] = ino
            else:
                names.pop(name, None)
        return names

    def crash(self, rng: np.random.Generator) -> dict[str, bytes]:
        p = rng.choice([0.0, 0.5, 1.0])
        names = self.folder(int(rng.integers(len(self.changes) + 1)))
        return {name: self.inodes[i].after(lambda: rng.random() < p) for name, i in names.items()}


def crashes(tmp_path: Path, n_each: int) -> Iterator[dict[str, bytes]]:
    """What could be on the disk after a loss of power before each call, and at the end."""
    rng = np.random.default_rng(SEED)
    model, found = Disk(), []

    def hook(name: str, args: tuple[Any, ...]) -> None:
        found.extend(model.crash(rng) for _ in range(n_each))
        model(name, args)

    with seam(hook):
        run(tmp_path / "recorded" / "a.h5")
    found.extend(model.crash(rng) for _ in range(n_each))
    distinct = {tuple(sorted(state.items())) for state in found}
    yield from map(dict, sorted(distinct))


def check_after_crash(folder: Path, state: dict[str, bytes], expected: bytes) -> int:
    folder.mkdir()
    for name, content in state.items():
        (folder / name).write_bytes(content)
    target = folder / "a.h5"
    if target.exists():
        assert target.read_bytes() == expected
    n_rows = 0
    for partial in find_partials(target):
        try:
            n_rows += check_partial(partial, stored(SPEC, ROWS))
        except FileNotFoundError:  # no journal: nothing was promised
            continue
    return n_rows


def test_lost_writes_never_leave_the_journal_ahead(tmp_path: Path) -> None:
    expected = whole(tmp_path)
    n_rows = []
    for i, state in enumerate(crashes(tmp_path, 40)):
        folder = tmp_path / f"crash{i}"
        n_rows.append(check_after_crash(folder, state, expected))
        with CacheWriter.open(folder / "a.h5", SPEC) as writer:
            if not writer.is_complete:
                assert (~writer.missing()).sum() == n_rows[-1]
            write_missing(writer, ROWS, failed=FAILED)
            writer.finish()
        assert (folder / "a.h5").read_bytes() == expected
    assert len(n_rows) > 100
    assert set(range(0, 25, 4)) <= set(n_rows)


def test_the_replay_notices_a_missing_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above would see rows promised before they are durable."""
    expected = whole(tmp_path)
    real = Disk.__call__

    def forgetful(self: Disk, op: str, args: tuple[Any, ...]) -> None:
        is_data = op == "fdatasync" and name_of(args[0]).endswith(".partial")
        if not is_data:
            real(self, op, args)

    monkeypatch.setattr(Disk, "__call__", forgetful)

    def check_all() -> None:
        for i, state in enumerate(crashes(tmp_path, 40)):
            check_after_crash(tmp_path / f"crash{i}", state, expected)

    with pytest.raises(AssertionError):
        check_all()


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

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
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
