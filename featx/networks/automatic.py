"""Networks that fit themselves to the size of the images, and the space of a random search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from featx.configurable import setting
from featx.networks.parts import batch_norm, conv, dense_stack, named, start_as_keras
from featx.networks.spec import NetworkSpec

__all__ = ["SEARCH_SPACE", "AutoCnn", "SearchCnn"]

_LAST_PX = 4
"""The automatic network halves its maps until they are no smaller than this."""

SEARCH_SPACE: Mapping[str, Sequence[Any]] = {
    "convs": (1, 2, 3),
    "filters": (32, 48, 64, 80, 96),
    "dense": (1, 2, 3),
    "neurons": (128, 256, 384, 512, 640, 768, 896, 1024),
}
"""Settings of `SearchCnn` from which Hoogasian's random search drew; the source gives the
ends of the ranges and no steps. Learning rate (0.1 to 0.001) and optimiser (Nesterov, Adam,
RMSprop) are those of the training."""


@dataclass(frozen=True)
class AutoCnn(NetworkSpec):
    """A small network for images of any size.

    Blocks of 3 x 3 convolutions, each with batch normalisation and a ReLU, end in a halving;
    a block has twice the filters of the one before, up to `max_filters`. Behind the last one
    the map is averaged, so that the trained network runs on images of another size too.
    """

    name: str = "auto-cnn"
    origin: str = "featx: as many blocks as the images allow"
    usual_px: int = 32
    filters: int = setting(32, within="[1, inf)")
    blocks: int = setting(0, within="[0, 8]")
    convs: int = setting(2, within="[1, 100]")
    max_filters: int = setting(256, within="[1, inf)")
    dropout: float = setting(0.2, within="[0, 1)")

    @property
    def least_px(self) -> int:
        """So many halvings."""
        return int(2**self.blocks)

    def _build(self, n_classes: int, input_px: int) -> nn.Module:
        n_blocks = self.blocks or max(1, int(math.log2(input_px / _LAST_PX)))
        parts: list[nn.Module] = []
        n_in = 3
        for i in range(n_blocks):
            n_filters = min(self.filters * 2**i, max(self.filters, self.max_filters))
            block: list[nn.Module] = []
            for _ in range(self.convs):
                layer = nn.Conv2d(n_in, n_filters, 3, padding=1, bias=False)
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                block += [layer, nn.BatchNorm2d(n_filters), nn.ReLU(inplace=True)]
                n_in = n_filters
            # Images of a few pixels are not halved into nothing.
            pool = [nn.MaxPool2d(2)] if input_px >= 2 ** (i + 1) else []
            parts.append(nn.Sequential(*block, *pool))
        return named(
            [
                ("features", nn.Sequential(*parts)),
                ("pool", nn.AdaptiveAvgPool2d(1)),
                ("flatten", nn.Flatten()),
                ("dropout", nn.Dropout(self.dropout)),
                ("classifier", nn.Linear(n_in, n_classes)),
            ]
        )


@dataclass(frozen=True)
class SearchCnn(NetworkSpec):
    """A network of the space of Hoogasian's random search, see `SEARCH_SPACE`.

    Each convolution has twice the filters of the one before, batch normalisation and a
    halving; each dense layer half the units of the one before, batch normalisation and dropout.
    """

    last_map: ClassVar[str | None] = "features"

    name: str = "cnn-search"
    origin: str = "Hoogasian, STL-10: the space of its random search"
    usual_px: int = 96
    convs: int = setting(3, within="[1, 3]")
    filters: int = setting(64, within="[32, 96]")
    dense: int = setting(1, within="[1, 3]")
    neurons: int = setting(256, within="[128, 1024]")
    dropout: float = setting(0.25, within="[0, 1)")
    bn_momentum: float = setting(0.01, within="(0, 1]")

    @property
    def least_px(self) -> int:
        """So many halvings."""
        return int(2**self.convs)

    def _build(self, n_classes: int, input_px: int) -> nn.Module:
        parts: list[nn.Module] = []
        n_in = 3
        for i in range(self.convs):
            n_out = self.filters * 2**i
            parts += [conv(n_in, n_out), nn.ReLU(), batch_norm(n_out, self.bn_momentum)]
            parts.append(nn.MaxPool2d(2))
            n_in = n_out
        rest: list[nn.Module] = [nn.Dropout(self.dropout), nn.Flatten()]
        n_in *= (input_px // 2**self.convs) ** 2
        for i in range(self.dense):
            width = self.neurons // 2**i
            rest += dense_stack(n_in, [width])
            rest += [batch_norm(width, self.bn_momentum, is_flat=True), nn.Dropout(self.dropout)]
            n_in = width
        classifier = nn.Sequential(*rest, nn.Linear(n_in, n_classes))
        network = named([("features", nn.Sequential(*parts)), ("classifier", classifier)])
        return start_as_keras(network)
