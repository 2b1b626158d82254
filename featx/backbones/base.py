"""A pretrained network, cut off at the point that gives the features."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featx.backbones.taps import Taps
from featx.errors import UsageError, unknown_name
from featx.preprocess import Preprocessing
from featx.weights import Weights

__all__ = ["POOLS", "Backbone", "LoadedNetwork", "pool_features", "pooled_shape"]

Shape = tuple[int, ...]

POOLS = ("none", "avg", "max", "cls")


@dataclass(frozen=True)
class LoadedNetwork:
    """What an adapter of `featx.backbones` hands over.

    Parameters
    ----------
    name : str
        Name of the architecture.
    network : torch.nn.Module
        With its weights, in evaluation mode, on the CPU.
    weights : Weights
        Which weights these are.
    preprocessing : Preprocessing
        What those weights were trained with, with the user's overrides.
    tap : callable
        Makes the `Taps` of the network at an input size in pixels.
    """

    name: str
    network: nn.Module
    weights: Weights
    preprocessing: Preprocessing
    tap: Callable[[int], Taps]


@dataclass(frozen=True)
class Backbone:
    """A network that turns normalised images into feature vectors.

    Parameters
    ----------
    name : str
        Name of the architecture, as typed after ``--backbone``.
    layer : str
        Tap point, by its canonical name.
    is_default_layer : bool
        Whether that is the point used when no layer is asked for.
    pool : str
        One of `POOLS`.
    network : torch.nn.Module
        Cut off behind `layer`.
    weights : Weights
        Which weights it holds.
    preprocessing : Preprocessing
        How images are prepared for it.
    map_shape : tuple of int
        Shape of the tapped output for one image, before pooling.
    """

    name: str
    layer: str
    is_default_layer: bool
    pool: str
    network: nn.Module
    weights: Weights
    preprocessing: Preprocessing
    map_shape: Shape

    @property
    def feature_shape(self) -> Shape:
        """Shape of the features of one image, before flattening."""
        return pooled_shape(self.map_shape, self.pool)

    @property
    def n_features(self) -> int:
        """Length of one feature vector."""
        return math.prod(self.feature_shape)

    @property
    def input_size(self) -> int:
        """Side of the square input in pixels."""
        return self.preprocessing.crop_px

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Compute flattened features.

        Parameters
        ----------
        images : tensor of shape (n_images, 3, input_size, input_size)
            Normalised, on the device and in the memory format of the network.

        Returns
        -------
        tensor of shape (n_images, n_features)
            Flattened in the order channels, rows, columns.
        """
        return pool_features(self.network(images), self.pool).flatten(1)

    def identity(self) -> dict[str, Any]:
        """Everything about the backbone that changes the features."""
        return {
            "backbone": self.name,
            "weights_sha256": self.weights.sha256,
            "preprocessing": self.preprocessing.identity(),
            "input_size": self.input_size,
            "point": {
                "layer": self.layer,
                "pool": self.pool,
                "feature_shape": list(self.feature_shape),
            },
        }


def pooled_shape(shape: Shape, pool: str) -> Shape:
    """Shape of one image's features after pooling.

    Parameters
    ----------
    shape : tuple of int
        ``(channels, height, width)``, ``(tokens, channels)`` or ``(channels,)``.
    pool : str
        One of `POOLS`.

    Returns
    -------
    tuple of int
        `shape` itself for ``none``, otherwise ``(channels,)``.

    Raises
    ------
    UsageError
        If this output cannot be pooled so.
    """
    if pool not in POOLS:
        raise unknown_name("pool", pool, POOLS)
    if pool == "none":
        return shape
    if len(shape) == 3 and pool != "cls":
        return shape[:1]
    if len(shape) == 2:
        return shape[1:]
    allowed = {3: "none, avg or max", 2: "any"}.get(len(shape), "none")
    raise UsageError(
        f"pool {pool!r} does not fit a layer whose output has the shape {shape}: use {allowed}"
    )


def pool_features(output: torch.Tensor, pool: str) -> torch.Tensor:
    """Pool the output of a tap point.

    Parameters
    ----------
    output : tensor of shape (n, channels, height, width) or (n, tokens, channels)
        As tapped; any other shape with ``none`` only.
    pool : str
        One of `POOLS`; for tokens, ``avg`` and ``max`` run over all of them.

    Returns
    -------
    tensor of shape (n, channels), or `output` for ``none``
        Same dtype.
    """
    if pool == "none":
        return output
    if pool == "cls":
        return output[:, 0]
    axes = (2, 3) if output.dim() == 4 else (1,)
    return output.mean(axes) if pool == "avg" else output.amax(axes)
