"""Caches in memory, as evaluation sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass
class MemoryCache:
    X: np.ndarray
    y: np.ndarray
    fingerprint: str
    meta: dict
    class_names: list = field(default_factory=lambda: ["ant", "bee", "cow"])
    status: np.ndarray = None
    image_digests: np.ndarray = None
    paths: list = None

    def __post_init__(self):
        if self.image_digests is None:
            self.image_digests = np.zeros((len(self.y), 32), np.uint8)
        if self.paths is None:
            self.paths = [f"{self.meta['split']}/{i:04}.jpg" for i in range(len(self.y))]
        if self.status is None:
            self.status = np.ones(len(self.y), dtype=np.uint8)

    @property
    def path(self):
        return Path("cache") / f"{self.meta['data']}-{self.meta['split']}.h5"


def make_cache(n=60, d=100, *, split="train", seed=0, noise=2.0, **changes):
    rng = np.random.default_rng([seed, len(split)])
    y = (np.arange(n) % 3).astype(np.int64)
    centres = np.random.default_rng(99).normal(size=(3, d))
    X = np.maximum(0, centres[y] + noise * rng.normal(size=(n, d))).astype(np.float16)
    meta = {
        "data": "farm",
        "split": split,
        "backbone": "net",
        "layer": "last",
        "pool": "none",
        "input_size": 32,
        "precision": "fp32",
        "sample": None,
        "feature_shape": [d],
        "identity": {"source": {"content": split}, "weights": "w", "schema": 1},
    }
    meta.update(changes)
    identity = meta["identity"]
    return MemoryCache(X, y, f"{split}-{identity['weights']}-{seed}", meta)
