"""An epoch of each network, against a bare loop; a resumed epoch beside a fresh one."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from train import Alternate, Bare

from featx.networks import get_network
from featx.progress import SILENT
from featx.train.checkpoint import Checkpoint
from featx.train.classifier import Callback, NetworkClassifier
from gpu_kit.kit import Kit

__all__ = ["train_networks"]

_N_CLASSES = 10
# Images of an epoch at 32 pixels, so that it takes a second or two.
_NETWORKS = {
    "cnn-hoogasian-cifar": 25_000,
    "cnn-veer": 25_000,
    "cnn-nellangara": 25_000,
    "resnet18": 6_400,
    "densenet161": 1_600,
}


def train_networks(kit: Kit) -> None:
    """Time epochs of both loops in turns, then those of a training taken up again."""
    networks = {"cnn-hoogasian-cifar": 64} if kit.is_small else _NETWORKS
    for name, n in networks.items():
        for precision in ("fp32", "fp16") if kit.is_gpu else ("fp32",):
            if kit.left() < 8:
                kit.row(not_measured=f"{name} {precision}: no time")
                continue
            with kit.trying(network=name, precision=precision):
                _beside_bare(kit, name, n, precision)
    name = "cnn-hoogasian-cifar" if kit.is_small else "resnet18"
    with kit.trying(network=name, what="resumed"):
        _resumed(kit, name, networks[name])


def _builder(name: str) -> Callable[[], nn.Module]:
    """Give what builds a network, the same each time."""
    if name.startswith("cnn-"):
        return partial(get_network(name).build, _N_CLASSES, 32, 0)

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network: nn.Module = getattr(torchvision.models, name)(num_classes=_N_CLASSES)
        return network

    return build


def _images(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, 32, 32, 3), np.uint8), rng.integers(0, _N_CLASSES, n)


def _classifier(kit: Kit, name: str, **options: Any) -> NetworkClassifier:
    settings = {"optimizer": torch.optim.Adam, "lr": 0.001, "batch_size": 64, "validation": 0.0}
    settings |= {"channels_last": True, "device": str(kit.device)}
    return NetworkClassifier(_builder(name), **settings | options)


def _beside_bare(kit: Kit, name: str, n: int, precision: str) -> None:
    X, y = _images(n)
    args = argparse.Namespace(
        device=str(kit.device), precision=precision, batch=64, channels_last=True
    )
    times = Alternate(Bare(args, _builder(name), X, y))
    _classifier(kit, name, max_epochs=2, precision=precision, callbacks=[times]).fit(X, y)
    ours, theirs = times.ours[-1], times.theirs[-1]
    kit.row(
        network=name,
        precision=precision,
        images=n,
        first_epoch_s=times.ours[0],
        epoch_s=ours,
        featx=n / ours,
        bare=n / theirs,
        ratio=theirs / ours,
    )


class _Clock(Callback):
    """Times epochs, with what the device does for them."""

    def __init__(self, kit: Kit) -> None:
        self.kit, self.seconds = kit, []

    def on_epoch_begin(self, net: Any) -> None:
        """Start the clock."""
        self.kit.wait()
        self.began = time.perf_counter()

    def on_epoch_end(self, net: Any) -> None:
        """Stop it."""
        self.kit.wait()
        self.seconds.append(time.perf_counter() - self.began)


def _resumed(kit: Kit, name: str, n: int) -> None:
    """Train some epochs, take the file up and train as many more; fresh ones beside them."""
    X, y = _images(n)

    def train(n_epochs: int, file: Path | None) -> list[float]:
        clock = _Clock(kit)
        callbacks: list[Callback] = [clock]
        if file is not None:
            callbacks.append(Checkpoint(file, "gpu-kit", SILENT))
        _classifier(kit, name, max_epochs=n_epochs, callbacks=callbacks).fit(X, y)
        return clock.seconds

    file = kit.scratch / "training.unfinished"
    n_epochs = 2 if kit.is_small else 3
    first = train(n_epochs, file)
    again = train(2 * n_epochs, file)
    fresh = train(n_epochs, None)
    kit.row(
        network=name,
        what="epochs, s: first run, resumed, fresh without a file",
        found="; ".join(" ".join(f"{s:.2f}" for s in part) for part in (first, again, fresh)),
        resumed_to_fresh=median(again[1:]) / median(first[1:]),
        right=len(again) == n_epochs,
    )
