"""A whole network beside the backbone that was cut from it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import nn

from featx.arithmetic import true_float32
from featx.backbones import Backbone
from featx.reference.libraries import build
from featx.reference.tapping import pool_plainly, tap
from featx.reference.transforms import Transform, plain_transform

__all__ = ["Reference", "open_reference"]


@dataclass(frozen=True)
class Reference:
    """A whole network with the transform of its weights."""

    network: nn.Module
    transform: Transform
    point: Backbone
    origin: str
    has_head: bool = True

    @torch.inference_mode()
    def run(self, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Transform one image and put it through the whole network."""
        inputs = self.transform(image)
        point = self.point
        with true_float32():
            tapped = tap(self.network, point.layer, inputs[None])
        features = pool_plainly(
            tapped.features,
            point.pool,
            n_prefix_tokens=point.n_prefix_tokens,
            is_channels_last=_is_channels_last(tapped.features, point.map_shape),
        )
        return inputs, features, _logits(tapped.output) if self.has_head else None


def _is_channels_last(features: torch.Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a map comes as (1, height, width, channels) and featx says channels first."""
    return features.dim() == 4 and tuple(features.shape[1:]) == (*shape[1:], shape[0]) != shape


def _logits(output: object) -> torch.Tensor | None:
    if not isinstance(output, torch.Tensor) or output.dim() != 2:
        return None
    return output[0] if bool(output.isfinite().all()) else None


def open_reference(
    backbone: Backbone,
    *,
    weights: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    weights_key: str | None = None,
    allow_code: Collection[str] = (),
) -> Reference:
    """Build the reference of a backbone, without featx's own loaders where that is possible."""
    # Whoever holds the backbone has named its code: it has run already.
    allowed = (backbone.name, *allow_code)
    built = build(backbone, weights, overrides or {}, weights_key, allowed)
    transform, origin = built.transform, built.origin
    changed = sorted(set(overrides or {}) - {"input_size"})
    if changed:
        transform = plain_transform(backbone.preprocessing)
        origin += f", transform changed by {', '.join(changed)}"
    return Reference(built.network.eval(), transform, backbone, origin, built.has_head)
