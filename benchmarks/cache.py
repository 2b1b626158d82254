"""How fast the cache is written and read, against the plainest way to do the same.

    python benchmarks/cache.py --folder /some/disk [--real cache/FILE.h5]

The contenders take turns, so that a busy machine slows all of them; the ratio is
the median over the repeats of (seconds of the other / seconds of the cache), so
more than 1 means that the cache is faster. Prints a table for RESULTS.md.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from featx.store import Cache, CacheSpec, CacheWriter, FeatureArray
from featx.store.pack import CODECS, pack_cache, unpack_cache

GROUP_BYTES = 16 << 20  # as the store commits
SPAN_BYTES = 8 << 20  # read at once in a scan
READERS = ("featx", "numpy.memmap", "chunked h5py")
Row = tuple[str, str, str, str, str]
Timed = Callable[[], float]


def clock(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def compare(what: str, n_bytes: int, repeats: int, contenders: dict[str, Timed]) -> list[Row]:
    """Let contenders take turns; the first is the cache."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        names = list(contenders)
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            seconds[name].append(contenders[name]())
    ours, *_ = seconds.values()
    rows = []
    for name, values in seconds.items():
        ratios = sorted(b / a for a, b in zip(ours, values, strict=True))
        median = statistics.median(values)
        ratio = "" if values is ours else f"{statistics.median(ratios):.2f}"
        spread = "" if values is ours else f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        rows.append((what, name, f"{n_bytes / 1e6 / median:,.0f} MB/s", ratio, spread))
        print(f"  {what}: {name}: {median:.3f} s {ratio and 'ratio ' + ratio}", file=sys.stderr)
    return rows


def make_spec(n_rows: int, n_features: int) -> CacheSpec:
    """Describe rows that mean nothing."""
    labels, paths = np.zeros(n_rows, int), [f"{i:08d}.png" for i in range(n_rows)]
    return CacheSpec({"n": n_rows}, {}, labels, ["x"], paths, n_features, "float16")


def make_rows(n_rows: int, n_features: int) -> np.ndarray:
    """Finite float16 values that do not compress to nothing."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 0x7800, (n_rows, n_features), np.uint16)
    return values.view(np.float16)


class Writing:
    """Stream the same rows in batches, with and without the store."""

    def __init__(self, folder: Path, rows: np.ndarray, batch: int) -> None:
        self.folder, self.rows, self.batch = folder, rows, batch
        self.spec = make_spec(*rows.shape)
        self.parts: dict[str, list[float]] = {"open": [], "rows": [], "finish": []}

    def cache(self) -> float:
        """Through `CacheWriter`, from nothing to the finished file."""
        path = self.folder / "written.h5"
        began = time.perf_counter()
        with CacheWriter.open(path, self.spec) as writer:
            opened = time.perf_counter()
            for start in range(0, len(self.rows), self.batch):
                writer.write(start, self.rows[start : start + self.batch])
            writer.commit()
            streamed = time.perf_counter()
            writer.finish()
        ended = time.perf_counter()
        for name, value in zip(
            self.parts, (opened - began, streamed - opened, ended - streamed), strict=True
        ):
            self.parts[name].append(value)
        path.unlink()
        return ended - began

    def raw(self) -> float:
        """Plain writes of the same batches, with fdatasync after each group."""
        path = self.folder / "written.bin"

        def write() -> None:
            fd, pending = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL), 0
            for start in range(0, len(self.rows), self.batch):
                data = memoryview(self.rows[start : start + self.batch]).cast("B")
                while data:
                    n = os.write(fd, data)
                    data, pending = data[n:], pending + n
                if pending >= GROUP_BYTES:
                    os.fdatasync(fd)
                    pending = 0
            os.fsync(fd)
            os.close(fd)

        seconds = clock(write)
        path.unlink()
        return seconds


def measure_writing(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Streaming writes of both widths."""
    table: list[Row] = []
    for n_features in options.values:
        n_rows = max(1, options.megabytes * 1_000_000 // (2 * n_features))
        rows = make_rows(n_rows, n_features)
        run = Writing(folder, rows, options.batch)
        run.raw()  # the disk's first pages are nobody's fault
        contenders: dict[str, Timed] = {"featx": run.cache, "write + fdatasync": run.raw}
        what = f"write {n_rows:,} x {n_features:,}"
        table += compare(what, rows.nbytes, options.repeats, contenders)
        parts = {name: statistics.median(values) for name, values in run.parts.items()}
        sums = {
            "SHA-256 alone": clock(lambda data=rows: hashlib.sha256(data).digest()),
            "CRC-32 alone": clock(lambda data=rows: zlib.crc32(data)),
        }
        text = ", ".join(f"{name} {value:.3f} s" for name, value in {**parts, **sums}.items())
        print(f"  where featx's time goes: {text}", file=sys.stderr)
    return table


def drop(path: Path) -> None:
    """Ask the system to forget a file's pages."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def measure_reading(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Random rows and a full scan, with warm and with cold pages."""
    n_rows, n_features = options.read_rows, options.values[0]
    rows = make_rows(n_rows, n_features)
    paths = [folder / name for name in ("read.h5", "read.bin", "chunked.h5")]
    with CacheWriter.open(paths[0], make_spec(n_rows, n_features)) as writer:
        writer.write(0, rows)
        writer.finish()
    rows.tofile(paths[1])
    with h5py.File(paths[2], "w") as file:
        file.create_dataset("features", data=rows, chunks=True)
    table: list[Row] = []
    with Cache.open(paths[0]) as cache, h5py.File(paths[2], "r") as file:

        def mapped() -> np.memmap:  # anew each time: pages that are mapped cannot be dropped
            return np.memmap(paths[1], np.float16, "r", shape=rows.shape)

        wanted = np.random.default_rng(1).permutation(n_rows)[: options.gather]
        assert np.array_equal(cache.X.stored[wanted], rows[wanted])
        actions = reading_actions(cache.X.stored, mapped, file["features"], wanted)
        for what, functions in actions.items():
            n = n_rows if what == "scan" else len(wanted)
            for state in ("warm", "cold"):
                contenders = {
                    name: reading(function, path, is_cold=state == "cold")
                    for name, function, path in zip(READERS, functions, paths, strict=True)
                }
                title = f"{what} {n:,} of {n_rows:,} x {n_features:,}, {state}"
                table += compare(title, n * 2 * n_features, options.repeats, contenders)
    order = np.random.default_rng(1).permutation(n_rows)
    return table + measure_first_reads(paths[0], order, options.repeats)


def reading_actions(
    features: FeatureArray, mapped: Callable[[], np.memmap], chunked: h5py.Dataset, rows: np.ndarray
) -> dict[str, tuple[Callable[[], object], ...]]:
    """Ways to read, each in the order of `READERS`."""
    ordered = np.sort(rows)  # h5py takes no others
    step = max(1, SPAN_BYTES // (2 * features.shape[1]))
    spans = [slice(i, i + step) for i in range(0, len(features), step)]

    def scan_mapped() -> list[np.ndarray]:
        array = mapped()
        return [np.array(array[span]) for span in spans]

    return {
        "gather": (
            lambda: features[rows],
            lambda: np.asarray(mapped()[rows]),
            lambda: chunked[ordered],
        ),
        "gather in order": (
            lambda: features[ordered],
            lambda: np.asarray(mapped()[ordered]),
            lambda: chunked[ordered],
        ),
        "scan": (
            lambda: [features[span] for span in spans],
            scan_mapped,
            lambda: [chunked[span] for span in spans],
        ),
    }


def measure_first_reads(path: Path, rows: np.ndarray, repeats: int) -> list[Row]:
    """Time reads of a file that was just opened: its blocks are compared with their digests."""
    table: list[Row] = []
    with Cache.open(path) as checked:
        row_bytes, everything = checked.X.stored.nbytes // len(checked), slice(None)
        checked.X.check()

        def first(key: np.ndarray | slice) -> Timed:
            def run() -> float:
                with Cache.open(path) as opened:
                    return clock(lambda: opened.X.stored[key])

            return run

        for what, key, n in (("256 random rows", rows[:256], 256), ("all", everything, len(rows))):
            again = reading(lambda key=key: checked.X.stored[key], path, is_cold=False)
            contenders = {"first read": first(key), "later read": again}
            table += compare(f"{what}, warm", n * row_bytes, repeats, contenders)
    return table


def reading(function: Callable[[], object], path: Path, *, is_cold: bool) -> Timed:
    """Make a contender that reads a file with warm or cold pages."""

    def run() -> float:
        if is_cold:
            drop(path)
        return clock(function)

    return run


def measure_packing(folder: Path, real: Path) -> list[str]:
    """Size and time of archives of real features."""
    with Cache.open(real) as cache:
        lines = [
            f"{cache!r}",
            "",
            "| codec | level | size | ratio | pack | unpack |",
            "|" + "---|" * 6,
        ]
        n_bytes = cache.X.stored.nbytes
    for codec, default in CODECS.items():
        for level in (1, default):
            try:
                packed = pack_cache(real, folder / "p.featx.h5", codec=codec, level=level)
            except Exception as error:
                lines.append(f"| {codec} | {level} | {error} | | | |")
                continue
            unpacked = unpack_cache(packed.path, folder / "p.h5")
            rates = [f"{n_bytes / 1e6 / r.seconds:,.0f} MB/s" for r in (packed, unpacked)]
            ratio = packed.source_bytes / packed.n_bytes
            size = f"{packed.n_bytes / 1e6:,.1f} MB"
            lines.append(f"| {codec} | {level} | {size} | {ratio:.2f} | {rates[0]} | {rates[1]} |")
            packed.path.unlink()
            unpacked.path.unlink()
    return lines


def describe() -> str:
    """Name the machine, the versions and the command."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, load {load}; Python "
        f"{platform.python_version()}, numpy {np.__version__}, h5py {h5py.__version__}, HDF5 "
        f"{h5py.version.hdf5_version}, {platform.system()} {platform.release()}\n"
        f"`python {shlex.join(sys.argv)}`"
    )


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=None, help="disk to measure")
    parser.add_argument("--megabytes", type=int, default=400, help="size of a written file")
    parser.add_argument("--values", type=int, nargs="+", default=[25_088, 100_352])
    parser.add_argument("--batch", type=int, default=64, help="rows in a write")
    parser.add_argument("--read-rows", type=int, default=3_000, help="rows of the files to read")
    parser.add_argument("--gather", type=int, default=1_000, help="random rows")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--real", type=Path, help="a cache of real features, to be packed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="featx-benchmark-") as name:
        table = measure_writing(Path(name), options) + measure_reading(Path(name), options)
        packing = measure_packing(Path(name), options.real) if options.real else []
    print(describe())
    print("\n| what | contender | rate | contender's time / featx's | lowest to highest |")
    print("|---|---|---|---|---|")
    for row in table:
        print(f"| {' | '.join(row)} |")
    if packing:
        print("", *packing, sep="\n")


if __name__ == "__main__":
    main()
