"""Gram matrices and linear heads on the card and on the cores: from where a card pays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from featx.heads import FitOptions, Pool, RowSpace, get_head
from featx.heads.device import CPU
from gpu_kit.kit import Kit

__all__ = ["fit_heads"]

_N_CLASSES = 10
_SIZES = [
    *((n, 25_088, True) for n in (100, 300, 1_000, 3_000)),
    (1_000, 86_528, True),
    (10_000, 25_088, False),
    (10_000, 86_528, False),
]


def fit_heads(kit: Kit) -> None:
    """Fit both ways, and compare."""
    sizes = [(60, 400, True)] if kit.is_small else _SIZES
    features: dict[int, np.ndarray] = {}
    for n, n_features, has_all in sizes:
        if n_features not in features:
            features.clear()
            largest = max(m for m, d, _ in sizes if d == n_features)
            features[n_features] = _features(kit, largest, n_features)
        X, y = features[n_features][:n], np.arange(n) % _N_CLASSES
        with kit.trying(rows=n, features=n_features):
            _both(kit, "Gram matrix", n, n_features, lambda space: space.gram, X)
        for head in ("svm", "logreg"):
            if not has_all and kit.left() < 15:
                kit.row(not_measured=f"{head} of {n:,} x {n_features:,}: no time")
                continue
            with kit.trying(rows=n, features=n_features, head=head):
                _both(kit, head, n, n_features, lambda space, h=head, y=y: _fit(h, space, y), X)


def _features(kit: Kit, n: int, n_features: int) -> np.ndarray:
    """Sparse features with class means, as a network's, in float16; made on the device."""
    generator = torch.Generator(kit.device).manual_seed(0)
    options: dict[str, Any] = {"generator": generator, "device": kit.device}
    means = torch.randn((_N_CLASSES, n_features), **options)
    out = np.empty((n, n_features), np.float16)
    for start in range(0, n, 1000):
        stop = min(start + 1000, n)
        labels = torch.arange(start, stop, device=kit.device) % _N_CLASSES
        noise = torch.randn((stop - start, n_features), **options)
        out[start:stop] = (noise * 2 + 0.1 * means[labels] - 1).relu_().half().cpu().numpy()
    return out


def _fit(head: str, space: RowSpace, y: np.ndarray) -> np.ndarray:
    fit = get_head(head).fit(space, y, FitOptions())
    return np.asarray(fit.model.decision_function(space.pool.X[:100]))


def _both(
    kit: Kit,
    what: str,
    n: int,
    n_features: int,
    work: Callable[[RowSpace], np.ndarray],
    X: np.ndarray,
) -> None:
    found: dict[str, np.ndarray] = {}
    seconds: dict[str, float | None] = {CPU: None}
    card = str(kit.device) if kit.is_gpu else "cpu:0"  # torch's CPU, by the path of a GPU
    for device in (card, CPU):
        if device == CPU and n >= 10_000 and (what != "Gram matrix" or kit.left() < 30):
            continue
        if n <= 100:  # the first products load libraries
            work(RowSpace(Pool(X, device), np.arange(n)))

        def run(device: str = device) -> None:
            found[device] = work(RowSpace(Pool(X, device), np.arange(n)))

        seconds[device] = kit.seconds(run)
    there, here = seconds[card], seconds[CPU]
    both = list(found.values())
    apart = float(np.abs(both[0] - both[-1]).max() / np.abs(both[-1]).max())
    kit.row(
        what=what,
        rows=n,
        features=n_features,
        card_s=there,
        cores_s=here,
        times_as_fast=there and here and here / there,
        apart=f"{apart:.1e}",
        right=apart < 1e-6,
    )
