"""Extractions to be killed, forked off one process that has torch loaded already.

A line of JSON on the standard input starts one, a line on the standard output is its
exit code. Each runs the command line's own `main` in a process group of its own.

words: what follows ``featx``
log: file for its output
after: seconds until SIGKILL (null: never)
step: [name, n, how] SIGKILL ``before`` or ``after`` call number n of a function in
    `featx.store.disk`, or when ``half`` of its bytes are written (null: never)
is_alone: the processes that decode are not killed with it
is_late: a fault, to see that the tests find it: rows reach the file after the journal
calls: file for the names of all such calls (null: none)
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from forked import load

from featx.cli import main
from featx.store import disk, journal

SEAM = ("allocate", "fdatasync", "fsync", "fsync_folder", "pwrite", "replace", "truncate", "unlink")
GROUP_BYTES = 64 << 10  # a commit every second batch: many moments worth a kill


def wrap(name: str, around: Any) -> None:
    real = getattr(disk, name)
    setattr(disk, name, lambda *args: around(real, *args))


def die(is_alone: bool) -> None:
    if is_alone:
        os.kill(os.getpid(), signal.SIGKILL)
    os.killpg(0, signal.SIGKILL)


def kill_at(name: str, n: int, how: str, is_alone: bool) -> None:
    left = [n]

    def around(real, *args):
        left[0] -= 1
        if left[0]:
            return real(*args)
        if how == "half":
            fd, data, offset = args
            real(fd, bytes(data)[: len(data) // 2], offset)
        elif how == "after":
            real(*args)
        return die(is_alone)

    wrap(name, around)


def write_rows_late() -> None:
    held: list[tuple[Any, ...]] = []
    write = disk.pwrite

    def release() -> None:
        while held:
            write(*held.pop())

    def around(real, fd, data, offset):
        if bytes(data[:18])[16:] == b" {":  # a line of the journal
            return real(fd, data, offset)
        release()
        return held.append((fd, bytes(data), offset))

    wrap("pwrite", around)
    for name in ("fsync", "pread_into"):  # so that nothing but the order is wrong
        wrap(name, lambda real, *args: (release(), real(*args))[1])


def record_calls(calls: list[str]) -> None:
    for name in SEAM:
        wrap(name, lambda real, *args, name=name: (calls.append(name), real(*args))[1])


def run(order: dict[str, Any]) -> int:
    os.setsid()
    out = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for fd in (1, 2):
        os.dup2(out, fd)
    if order["is_late"]:
        write_rows_late()
    if order["step"]:
        kill_at(*order["step"], order["is_alone"])
    calls: list[str] = []
    if order["calls"]:
        record_calls(calls)
    code = main(order["words"])
    if order["calls"]:
        Path(order["calls"]).write_text(json.dumps(calls))
    return code


def child(order: dict[str, Any]) -> None:
    code = 99
    try:
        code = run(order)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        child(order)
    handle = os.pidfd_open(pid)
    is_over, _, _ = select.select([handle], [], [], order["after"])
    os.close(handle)
    if not is_over:
        # It may not have become the leader of its group yet.
        is_leader = os.getpgid(pid) == pid
        (os.kill if order["is_alone"] or not is_leader else os.killpg)(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    load()
    assert journal._GROUP_BYTES > GROUP_BYTES
    journal._GROUP_BYTES = GROUP_BYTES
    print("ready", flush=True)
    for line in sys.stdin:
        print(serve(json.loads(line)), flush=True)
