"""A pretrained network, cut off at the point that gives the features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import nn

from featx.backbones.pools import flatten_features, pool_features, pooled_shape
from featx.backbones.taps import Repeated
from featx.preprocess import Preprocessing
from featx.weights import Weights

__all__ = ["Backbone", "BackboneGroup"]

Shape = tuple[int, ...]


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
    n_prefix_tokens : int, default=0
        Class and register tokens in the tapped output, before the patch tokens.
    variant : tuple of str, default=()
        What makes the features others than name, weights and layer say; part of the identity.
    source_sha256 : str, default=""
        Of the user's code that built it; empty where none did.
    """

    name: str
    layer: str
    is_default_layer: bool
    pool: str
    network: nn.Module
    weights: Weights
    preprocessing: Preprocessing
    map_shape: Shape
    n_prefix_tokens: int = 0
    variant: tuple[str, ...] = ()
    source_sha256: str = ""

    @property
    def feature_shape(self) -> Shape:
        """Shape of the features of one image, before flattening."""
        # Whether there is a class token was checked when the backbone was opened.
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
        return self.pooled(self.network(images))

    def pooled(self, output: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Pool and flatten what the network gives.

        Parameters
        ----------
        output : tensor of shape (n_images, *map_shape)
            Of `network`.
        dtype : torch.dtype, optional
            Type of the features; that of `output` by default.

        Returns
        -------
        tensor of shape (n_images, n_features)
            In contiguous rows.
        """
        return flatten_features(pool_features(output, self.pool, self.n_prefix_tokens), dtype)

    def identity(self) -> dict[str, Any]:
        """Everything about the backbone that changes the features."""
        point: dict[str, Any] = {
            "layer": self.layer,
            "pool": self.pool,
            "feature_shape": list(self.feature_shape),
        }
        if self.n_prefix_tokens and self.pool in ("avg", "max", "avg+cls"):
            point["n_prefix_tokens"] = self.n_prefix_tokens
        if self.variant:
            point["variant"] = list(self.variant)
        source = {"source_sha256": self.source_sha256} if self.source_sha256 else {}
        return {
            "backbone": self.name,
            **source,
            "weights_sha256": self.weights.sha256,
            "preprocessing": self.preprocessing.identity(),
            "input_size": self.input_size,
            "point": point,
        }


@dataclass(frozen=True)
class BackboneGroup(Sequence[Backbone]):
    """Several feature points of one network, computed in one pass.

    A sequence of its members, each usable alone; all of them share one set of weights.
    """

    members: tuple[Backbone, ...]
    network: nn.Module

    @classmethod
    def of(cls, backbone: Backbone) -> BackboneGroup:
        """Make a group of one."""
        return cls((backbone,), Repeated(backbone.network, 1))

    def __len__(self) -> int:
        return len(self.members)

    @overload
    def __getitem__(self, index: int) -> Backbone: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Backbone, ...]: ...

    def __getitem__(self, index: int | slice) -> Backbone | tuple[Backbone, ...]:
        return self.members[index]

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared, for all members."""
        return self.members[0].preprocessing

    def features_many(
        self, images: torch.Tensor, dtype: torch.dtype | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Compute the features of every member in one pass."""
        outputs = self.network(images)
        pairs = zip(self.members, outputs, strict=True)
        return tuple(member.pooled(output, dtype) for member, output in pairs)
