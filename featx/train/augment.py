"""Random changes of training images: flip, crop, rotation and zoom, on whole batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from featx.configurable import Configurable, parse, setting

__all__ = ["Augment", "sample_warped"]


@dataclass(frozen=True)
class Augment(Configurable):
    """Random changes of training images; each image is changed independently of the others.

    Rotation and zoom are one bilinear sampling about the centre, where Keras's two layers sample
    twice. Beyond its border an image is mirrored, as in Keras (``fill_mode="reflect"``).
    """

    flip: bool = setting(False)  # half of the images are mirrored, left to right
    crop: int = setting(0, within="[0, inf)")  # padding in pixels, before a random crop
    rotation: float = setting(0.0, within="[0, 0.5]")  # largest angle, as a fraction of a turn
    zoom: float = setting(0.0, within="[0, 1)")  # scales are between 1 - zoom and 1 + zoom

    name = "augment"

    @classmethod
    def parse(cls, words: Sequence[str]) -> Augment:
        """Read settings as they are typed.

        Examples
        --------
        >>> Augment.parse(["flip", "rotation=0.1"])
        Augment(flip=True, crop=0, rotation=0.1, zoom=0.0)
        """
        full = [word if "=" in word else f"{word}=true" for word in words]
        return cls().with_settings(**parse(cls(), full))

    def move(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Crop and flip; pixels are (n, height, width, 3)."""
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
        """Rotate and zoom; images are (n, 3, height, width)."""
        if not (self.rotation or self.zoom):
            return images
        shape = (2, len(images))
        either_way = 2 * torch.rand(shape, generator=generator, device=images.device) - 1
        turns, zooms = either_way[0] * self.rotation, 1 + either_way[1] * self.zoom
        return sample_warped(images, turns, zooms)


def sample_warped(images: Tensor, turns: Tensor, zooms: Tensor) -> Tensor:
    """Rotate and zoom images about their centres.

    `turns` are fractions of a turn, counter-clockwise; `zooms` above 1 make the content smaller.
    """
    angles = turns * (2 * math.pi)
    cos, sin, none = zooms * angles.cos(), zooms * angles.sin(), torch.zeros_like(angles)
    # The matrix maps each pixel (x, y) of the result to its place in the source:
    # zoom * (x cos - y sin, x sin + y cos). y points down, hence counter-clockwise.
    to_source = torch.stack([cos, -sin, none, sin, cos, none], dim=1).reshape(-1, 2, 3)
    grid = functional.affine_grid(to_source, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
