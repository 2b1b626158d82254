"""Opens changed copies of a cache; says what came of each.

usage: mutant_worker.py FILE SEED COUNT [resealed]

A crash ends this process with a signal, which is what the tests look for.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from store_helpers import reseal

from featx.errors import CacheError
from featx.store import Cache
from featx.store.header import HeaderBlock


def mutate(content: bytes, rng: np.random.Generator, low: int) -> bytes:
    data = bytearray(content)
    kind = rng.integers(6)
    at = int(rng.integers(low, len(data)))
    size = int(rng.integers(1, 200))
    if kind == 0:
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        data[at : at + size] = rng.bytes(min(size, len(data) - at))
    elif kind == 2:
        del data[at:]
    elif kind == 3:
        del data[at : at + size]
    elif kind == 4:
        data[at:at] = rng.bytes(size)
    else:
        source = int(rng.integers(low, len(data)))
        data[at : at + size] = data[source : source + size]
    return bytes(data)


def read(cache: Cache) -> str:
    """Read all rows, which is refused where `verify` finds damage, and only there."""
    found = cache.verify()
    try:
        _ = cache.X[:]
    except CacheError:
        assert found
        return "damage"
    assert not found
    return "accepted"


def main() -> None:
    content = Path(sys.argv[1]).read_bytes()
    seal = HeaderBlock.parse(content[:4096])
    is_resealed = sys.argv[4:] == ["resealed"]
    rng = np.random.default_rng(int(sys.argv[2]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutant.h5"
        for _ in range(int(sys.argv[3])):
            changed = mutate(content, rng, 4096 if is_resealed else 0)
            if changed == content:
                continue
            path.write_bytes(changed)
            if is_resealed and len(changed) > seal.features_end:
                reseal(path, seal.features_offset, seal.features_bytes)
            try:
                with Cache.open(path) as cache:
                    _ = (cache.paths, cache.class_names, cache.errors, repr(cache))
                    print(read(cache), flush=True)
            except CacheError:
                print("refused", flush=True)


if __name__ == "__main__":
    main()
