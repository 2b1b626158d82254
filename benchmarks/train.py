"""How fast an epoch of training is, against a bare PyTorch loop of the same network.

    python benchmarks/train.py [--network cnn-hoogasian-cifar ...] [--images 10000] [--rounds 5]

The bare loop trains on float32 images that were normalised beforehand and lie on the device; featx
trains on uint8 images, normalises every batch, counts losses and right answers, and records the
epoch. Both have the same network, optimiser, batches, memory order and arithmetic. After one epoch
to warm up, epochs of both alternate; a ratio is that of two neighbours, and more than 1 means that
featx is faster. `--augment` adds augmentation to featx's epochs only: what it costs. Prints a table
for RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from featx.networks import get_network
from featx.preprocess import Preprocessing
from featx.train.classifier import Callback, NetworkClassifier
from featx.train.images import Augment

HALF = (0.5, 0.5, 0.5)
N_CLASSES = 10
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Bare:
    """A network, its images on the device, and the plainest loop over them."""

    def __init__(
        self, args: argparse.Namespace, build: Callable[[], nn.Module], X: Any, y: Any
    ) -> None:
        self.args, self.device = args, torch.device(args.device)
        order = torch.channels_last if args.channels_last else torch.contiguous_format
        network = build().to(self.device)
        self.network = network.to(memory_format=order)
        pixels = torch.from_numpy(X).to(self.device)
        scaled = Preprocessing(X.shape[1], X.shape[1], "bilinear", HALF, HALF).normalise(pixels)
        self.images = scaled.contiguous(memory_format=order)
        self.labels = torch.from_numpy(y).to(self.device)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=args.precision == "fp16")

    def epoch(self) -> float:
        """Seconds of one pass."""
        self._wait()
        began = time.perf_counter()
        self.network.train()
        for part in torch.randperm(len(self.labels), device=self.device).split(self.args.batch):
            self.optimizer.zero_grad()
            with self._arithmetic():
                logits = self.network(self.images[part])
            loss = torch.nn.functional.cross_entropy(logits.float(), self.labels[part])
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self._wait()
        return time.perf_counter() - began

    def _arithmetic(self) -> Any:
        dtype = DTYPES.get(self.args.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Alternate(Callback):
    """Runs a bare epoch behind each of featx's."""

    def __init__(self, bare: Bare) -> None:
        self.bare = bare
        self.ours: list[float] = []
        self.theirs: list[float] = []

    def on_epoch_begin(self, net: Any) -> None:
        """Start the clock."""
        self.bare._wait()
        self.began = time.perf_counter()

    def on_epoch_end(self, net: Any) -> None:
        """Stop it, and run the other loop."""
        self.bare._wait()
        self.ours.append(time.perf_counter() - self.began)
        self.theirs.append(self.bare.epoch())


def measure(args: argparse.Namespace, text: str) -> None:
    """Print a row of the table."""
    rng = np.random.default_rng(0)
    px = args.input_size or get_network(text).usual_px
    X = rng.integers(0, 256, (args.images, px, px, 3), np.uint8)
    y = rng.integers(0, N_CLASSES, args.images)
    build = partial(get_network(text).build, N_CLASSES, px, 0)
    times = Alternate(Bare(args, build, X, y))
    net = NetworkClassifier(
        build,
        optimizer=torch.optim.Adam,
        lr=0.001,
        max_epochs=args.rounds + 1,
        batch_size=args.batch,
        validation=0.0,
        augment=Augment.parse(args.augment),
        precision=args.precision,
        channels_last=args.channels_last,
        device=args.device,
        callbacks=[times],
    )
    net.fit(X, y)
    ours, theirs = np.array(times.ours[1:]), np.array(times.theirs[1:])
    ratios = np.sort(theirs / ours)
    rates = args.images / np.median(ours), args.images / np.median(theirs)
    print(
        f"| {text}, {px} px | {rates[0]:,.0f} | {rates[1]:,.0f} | {np.median(ratios):.2f} | "
        f"{ratios[0]:.2f}-{ratios[-1]:.2f} |",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    networks = ["ann-nellangara", "cnn-hoogasian-cifar", "cnn-veer"]
    parser.add_argument("--network", nargs="+", default=networks)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--input-size", type=int)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--augment", nargs="*", default=[])
    parser.add_argument("--precision", default="fp32", choices=["fp32", *DTYPES])
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    where = torch.cuda.get_device_name(args.device) if args.device != "cpu" else "CPU"
    print(
        f"`python {shlex.join(sys.argv)}`, load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, "
        f"{platform.machine()}, {where}; torch {torch.__version__}\n"
    )
    print("| network | featx, images/s | bare loop, images/s | ratio (median) | range |")
    print("|---|---|---|---|---|")
    for text in args.network:
        measure(args, text)


if __name__ == "__main__":
    main()
