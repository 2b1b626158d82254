"""Small photographs of noise, in a folder for each class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def make_photos(root: Path, sizes: Mapping[str, tuple[int, int]], n: int = 5) -> Path:
    rng = np.random.default_rng(0)
    for name, (width, height) in sizes.items():
        (root / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root
