"""Extraction against its ceilings and against what else a person would run: ratios in one run.

    python benchmarks/extract.py CIFAR10_TREE [--networks vgg16 resnet50] [--side 224] [--rounds 3]

For each network, in turns: (a) the bare forward loop of plain PyTorch (channels last, autocast)
on one resident batch; (b) a careful script, DataLoader, torchvision's transform and h5py, in
float32; (c) timm's data loader and a forward loop; (d) the bare loops of ONNX Runtime and
OpenVINO; and whole extractions by featx in several precisions and runtimes. All compute the same
features of the same images, behind a first batch. The weights are random: rates do not depend
on them.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from loops import Setting, bare, rate, script, timm_loop
from PIL import Image

from featx.backbones import BackboneGroup, open_backbones
from featx.engines import LocalEngine
from featx.extract import Settings, extract_many
from featx.sources import Source, open_data

BATCH = 16
CPU = torch.device("cpu")
NETWORKS = ("vgg16", "resnet50", "squeezenet1_0", "efficientnet_lite0")
FEATX = [("fp32", "torch"), ("fp32", "openvino"), ("bf16", "torch"), ("bf16", "openvino")]


def make_tree(source: Source, n: int, side: int | None, folder: Path) -> Path:
    """Copy n images of a source as JPEG files, resized to a side where one is given."""
    for i, row in enumerate(np.linspace(0, len(source) - 1, n).astype(int)):
        image = source.image(int(row))
        if side is not None:
            image = image.resize((side, side), Image.Resampling.BICUBIC)
        path = folder / f"class{i % 2}" / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=90)
    return folder


def setting_of(precision: str) -> Setting:
    """Give the loops' place and precision."""
    return Setting(CPU, precision, BATCH)


def onnx_loop(group: BackboneGroup) -> Callable[[int], float]:
    """Give (d): the bare loop of ONNX Runtime in float32."""
    import onnxruntime

    side = group.preprocessing.crop_px
    images = torch.rand(BATCH, 3, side, side)
    program = torch.onnx.export(group.network, (images,), dynamo=True, verbose=False)
    buffer = io.BytesIO()
    program.save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    name, array = session.get_inputs()[0].name, images.numpy()
    return lambda n: rate(lambda: session.run(None, {name: array}), n, setting_of("fp32"))


def openvino_loop(group: BackboneGroup, precision: str) -> Callable[[int], float]:
    """Give (d): the bare loop of OpenVINO."""
    side = group.preprocessing.crop_px
    pixels = torch.randint(0, 256, (BATCH, side, side, 3), dtype=torch.uint8)
    engine = LocalEngine(CPU, precision, BATCH, 1, runtime="openvino")
    step = engine.open(group, "float16").bare(pixels)
    return lambda n: rate(step, n, setting_of(precision))


def featx_rate(
    group: BackboneGroup, engine: LocalEngine, source: Source, n: int, scratch: Path
) -> float:
    """Images per second of a whole extraction, the cache written and durable."""
    some = source.take(np.linspace(0, len(source) - 1, n).astype(int))
    target = scratch / "featx.h5"
    [report] = extract_many(some, group, engine, [target], Settings())
    target.unlink()
    assert report.times is not None
    return report.times.images_per_second


def measure(name: str, source: Source, side: int | None, args: argparse.Namespace) -> None:
    """Measure everything with one network, in turns."""
    group = open_backbones(name, weights="random")
    n = 5 * BATCH
    n = max(n, int(bare(group, setting_of("fp32"), n) * args.seconds) // BATCH * BATCH)
    engines = {
        (p, r): LocalEngine(CPU, p, BATCH, 1, runtime=r) for p, r in FEATX if r in args.runtimes
    }
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        scratch = Path(folder)
        tree = make_tree(source, n, side, scratch / "tree")
        files = open_data(tree)["all"]
        steps: dict[str, Callable[[], float]] = {
            "bare fp32": lambda: bare(group, setting_of("fp32"), n),
            "bare bf16": lambda: bare(group, setting_of("bf16"), n),
            "script": lambda: script(group, setting_of("fp32"), tree, scratch),
            "timm": lambda: timm_loop(group, setting_of("fp32"), tree),
        }
        with warnings.catch_warnings(), suppress(torch.onnx.OnnxExporterError):
            warnings.simplefilter("ignore")
            onnx = onnx_loop(group)  # it cannot export networks that stop at a hook
            steps["bare onnx fp32"] = lambda: onnx(n)
        for precision in ("fp32", "bf16"):
            loop = openvino_loop(group, precision)
            steps[f"bare openvino {precision}"] = lambda loop=loop: loop(n)
        for (precision, runtime), engine in engines.items():
            steps[f"featx {precision} {runtime}"] = lambda engine=engine: featx_rate(
                group, engine, files, n, scratch
            )
        found: dict[str, list[float]] = {step: [] for step in steps}
        for i in range(args.rounds + 1):
            for step, run in steps.items():
                value = run()
                if i:  # the first round warms up
                    found[step].append(value)
        shutil.rmtree(tree)
    report(name, n, side, found)


def report(name: str, n: int, side: int | None, found: dict[str, list[float]]) -> None:
    """Print rates, and the medians of ratios within a round."""

    def ratio(a: str, b: str) -> str:
        return f"{median(x / y for x, y in zip(found[a], found[b], strict=True)):.2f}"

    print(f"\n{name}, {n} JPEG files of {side or 32} pixels; images/s (median):")
    print("  " + ", ".join(f"{step} {median(values):.1f}" for step, values in found.items()))
    for step in found:
        if step.startswith("featx"):
            _, precision, runtime = step.split()
            own = "bare openvino " if runtime == "openvino" else "bare "
            print(
                f"  {step:20} of plain PyTorch's bare loop {ratio(step, f'bare {precision}')}, of "
                f"its own runtime's {ratio(step, own + precision)}; times the script "
                f"{ratio(step, 'script')}, times timm's loop {ratio(step, 'timm')}"
            )


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tree", type=Path, help="CIFAR-10 as a folder of JPEG files")
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--side", type=int, help="resize the images to this first, in pixels")
    parser.add_argument("--runtimes", nargs="+", default=("torch", "openvino"))
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", help="folder on the disk to write to")
    args = parser.parse_args()
    packages = ("torch", "torchvision", "timm", "onnxruntime", "openvino", "h5py", "Pillow")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(", ".join(f"{package} {version(package)}" for package in packages))
    source = open_data(args.tree)["test"]
    for name in args.networks:
        measure(name, source, args.side, args)


if __name__ == "__main__":
    main()
