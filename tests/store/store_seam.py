"""Calls that change the disk, watched, made to fail, or counted."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_helpers import fill, make_rows, make_spec

from featx.store import CacheWriter, disk

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


def killed_at(n: int, run: Callable[[], object]) -> bool:
    """Run in a child that is killed before its call number `n`; whether it came so far."""
    left = [n]

    def hook(*_: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            with seam(hook):
                run()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


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
FINISHED = 10**9


def whole(tmp_path: Path) -> bytes:
    fill(tmp_path / "reference" / "a.h5", SPEC, ROWS, failed=FAILED)
    return (tmp_path / "reference" / "a.h5").read_bytes()


def count_calls(tmp_path: Path, name: str) -> int:
    calls: list[str] = []
    with seam(lambda called, _: calls.append(called)):
        run(tmp_path / "count" / "a.h5")
    return sum(name in ("", called) for called in calls)
