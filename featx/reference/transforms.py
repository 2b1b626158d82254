"""Transforms built from recorded values alone, where the weights bring none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torchvision import transforms

from featx.errors import BackboneError
from featx.preprocess import Preprocessing

__all__ = ["Transform", "plain_transform"]

Transform = Callable[[Image.Image], torch.Tensor]
"""Makes a normalised float32 tensor of shape (3, size, size) of an RGB image."""


def plain_transform(preprocessing: Preprocessing) -> Transform:
    """Build torchvision's standard transform from recorded values.

    Parameters
    ----------
    preprocessing : Preprocessing
        Only its numbers are used.

    Returns
    -------
    callable
        Resize and centre crop of the Pillow image, scale to [0, 1], normalise.

    Raises
    ------
    BackboneError
        If images are to be fitted into a border: only timm itself has that.
    """
    values = preprocessing.identity()
    mode = values.get("crop_mode", "center")
    if mode == "border":
        raise BackboneError("no reference transform fits images into a border at another size")
    size: Any = values["resize_px"] if mode == "center" else [values["resize_px"]] * 2
    steps = [
        transforms.Resize(size, transforms.InterpolationMode(values["interpolation"])),
        transforms.CenterCrop(values["crop_px"]),
        transforms.ToTensor(),
        transforms.Normalize(values["mean"], values["std"]),
    ]
    return transforms.Compose(steps)  # type: ignore[no-any-return]
