"""How time and memory grow with what is asked, against what theory allows.

    python benchmarks/growth.py --parts rows classes --rows 500 1000 2000 --features 2048

`images`: an extraction from JPEG files to a durable cache. `rows`, `features`, `classes`: one fit
of `--head` with a penalty near the best one, or with the whole search (`--search`), on made-up
float16 features of which half are 0. `gather`: a cache of so many MB is opened, and 1,000 random
rows are read (pages warm). `files`: a folder of so many files is listed and hashed. Each point is
a process of its own; memory is how far its peak lies above what it held before.

The exponent p of a point says that time grew like size^p since the point before; theory is the
largest p that the work allows, for large sizes. Prints a table for RESULTS.md; `--plot FILE` draws
it. CPU seconds are those of all threads of the process: on a busy machine read these.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import featx
from cache import make_spec
from featx.heads import FitOptions, RowSpace, get_head
from featx.sources import open_data, open_folder
from featx.store import CacheWriter

Work = Callable[[], object]
KB = 1 << 10
BLOCK_ROWS = 256


def images(n: int, args: argparse.Namespace, folder: Path) -> Work:
    """Extract n images of 32 pixels."""
    import torch

    from featx.backbones import open_backbones
    from featx.engines import LocalEngine
    from featx.extract import Settings, extract_many

    rng = np.random.default_rng(0)
    for i in range(n):
        path = folder / f"class{i % 10}" / f"{i:06}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    changes = {"input_size": args.input_size}
    group = open_backbones(args.backbone, weights="random", overrides=changes)
    engine = LocalEngine(torch.device("cpu"), "fp32", 16, 1)
    source = open_data(folder)["all"]
    return lambda: extract_many(source, group, engine, [folder / "made.h5"], Settings())


def fit(n_rows: int, n_features: int, n_classes: int, args: argparse.Namespace) -> Work:
    """Fit once."""
    rng, y = np.random.default_rng(0), np.arange(n_rows) % n_classes
    centres = rng.normal(size=(n_classes, n_features)).astype(np.float32)
    X = np.empty((n_rows, n_features), np.float16)
    for start in range(0, n_rows, BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        noise = rng.normal(size=X[rows].shape).astype(np.float32)
        X[rows] = np.maximum(0, centres[y[rows]] + 3 * noise)
    size = float(np.mean(np.square(X[:100].astype(np.float64)).sum(axis=1)))
    options = FitOptions(C=None if args.search else 1 / size)
    return lambda: get_head(args.head).fit(RowSpace.of(X), y, options)


def rows(n: int, args: argparse.Namespace, folder: Path) -> Work:
    """Fit n rows."""
    return fit(n, args.fixed_features, args.fixed_classes, args)


def features(n: int, args: argparse.Namespace, folder: Path) -> Work:
    """Fit rows of n features."""
    return fit(args.fixed_rows, n, args.fixed_classes, args)


def classes(n: int, args: argparse.Namespace, folder: Path) -> Work:
    """Fit n classes."""
    return fit(args.fixed_rows, args.fixed_features, n, args)


def gather(n_mb: int, args: argparse.Namespace, folder: Path) -> Work:
    """Open a cache of n MB and read 1,000 rows."""
    n_rows = max(1000, n_mb * 1_000_000 // (2 * args.fixed_features))
    path, rng = folder / "made.h5", np.random.default_rng(0)
    with CacheWriter.open(path, make_spec(n_rows, args.fixed_features)) as writer:
        for start in range(0, n_rows, BLOCK_ROWS):
            shape = min(BLOCK_ROWS, n_rows - start), args.fixed_features
            writer.write(start, rng.integers(0, 0x7800, shape, np.uint16).view(np.float16))
        writer.commit()
        writer.finish()
    some = rng.choice(n_rows, 1000, replace=False)

    def read() -> None:
        with featx.load(path) as cache:
            cache.X.stored[some]

    return read


def files(n: int, args: argparse.Namespace, folder: Path) -> Work:
    """List and hash n files."""
    for i in range(n):
        path = folder / "tree" / f"class{i % 100}" / f"{i:07}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(i.to_bytes(8, "little"))
    os.environ["FEATX_DATA"] = str(folder / "memory")
    return lambda: [source.image_digests() for source in open_folder(folder / "tree").values()]


PARTS: dict[str, tuple[Callable[[int, argparse.Namespace, Path], Work], str]] = {
    "images": (images, "1"),
    "rows": (rows, "2 up to as many rows as features (Gram matrix), then 1"),
    "features": (features, "1"),
    "classes": (classes, "1"),
    "gather": (gather, "0 to 1: blocks of these rows are compared with their digests"),
    "files": (files, "1"),
}
SIZES = {
    "images": [64, 128, 256],
    "rows": [500, 1000, 2000],
    "features": [2048, 4096, 8192],
    "classes": [2, 10, 50],
    "gather": [20, 40, 80],
    "files": [1000, 2000, 4000],
}


def measure(part: str, size: int, args: argparse.Namespace) -> dict[str, float]:
    """Prepare, then measure, in this process."""
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        work = PARTS[part][0](size, args, Path(folder))
        before = memory_of("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        found = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        return found | {"bytes": memory_of("VmHWM") - before}


def memory_of(what: str) -> int:
    """Memory of this process in bytes: held now (VmRSS), or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return KB * next(int(line.split()[1]) for line in lines if line.startswith(what))


def in_own_process(part: str, size: int) -> dict[str, float]:
    """Measure in a new process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one", part, str(size)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    point: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return point


def grown(name: str, points: list[dict[str, float]], at: int) -> str:
    """Exponent between a point and the one before."""
    if not at:
        return ""
    ratio = points[at][name] / points[at - 1][name]
    return f"{math.log(ratio) / math.log(points[at]['size'] / points[at - 1]['size']):.2f}"


def table(part: str, sizes: list[int]) -> list[dict[str, float]]:
    """Measure all sizes of a part, and print a line for each as it comes."""
    points: list[dict[str, float]] = []
    for i, size in enumerate(sizes):
        points.append({"size": size, **in_own_process(part, size)})
        point, cells = points[-1], [grown(name, points, i) for name in ("cpu_seconds", "seconds")]
        print(
            f"| {part} | {size:,} | {point['cpu_seconds']:.2f} | {cells[0]} "
            f"| {point['seconds']:.2f} | {cells[1]} | {PARTS[part][1]} "
            f"| {point['bytes'] / 1e6:,.0f} MB |",
            flush=True,
        )
    return points


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw CPU seconds and memory of each part against its sizes."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(found), figsize=(3 * len(found), 5), squeeze=False)
    for column, (part, points) in zip(axes.T, found.items(), strict=True):
        for axis, name, unit in zip(
            column, ("cpu_seconds", "bytes"), ("CPU seconds", "bytes"), strict=True
        ):
            axis.loglog([p["size"] for p in points], [max(p[name], 1e-3) for p in points], "o-")
            axis.set(xlabel=f"{part}{' (MB)' * (part == 'gather')}", ylabel=unit)
    figure.tight_layout()
    figure.savefig(path)


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    for part, sizes in SIZES.items():
        unit = "MB" if part == "gather" else part
        parser.add_argument(f"--{part}", type=int, nargs="+", default=sizes, metavar=unit.upper())
    parser.add_argument("--head", default="svm")
    parser.add_argument("--search", action="store_true", help="the penalty too, not one fit alone")
    parser.add_argument("--fixed-rows", type=int, default=1000)
    parser.add_argument("--fixed-features", type=int, default=2048)
    parser.add_argument("--fixed-classes", type=int, default=10)
    parser.add_argument("--backbone", default="squeezenet1_0")
    parser.add_argument("--input-size", type=int, default=64)
    parser.add_argument("--scratch", help="folder for files; the temporary one by default")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    args = parse()
    if args.one:
        part, size = args.one
        print(json.dumps(measure(part, int(size), args)))
        return
    print(
        f"`python {shlex.join(sys.argv)}`, load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, "
        f"{platform.machine()}; Python {platform.python_version()}, NumPy {np.__version__}\n"
    )
    print("| part | size | CPU seconds | exponent | seconds | exponent | theory | memory |")
    print("|---|---|---|---|---|---|---|---|")
    found = {part: table(part, sorted(getattr(args, part))) for part in args.parts}
    if args.plot:
        draw(found, args.plot)


if __name__ == "__main__":
    main()
