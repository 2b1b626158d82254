"""Small coloured images whose classes can be learned, and a small network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from featx.train.classifier import NetworkClassifier


def coloured(n_classes: int = 3, n: int = 30, px: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Noise, brighter by class in one channel."""
    rng = np.random.default_rng(1)
    labels = np.tile(np.arange(n_classes), n)
    pixels = rng.integers(0, 120, (len(labels), px, px, 3))
    pixels[np.arange(len(labels)), :, :, labels % 3] += 60
    return pixels.astype(np.uint8), labels.astype(np.int64)


class TinyNet(nn.Module):
    """A body with batch normalisation and a top, initialised by a seed."""

    def __init__(self, n_classes: int = 3, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Conv2d(3, 6, 3, padding=1),
                nn.BatchNorm2d(6),
                nn.ReLU(),
                nn.Conv2d(6, 8, 3),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(2),
                nn.Flatten(),
                nn.Dropout(dropout),
            )
            self.top = nn.Linear(32, n_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.top(self.body(images))
        return logits


def classifier(module: Any = TinyNet, **options: Any) -> NetworkClassifier:
    usual = {"optimizer": torch.optim.Adam, "lr": 0.01, "max_epochs": 4, "batch_size": 16}
    return NetworkClassifier(module, **{**usual, "validation": 0.0, **options})
