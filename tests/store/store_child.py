"""A run that the tests kill: streams rows into a cache, and finishes it.

usage: store_child.py TARGET N_ROWS N_FEATURES [KILL_AT | hold]

KILL_AT: kill this process at its call number KILL_AT that changes the disk,
before the call; with a minus sign, counted from the end of a whole run (-1 is the
last call). ``hold`` opens the cache and waits for a line on the standard input.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from store_helpers import make_rows, make_spec, write_missing

from featx.errors import CacheError
from featx.store import CacheWriter, disk

SEAM = ("allocate", "fdatasync", "fsync", "fsync_folder", "pwrite", "replace", "truncate", "unlink")


def kill_at(n: int) -> None:
    left = [n]

    def wrapped(real):
        def call(*args):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args)

        return call

    for name in SEAM:
        setattr(disk, name, wrapped(getattr(disk, name)))


def main() -> int:
    target, n_rows, n_features = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    mode = sys.argv[4] if len(sys.argv) > 4 else ""
    spec = make_spec(n_rows, n_features)
    rows = make_rows(spec)
    if mode and mode != "hold":
        kill_at(int(mode))
    print("ready", flush=True)
    try:
        with CacheWriter.open(target, spec) as writer:
            if mode == "hold":
                print("open", flush=True)
                sys.stdin.readline()
            write_missing(writer, rows, failed={5: "truncated"})
            writer.finish()
    except CacheError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
