"""A disk that loses any part of what was not synced; the journal is never ahead of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_helpers import SEED, check_partial, stored, write_missing
from store_seam import FAILED, FINISHED, ROWS, RUNS, SPEC, run, seam, whole

from featx.store import CacheWriter, find_partials


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
    it, any may have arrived.
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
            self.changes.append((f"rename {args[0].name}", args[1].name, ino))
        elif op == "unlink":
            self.changes.append(("unlink", args[0].name, self.seen.pop(args[0].name, -1)))
        elif op == "fsync_folder":
            self.names = self.folder(lambda: True)
            self.changes.clear()

    def folder(self, chosen: Callable[[], bool]) -> dict[str, int]:
        names = dict(self.names)
        for kind, name, ino in self.changes:
            if not chosen():
                continue
            if kind == "unlink":
                names.pop(name, None)
            else:
                names[name] = ino
                names.pop(kind.removeprefix("rename "), None)
        return names

    def crash(self, rng: np.random.Generator) -> dict[str, bytes]:
        p = rng.choice([0.0, 0.5, 1.0])
        names = self.folder(lambda: rng.random() < p)
        return {name: self.inodes[i].after(lambda: rng.random() < p) for name, i in names.items()}


def crashes(tmp_path: Path, n_each: int) -> Iterator[tuple[dict[str, bytes], int]]:
    """What could be on the disk after a loss of power before each call, and at the end.

    With the number of rows that the run had been told were safe by then.
    """
    rng = np.random.default_rng(SEED)
    RUNS[-1] = []
    model, found = Disk(), []

    def hook(name: str, args: tuple[Any, ...]) -> None:
        found.extend((model.crash(rng), len(RUNS[-1])) for _ in range(n_each))
        model(name, args)

    with seam(hook):
        run(tmp_path / "recorded" / "a.h5")
    found.extend((model.crash(rng), FINISHED) for _ in range(n_each))
    distinct: dict[Any, int] = {}
    for state, n_safe in found:
        key = tuple(sorted(state.items()))
        distinct[key] = max(n_safe, distinct.get(key, 0))
    for key, n_safe in sorted(distinct.items()):
        yield dict(key), n_safe


def check_after_crash(folder: Path, crash: tuple[dict[str, bytes], int], expected: bytes) -> int:
    state, n_safe = crash
    folder.mkdir()
    for name, content in state.items():
        (folder / name).write_bytes(content)
    target = folder / "a.h5"
    if target.exists():
        assert target.read_bytes() == expected
        n_safe = 0
    assert n_safe < FINISHED, "the finished cache lost its name"
    n_rows = 0
    for partial in find_partials(target):
        try:
            n_rows += check_partial(partial, stored(SPEC, ROWS))
        except FileNotFoundError:  # no journal: nothing was promised
            continue
    assert n_rows >= n_safe
    return n_rows


def test_lost_writes_never_leave_the_journal_ahead(tmp_path: Path) -> None:
    expected = whole(tmp_path)
    n_rows = []
    for i, crash in enumerate(crashes(tmp_path, 40)):
        folder = tmp_path / f"crash{i}"
        n_rows.append(check_after_crash(folder, crash, expected))
        with CacheWriter.open(folder / "a.h5", SPEC) as writer:
            if not writer.is_complete:
                assert (~writer.missing()).sum() == n_rows[-1]
            write_missing(writer, ROWS, failed=FAILED)
            writer.finish()
        assert (folder / "a.h5").read_bytes() == expected
        assert [p.name for p in folder.iterdir()] == ["a.h5"]
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
        for i, crash in enumerate(crashes(tmp_path, 40)):
            check_after_crash(tmp_path / f"crash{i}", crash, expected)

    with pytest.raises(AssertionError):
        check_all()
