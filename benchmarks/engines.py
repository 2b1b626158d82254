"""What the work of several processes costs, against one process: the same images and cores.

    python benchmarks/engines.py DATA [--images-per-class 500] [--backbone NAME] [--rounds 3]

Whole commands take turns: one process, the same with shards, Ray with one worker, and Ray with a
worker for each core. Seconds are those of the whole command, start-up included; the ratio is the
median of (seconds of one process / seconds of the other) within a round. Prints a table for
RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN = "import sys; from featx.cli import main; sys.exit(main(sys.argv[1:]))"
RAY = "import ray; ray.init(num_cpus={n}, include_dashboard=False, log_to_driver=False); " + RUN


def ways(n_cores: int, shard_rows: int) -> dict[str, tuple[str, list[str]]]:
    """Give the program and the words of each contender, one process first."""
    shards = ["--shard-rows", str(shard_rows)]
    on_ray = ["--engine", "ray", *shards]
    return {
        "one process, one file": (RUN, []),
        "one process, shards": (RUN, ["--shard", "1/1", *shards]),
        "Ray, 1 worker": (RAY.format(n=1), on_ray),
        f"Ray, {n_cores} workers": (RAY.format(n=n_cores), on_ray),
    }


def seconds_of(program: str, words: list[str]) -> float:
    """Run a command in a process of its own, into a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [sys.executable, "-c", program, "extract", *words, "--cache", folder, "--quiet"]
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - began


def main() -> None:
    """Let all take turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="squeezenet1_0")
    parser.add_argument("--images-per-class", type=int, default=500)
    parser.add_argument("--shard-rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    words = ["--backbone", args.backbone, "--weights", "random", "--data", str(args.data)]
    words += ["--split", "train", "--cache-per-class", str(args.images_per_class)]
    contenders = ways(len(os.sched_getaffinity(0)), args.shard_rows)
    took: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, (program, more) in contenders.items():
            took[name].append(seconds_of(program, words + more))
    ours = next(iter(took.values()))
    print("| how | seconds | ratio (median) | range |\n|---|---|---|---|")
    for name, values in took.items():
        ratios = sorted(a / b for a, b in zip(ours, values, strict=True))
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        middle = statistics.median
        print(f"| {name} | {middle(values):.1f} | {middle(ratios):.2f} | {spread} |")


if __name__ == "__main__":
    main()
