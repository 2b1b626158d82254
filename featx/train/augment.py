"""Random changes of training images: flip, crop, rotation and zoom, on whole batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from featx.errors import UsageError, unknown_name

__all__ = ["Augment", "sample_warped"]


@dataclass(frozen=True)
class Augment:
    """What is done at random to every training image, each image by itself.

    Notes
    -----
    Rotation and zoom are one bilinear sampling about the centre, where Keras's two layers
    sample twice; beyond its border an image is mirrored, as there (``fill_mode="reflect"``).
    """

    flip: bool = False
    crop: int = 0
    rotation: float = 0.0
    zoom: float = 0.0

    def __post_init__(self) -> None:
        if self.crop < 0:
            raise UsageError(f"augment crop={self.crop}: give padding in pixels, 0 or more")
        if not 0 <= self.rotation <= 0.5:
            raise UsageError(f"augment rotation={self.rotation}: give a fraction of a turn to 0.5")
        if not 0 <= self.zoom < 1:
            raise UsageError(f"augment zoom={self.zoom}: give a share from 0 to below 1")

    @classmethod
    def parse(cls, words: Sequence[str]) -> Augment:
        """Read what was typed.

        Examples
        --------
        >>> Augment.parse(["flip", "rotation=0.1"])
        Augment(flip=True, crop=0, rotation=0.1, zoom=0.0)
        """
        values: dict[str, Any] = {}
        for word in words:
            name, _, text = word.partition("=")
            if name not in _KINDS:
                raise unknown_name("augmentation", name, _KINDS)
            if name in values:
                raise UsageError(f"augment {name} is given twice: leave one of them out")
            values[name] = _value(name, text)
        return cls(**values)

    @property
    def words(self) -> tuple[str, ...]:
        """What `parse` reads as this."""
        chosen = {name: value for name, value in asdict(self).items() if value}
        return tuple(k if k == "flip" else f"{k}={v:g}" for k, v in chosen.items())

    def move(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Flip and crop."""
        if self.crop:
            pixels = self._cropped(pixels, generator)
        if self.flip:
            n = len(pixels)
            is_flipped = torch.rand(n, generator=generator, device=pixels.device) < 0.5
            pixels = torch.where(is_flipped[:, None, None, None], pixels.flip(2), pixels)
        return pixels

    def _cropped(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        n, height, width, _ = pixels.shape
        device, pad = pixels.device, self.crop
        padded = functional.pad(pixels, (0, 0, pad, pad, pad, pad))
        shifts = torch.randint(2 * pad + 1, (2, n, 1), generator=generator, device=device)
        rows = shifts[0] + torch.arange(height, device=device)
        columns = shifts[1] + torch.arange(width, device=device)
        images = torch.arange(n, device=device)
        return padded[images[:, None, None], rows[:, :, None], columns[:, None, :]]

    def warp(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Rotate and zoom."""
        if not (self.rotation or self.zoom):
            return images
        shape = (2, len(images))
        either_way = 2 * torch.rand(shape, generator=generator, device=images.device) - 1
        turns, zooms = either_way[0] * self.rotation, 1 + either_way[1] * self.zoom
        return sample_warped(images, turns, zooms)


_KINDS = {"flip": bool, "crop": int, "rotation": float, "zoom": float}


def _value(name: str, text: str) -> Any:
    kind = _KINDS[name]
    if kind is bool:
        if text not in ("", "true", "false"):
            raise UsageError(f"augment {name}={text}: it takes no number, write {name}")
        return text != "false"
    try:
        return kind(text)
    except ValueError:
        example = {"crop": "4", "rotation": "0.1", "zoom": "0.1"}[name]
        raise UsageError(f"augment {name} needs a number: write {name}={example}") from None


def sample_warped(images: Tensor, turns: Tensor, zooms: Tensor) -> Tensor:
    """Rotate and zoom images about their centres."""
    angles = turns * (2 * math.pi)
    cos, sin, none = zooms * angles.cos(), zooms * angles.sin(), torch.zeros_like(angles)
    # Where each pixel of the result comes from; y points down.
    to_source = torch.stack([cos, -sin, none, sin, cos, none], dim=1).reshape(-1, 2, 3)
    grid = functional.affine_grid(to_source, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
