"""Whole extractions on OpenVINO against its two bare loops: ratios in one run.

    python benchmarks/openvino_loops.py CIFAR10_TREE [--networks vgg16] [--precisions fp32 bf16]

The bare loops are OpenVINO's own, with its hint for latency and its hint for throughput: the same
program as featx's, from pixels to float16, on one batch in memory. An extraction also decodes,
checks, hashes and writes durable rows. All take turns; the first one is not counted, and featx
has chosen its form before, as behind the first 24 batches of a run. The weights are random.
Beside rates there are the seconds of all cores for each image: they change less where other
programs run.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import openvino
import torch
from extract import BATCH, CPU, NETWORKS, featx_rate, make_tree

from featx.backbones import BackboneGroup, open_backbones
from featx.engines import LocalEngine
from featx.engines.runtimes.base import Whole
from featx.engines.runtimes.openvino import HINTS, OpenVinoRuntime, core
from featx.sources import Source, open_data


def bare_loop(group: BackboneGroup, precision: str, hint: str) -> Callable[[int], float]:
    """Make a loop with as many requests under way as the hint asks for; it gives images/s."""
    side = group.preprocessing.crop_px
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, side, side, 3), np.uint8)
    whole = Whole(group, torch.float16).eval()
    example = torch.zeros((1, side, side, 3), dtype=torch.uint8)
    with torch.no_grad():
        model = openvino.convert_model(whole, example_input=example, input=[pixels.shape])
    settings = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": HINTS[precision]}
    requests = openvino.AsyncInferQueue(core().compile_model(model, "CPU", settings))

    def loop(n: int) -> float:
        began = time.perf_counter()
        for _ in range(n // BATCH):
            requests.start_async([pixels], share_inputs=True)
        requests.wait_all()
        return n / (time.perf_counter() - began)

    return loop


def extraction(
    group: BackboneGroup, precision: str, source: Source, scratch: Path
) -> tuple[Callable[[int], float], str]:
    """Make a whole extraction that gives images/s, and say in which form it computes."""
    engine = LocalEngine(CPU, precision, BATCH, 1, runtime="openvino")
    runtime = engine.open(group, "float16")
    assert isinstance(runtime, OpenVinoRuntime)
    side, runtime.n_expected = group.preprocessing.crop_px, 1000
    pixels = torch.zeros((BATCH, side, side, 3), dtype=torch.uint8)
    while not runtime.is_settled:
        runtime.start(pixels)()
    form = f"{runtime.form.hint.lower()} {runtime.form.n_rows}"
    return lambda n: featx_rate(group, engine, source, n, scratch), form


def measure(name: str, precision: str, args: argparse.Namespace, scratch: Path) -> None:
    """Measure one network in turns, and print the medians."""
    group = open_backbones(name, weights="random")
    n = args.batches * BATCH
    source = open_data(make_tree(open_data(args.tree)["test"], n, None, scratch / name))["all"]
    whole, form = extraction(group, precision, source, scratch)
    steps = {hint: bare_loop(group, precision, hint) for hint in ("LATENCY", "THROUGHPUT")}
    steps["featx"] = whole
    rates: dict[str, list[float]] = {step: [] for step in steps}
    spent: dict[str, list[float]] = {step: [] for step in steps}
    for i in range(args.rounds + 1):
        for step, run in steps.items():
            before = sum(os.times()[:4])
            rate = run(n)
            if i:
                rates[step].append(rate)
                spent[step].append((sum(os.times()[:4]) - before) / n)
    bare = [max(pair) for pair in zip(rates["LATENCY"], rates["THROUGHPUT"], strict=True)]
    least = [min(pair) for pair in zip(spent["LATENCY"], spent["THROUGHPUT"], strict=True)]
    of_bare = [mine / other for mine, other in zip(rates["featx"], bare, strict=True)]
    of_least = [other / mine for mine, other in zip(spent["featx"], least, strict=True)]
    print(f"{name} {precision}, {n} images, {form}; load {os.getloadavg()[0]:.0f}")
    for step in steps:
        each = f"{median(rates[step]):.1f} images/s, {1000 * median(spent[step]):.2f} CPU ms/image"
        print(f"  {step:10} {each}")
    low, high = min(of_bare), max(of_bare)
    print(f"  of the better bare loop: {median(of_bare):.2f} ({low:.2f} to {high:.2f})")
    low, high = min(of_least), max(of_least)
    print(f"  in CPU seconds: {median(of_least):.2f} ({low:.2f} to {high:.2f})", flush=True)


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tree", type=Path, help="CIFAR-10 as a folder of JPEG files")
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--precisions", nargs="+", default=("fp32", "bf16"), choices=HINTS)
    parser.add_argument("--batches", type=int, default=125, help="of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", help="folder on the disk to write to")
    args = parser.parse_args()
    for name in args.networks:
        for precision in args.precisions:
            with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
                measure(name, precision, args, Path(folder))


if __name__ == "__main__":
    main()
