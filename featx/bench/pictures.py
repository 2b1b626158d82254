"""JPEG files to decode where a person has none at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["make_pictures"]

_COARSE_PX = 12
_NOISE = 6.0
_QUALITY = 90


def make_pictures(folder: Path, n_images: int, width: int, height: int, *, seed: int = 0) -> None:
    """Write pictures that are about as costly to decode as photographs.

    Smooth shapes with a little noise: some 0.2 bytes a pixel, as ImageNet's files have.
    """
    random = np.random.default_rng(seed)
    for i in range(n_images):
        coarse = random.integers(0, 256, (_COARSE_PX, _COARSE_PX, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth) + random.normal(0, _NOISE, (height, width, 1))
        path = folder / f"class{i % 2}" / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=_QUALITY)
