"""The GPU path, proved or refuted within ten minutes: correctness first, then rates.

    python benchmarks/gpu.py --out DIR [--device cuda] [--steps machine,resize,...] [--minutes 9]

Needs featx on the path, a CUDA device, and ``FEATX_SHARED`` with CIFAR-10 and photographs. Each
step runs in a process of its own, whose time is limited: what fails, hangs or breaks CUDA ends its
own step only. After each finding ``DIR/gpu.json`` has everything, tracebacks and profiles too, and
``DIR/gpu.md`` the tables for RESULTS.md. ``--small --device cpu`` runs all of it on made-up images
in a minute. Ends with 1 where a step was not done or found something wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.json and gpu.md")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="few made-up images, small networks")
    parser.add_argument("--steps", help="names, with commas between; all by default")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything together")
    parser.add_argument("--scratch", help="folder on the disk to write caches to")
    return parser.parse_args()


def main() -> int:
    """Run the steps."""
    ends = time.monotonic()
    args = parse()
    ends += 60 * args.minutes
    # Asking CUDA here would break it in the processes of the steps, which are forked.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    from gpu_kit.kit import Kit
    from gpu_kit.pictures import Pictures
    from gpu_kit.record import Record
    from gpu_kit.running import run_steps
    from gpu_kit.steps import choose

    steps = choose(args.steps, is_small=args.small)
    args.out.mkdir(parents=True, exist_ok=True)
    shared = Path(os.environ.get("FEATX_SHARED", ROOT.parent / "shared"))
    with tempfile.TemporaryDirectory(dir=args.scratch, prefix="featx-gpu-") as folder:
        scratch = Path(folder)
        pictures = Pictures(scratch / "pictures", shared, args.small)
        kit = Kit(args.device, args.small, pictures, scratch, ends, send=print)
        record = Record(args.out, {**vars(args), "out": str(args.out)})
        run_steps(steps, kit, record)
    return 0 if record.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
