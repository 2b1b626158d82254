"""A run in a process of its own: opens a cache, waits for a line, fills it and finishes it.

usage: store_child.py TARGET N_ROWS N_FEATURES
"""

from __future__ import annotations

import sys
from pathlib import Path

from store_helpers import make_rows, make_spec, write_missing

from featx.errors import CacheError
from featx.store import CacheWriter


def main() -> int:
    target, n_rows, n_features = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    spec = make_spec(n_rows, n_features)
    try:
        with CacheWriter.open(target, spec) as writer:
            print("open", flush=True)
            sys.stdin.readline()
            write_missing(writer, make_rows(spec), failed={5: "truncated"})
            writer.finish()
    except CacheError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
