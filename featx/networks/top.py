"""Tops: layers that are put on a backbone and are trained with it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import nn

from featx.configurable import setting
from featx.errors import UsageError
from featx.networks.spec import Buildable, build_seeded, find

__all__ = ["AveragePool", "Top", "available_tops", "get_top"]

Shape = tuple[int, ...]

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "gelu": nn.GELU}


class AveragePool(nn.Module):
    """Mean of a map over its rows and columns, or of all tokens; vectors are not changed."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Average."""
        if features.dim() == 4:
            return features.mean((2, 3))
        return features.mean(1) if features.dim() == 3 else features


@dataclass(frozen=True)
class Top(Buildable, ABC):
    """Layers between the features of a backbone and the logits."""

    def build(self, map_shape: Shape, n_classes: int, seed: int) -> nn.Module:
        """Build it with torch's usual random weights."""
        return build_seeded(self.text, lambda: self._build(map_shape, n_classes), seed)

    @abstractmethod
    def _build(self, map_shape: Shape, n_classes: int) -> nn.Module:
        """Build it with torch's current random generator."""


@dataclass(frozen=True)
class LinearTop(Top):
    """The average of the map and one dense layer, as at the end of most networks."""

    name: str = "linear"
    dropout: float = setting(0.0, within="[0, 1)")
    batch_norm: str = setting("none", choices=("none", "input"))

    def _build(self, map_shape: Shape, n_classes: int) -> nn.Module:
        width = _n_averaged(map_shape)
        norm = [nn.BatchNorm1d(width)] if self.batch_norm == "input" else []
        drop = [nn.Dropout(self.dropout)] if self.dropout else []
        return nn.Sequential(AveragePool(), *norm, *drop, nn.Linear(width, n_classes))


@dataclass(frozen=True)
class DenseTop(Top):
    """Hidden dense layers on the flattened (``flatten``) or the averaged map (``gap``).

    A hidden layer is, as in the head ``mlp-torch``: batch normalisation if it is ``before``, the
    dense layer, batch normalisation if it is ``after``, the activation, dropout.
    """

    name: str = "flatten"
    hidden: tuple[int, ...] = setting((512, 256), within="[1, inf)")
    dropout: tuple[float, ...] = setting((0.2,), within="[0, 1)")
    batch_norm: str = setting("none", choices=("none", "input", "before", "after"))
    activation: str = setting("relu", choices=tuple(_ACTIVATIONS))

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.dropout) not in (1, len(self.hidden)):
            raise UsageError(
                f"dropout of {self.name} has {len(self.dropout)} numbers for {len(self.hidden)} "
                "hidden layers: give one for all of them, or one a layer"
            )

    def _build(self, map_shape: Shape, n_classes: int) -> nn.Module:
        is_flat = self.name == "flatten"
        width = math.prod(map_shape) if is_flat else _n_averaged(map_shape)
        parts: list[nn.Module] = [nn.Flatten() if is_flat else AveragePool()]
        if self.batch_norm == "input":
            parts.append(nn.BatchNorm1d(width))
        drops = self.dropout if len(self.dropout) > 1 else self.dropout * len(self.hidden)
        for n_units, drop in zip(self.hidden, drops, strict=True):
            parts += self._hidden(width, n_units, drop)
            width = n_units
        return nn.Sequential(*parts, nn.Linear(width, n_classes))

    def _hidden(self, width: int, n_units: int, drop: float) -> list[nn.Module]:
        before = [nn.BatchNorm1d(width)] if self.batch_norm == "before" else []
        after = [nn.BatchNorm1d(n_units)] if self.batch_norm == "after" else []
        dropout = [nn.Dropout(drop)] if drop else []
        return [
            *before,
            nn.Linear(width, n_units),
            *after,
            _ACTIVATIONS[self.activation](),
            *dropout,
        ]


def _n_averaged(map_shape: Shape) -> int:
    """Return the number of channels: the first axis of a map, the last of tokens."""
    return map_shape[-1] if len(map_shape) == 2 else map_shape[0]


_TOPS: dict[str, Top] = {top.name: top for top in (LinearTop(), DenseTop(), DenseTop("gap"))}


def available_tops() -> tuple[str, ...]:
    """Names of all tops."""
    return tuple(_TOPS)


def get_top(text: str) -> Top:
    """Find a top by its name, with its settings."""
    return find("top", text, _TOPS)
