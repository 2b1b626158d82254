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
    """A whole network with the transform of its weights.

    Parameters
    ----------
    network : torch.nn.Module
        With its classifier, in evaluation mode, float32, on the CPU.
    transform : callable
        Makes a normalised tensor of shape (3, size, size), float32, from an RGB image.
    point : Backbone
        Its layer, pool and layout of tokens say what the features are; its network is not used.
    origin : str
        Who made the network and the transform.
    has_head : bool, default=True
        Whether the weights fill the classifier.
    """

    network: nn.Module
    transform: Transform
    point: Backbone
    origin: str
    has_head: bool = True

    @torch.inference_mode()
    def run(self, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Transform one image and put it through the whole network.

        Parameters
        ----------
        image : PIL.Image.Image
            In mode RGB.

        Returns
        -------
        inputs : tensor of shape (3, size, size), dtype float32
            What the network saw.
        features : tensor of shape (n_features,), dtype float32
            Pooled and flattened.
        logits : tensor of shape (n_classes,), or None
            None where the network has no usable classifier.
        """
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
    """Build the reference of a backbone, without featx's own loaders where that is possible.

    Parameters
    ----------
    backbone : Backbone
        What is to be checked.
    weights : str, optional
        As given to `featx.open_backbone`.
    overrides : mapping, optional
        As given to `featx.open_backbone`; with any but ``input_size`` the transform is
        no longer the weights' own, and is built anew from the backbone's record.
    weights_key : str, optional
        As given to `featx.open_backbone`.
    allow_code : collection of str, optional
        As given to `featx.open_backbone`.

    Returns
    -------
    Reference
        Of the same layer and pooling.
    """
    # Whoever holds the backbone has named its code: it has run already.
    allowed = (backbone.name, *allow_code)
    built = build(backbone, weights, overrides or {}, weights_key, allowed)
    transform, origin = built.transform, built.origin
    changed = sorted(set(overrides or {}) - {"input_size"})
    if changed:
        transform = plain_transform(backbone.preprocessing)
        origin += f", transform changed by {', '.join(changed)}"
    return Reference(built.network.eval(), transform, backbone, origin, built.has_head)
