"""Transforms built from recorded values alone, where the weights bring none."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torchvision import transforms

from featx.backbones.timm_models import import_timm
from featx.preprocess import Preprocessing

__all__ = ["Transform", "plain_transform"]

Transform = Callable[[Image.Image], torch.Tensor]
"""Makes a normalised float32 tensor of shape (3, size, size) of an RGB image."""


def plain_transform(preprocessing: Preprocessing) -> Transform:
    """Build the standard transform from recorded values."""
    values = preprocessing.identity()
    steps = [
        *_resize_and_crop(values),
        transforms.ToTensor(),
        transforms.Normalize(values["mean"], values["std"]),
    ]
    return transforms.Compose(steps)  # type: ignore[no-any-return]


def _resize_and_crop(values: dict[str, Any]) -> list[Any]:
    mode, side = values.get("crop_mode", "center"), values["resize_px"]
    if mode == "border":
        import_timm()
        timm: Any = importlib.import_module("timm.data.transforms")
        fill = [round(255 * value) for value in values["mean"]]
        resize = timm.ResizeKeepRatio(
            (side, side), interpolation=values["interpolation"], longest=1.0
        )
        return [resize, timm.CenterCropOrPad(values["crop_px"], fill=fill)]
    return [
        transforms.Resize(
            side if mode == "center" else [side, side],
            transforms.InterpolationMode(values["interpolation"]),
        ),
        transforms.CenterCrop(values["crop_px"]),
    ]
