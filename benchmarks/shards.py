"""What a place of many shards costs: begin, find what is missing, open, read, merge.

    python benchmarks/shards.py [--shards 10000] [--rows 10000000] [--folder DIR]

First many rows in shards of 8,192; then shards of two rows, a quarter of them and all, so that the
growth shows. Each step runs in a process of its own, whose time and largest memory are printed.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from featx import load
from featx.store import CacheSpec, CacheWriter
from featx.store.merge import merge_shards
from featx.store.shards import Manifest, begin_place, list_digests

N_FEATURES, N_CLASSES = 8, 10


def paths_of(start: int, stop: int) -> list[str]:
    """Names as long as those of a large data set."""
    return [f"train/n{row % N_CLASSES:08d}/image_{row:010d}.jpg" for row in range(start, stop)]


def manifest_of(n_rows: int, shard_rows: int) -> Manifest:
    """Give what the first process would write."""
    labels = np.arange(n_rows) % N_CLASSES
    return Manifest(
        identity={"backbone": "simulated"},
        meta={"backbone": "simulated", "split": "train", "data": "simulated"},
        class_names=[f"class {i}" for i in range(N_CLASSES)],
        n_rows=n_rows,
        n_features=N_FEATURES,
        dtype="float16",
        shard_rows=shard_rows,
        listed=list_digests(paths_of(0, n_rows), labels, shard_rows),
    )


def begin(place: Path, n_rows: int, shard_rows: int) -> None:
    """Write the manifest."""
    begin_place(place, manifest_of(n_rows, shard_rows), grows=False, overwrite=False, tell=print)


def fill(place: Path, *_: int) -> None:
    """Write every shard that is missing."""
    os.fsync = os.fdatasync = lambda fd: None  # the disk is not what is simulated
    manifest = Manifest.read(place)
    rng = np.random.default_rng(0)
    for number in manifest.missing(place):
        start, stop = manifest.rows(number)
        n = stop - start
        spec = CacheSpec(
            identity={**manifest.identity, "source": {"content": str(number)}},
            meta=manifest.meta,
            labels=np.arange(start, stop) % N_CLASSES,
            class_names=manifest.class_names,
            paths=paths_of(start, stop),
            n_features=N_FEATURES,
            dtype="float16",
            image_digests=rng.integers(0, 256, (n, 32), np.uint8),
        )
        with CacheWriter.open(place / manifest.file_name(number), spec) as writer:
            writer.write(0, rng.normal(size=(n, N_FEATURES)).astype(np.float32))
            writer.finish()


def resume(place: Path, *_: int) -> None:
    """Find that nothing is missing."""
    manifest = Manifest.read(place)
    assert manifest.missing(place) == []


def open_one(place: Path, *_: int) -> None:
    """Open the place, and read one row."""
    with load(place) as cache:
        assert cache.X[len(cache) // 2].shape == (N_FEATURES,)


def labels(place: Path, *_: int) -> None:
    """Read the labels of all rows."""
    with load(place) as cache:
        assert len(cache.y) == len(cache)


def index(place: Path, *_: int) -> None:
    """Look at all shards, for the fingerprint."""
    with load(place) as cache:
        assert len(cache.fingerprint) == 64


def indexed(place: Path, *_: int) -> None:
    """Give the fingerprint again."""
    index(place)


def read_all(place: Path, *_: int) -> None:
    """Read all features in order."""
    with load(place) as cache:
        for _, _rows in cache.X.iter_blocks(1 << 16):
            pass


def read_one_file(place: Path, *_: int) -> None:
    """Read the merged file likewise."""
    read_all(place.with_suffix(".h5"))


def merge(place: Path, *_: int) -> None:
    """Make one file."""
    merge_shards(place)


STEPS: dict[str, Callable[..., None]] = {
    step.__name__: step
    for step in (
        begin,
        fill,
        resume,
        open_one,
        labels,
        index,
        indexed,
        read_all,
        merge,
        read_one_file,
    )
}


def measure(name: str, place: Path, n_rows: int, shard_rows: int) -> None:
    """Run one step in a process of its own."""
    words = [sys.executable, __file__, "--step", name, "--folder", str(place)]
    words += ["--rows", str(n_rows), "--shards", str(shard_rows)]
    print(
        f"{name:>14}: {subprocess.run(words, check=True, capture_output=True, text=True).stdout}",
        end="",
        flush=True,
    )


def run_step(name: str, place: Path, n_rows: int, shard_rows: int) -> None:
    """Run one step, and print what it took."""
    began, cpu = time.perf_counter(), os.times()
    STEPS[name](place, n_rows, shard_rows)
    now = os.times()
    seconds = now.user + now.system - cpu.user - cpu.system
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{time.perf_counter() - began:8.2f} s, {seconds:8.2f} s CPU, at most {peak:.2f} GB")


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--step", choices=STEPS, help="one step, in this process")
    args = parser.parse_args()
    if args.step:
        run_step(args.step, args.folder, args.rows, args.shards)
        return
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        sizes = [(args.rows, 8192), (args.shards // 2, 2), (2 * args.shards, 2)]
        for n_rows, shard_rows in sizes:
            print(f"{n_rows:,} rows in {-(-n_rows // shard_rows):,} shards", flush=True)
            for name in STEPS:
                measure(name, folder / f"{n_rows}.shards", n_rows, shard_rows)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
