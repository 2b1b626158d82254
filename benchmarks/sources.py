"""How fast images are decoded and prepared in one worker, and how fast a folder is listed.

    python benchmarks/sources.py --photographs FOLDER --tree FOLDER

`--photographs` has JPEG files of any size, which are also scaled to 224 x 224 pixels;
`--tree` is a class-per-folder tree of small JPEG files (CIFAR-10). Contenders take turns
in one thread; the ratio is the median of (seconds of the other / seconds of featx), so more
than 1 means that featx is faster. Prints tables for RESULTS.md.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torchvision.models import SqueezeNet1_0_Weights

from featx.images import decode
from featx.preprocess import Preprocessing
from featx.sources import open_folder

TRANSFORM = SqueezeNet1_0_Weights.IMAGENET1K_V1.transforms()  # resize 256 bilinear, crop 224
OURS = Preprocessing.from_torchvision(TRANSFORM)


def clock(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def compare(what: str, n: int, repeats: int, contenders: dict[str, Callable[[], object]]) -> None:
    """Let contenders take turns, featx first, and print a row for each."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, function in contenders.items():
            took = clock(function)
            if repeat:  # the first round warms up
                seconds[name].append(took)
    ours, *_ = seconds.values()
    for name, values in seconds.items():
        ratios = sorted(b / a for a, b in zip(ours, values, strict=True))
        ratio = "" if values is ours else f"{statistics.median(ratios):.2f}"
        spread = "" if values is ours else f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        rate = f"{n / statistics.median(values):,.0f} /s"
        print(f"| {what} | {name} | {rate} | {ratio} | {spread} |", flush=True)


def bare(data: bytes) -> np.ndarray:
    """Decode only."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def by_pillow(data: bytes) -> np.ndarray:
    """Decode, resize and crop by Pillow, the least that gives the network's input."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    short = min(image.size)
    width, height = (int(256 * side / short) for side in image.size)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + 224, top + 224)))


def measure_decoding(name: str, files: list[bytes], repeats: int) -> None:
    """Decode and prepare the same files in four ways."""
    for data in files[:20]:
        assert np.array_equal(OURS.pixels(decode(data)), by_pillow(data))
    ways: dict[str, Callable[[bytes], object]] = {
        "featx, decode + resize + crop": lambda data: OURS.pixels(decode(data)),
        "Pillow, decode only": bare,
        "Pillow, decode + resize + crop": by_pillow,
        "torchvision's transform on a Pillow image": lambda data: TRANSFORM(
            Image.open(io.BytesIO(data)).convert("RGB")
        ),
    }
    contenders = {
        title: (lambda way=way: [way(data) for data in files]) for title, way in ways.items()
    }
    compare(name, len(files), repeats, contenders)


def measure_listing(tree: Path, repeats: int) -> None:
    """List a folder, hash it, and hash it again."""
    splits = open_folder(tree)
    n = sum(map(len, splits.values()))
    paths = [str(path) for path in tree.rglob("*.jpg")]

    def walk() -> int:
        return sum(len(files) for _, _, files in os.walk(tree))

    compare("listing", n, repeats, {"featx": lambda: open_folder(tree), "os.walk": walk})

    def hash_all() -> None:
        for source in open_folder(tree).values():
            source.image_digests()

    def hash_anew() -> None:
        with tempfile.TemporaryDirectory() as empty:
            os.environ["FEATX_DATA"] = empty
            hash_all()

    def read_and_hash() -> None:
        for path in paths:
            with open(path, "rb") as stream:  # noqa: PTH123
                hashlib.sha256(stream.read()).digest()

    def decode_all() -> None:
        for path in paths:
            decode(path)

    contenders = {"featx": hash_anew, "read + SHA-256": read_and_hash, "decode": decode_all}
    compare("hashing the first time", n, repeats, contenders)
    with tempfile.TemporaryDirectory() as kept:
        os.environ["FEATX_DATA"] = kept
        contenders = {"featx": hash_all, "read + SHA-256": read_and_hash, "decode": decode_all}
        compare("hashing again", n, repeats, contenders)


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=Path, required=True, help="folder of JPEG files")
    parser.add_argument("--tree", type=Path, required=True, help="class-per-folder tree")
    parser.add_argument("--images", type=int, default=500, help="small images to decode")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in a worker process
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {load}; Python "
        f"{platform.python_version()}, Pillow {PIL.__version__}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}\n`python {shlex.join(sys.argv)}`\n"
    )
    print("| what | contender | rate | contender's time / featx's | lowest to highest |")
    print("|---|---|---|---|---|")
    photographs = [path.read_bytes() for path in sorted(options.photographs.glob("*.jpg"))]
    small = [p.read_bytes() for p in sorted(options.tree.rglob("*.jpg"))[::97][: options.images]]
    measure_decoding("32 px JPEG to 224", small, options.repeats)
    measure_decoding("224 px JPEG to 224", [scaled(d) for d in photographs] * 3, options.repeats)
    measure_decoding("photographs to 224", photographs, options.repeats)
    measure_listing(options.tree, options.repeats)


def scaled(data: bytes) -> bytes:
    """Encode a photograph as a JPEG file of 224 x 224 pixels."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").resize((224, 224)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


if __name__ == "__main__":
    main()
