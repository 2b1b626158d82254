"""Networks that are trained from scratch.

Those of published systems, layer by layer as in their tables; two that adapt to the image size or
to a random search; and torchvision's for small images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from featx.configurable import setting
from featx.dense import dense_stack
from featx.networks.spec import (
    NetworkSpec,
    batch_norm,
    conv,
    named,
    start_as_keras,
)

__all__ = ["NETWORKS", "SEARCH_SPACE", "AutoCnn", "SearchCnn", "SmallNetwork"]


@dataclass(frozen=True)
class AnnNellangara(NetworkSpec):
    """Three dense layers on the pixels.

    The source gives the number of layers, but no widths: `hidden` are those of the tutorial that
    it most plausibly followed.
    """

    name: str = "ann-nellangara"
    origin: str = "Nellangara, CIFAR-10: three dense layers"
    hidden: tuple[int, ...] = setting((3000, 1000), within="[1, inf)")

    def _build(self, n_classes: int, input_px: int) -> nn.Module:
        parts = [nn.Flatten(), *dense_stack(3 * input_px**2, self.hidden)]
        last = nn.Linear(self.hidden[-1], n_classes)
        return start_as_keras(named([("hidden", nn.Sequential(*parts)), ("classifier", last)]))


def _in_two(features: Iterable[nn.Module], classifier: Iterable[nn.Module]) -> nn.Module:
    """Put the convolutional part and the classifier together, by their names."""
    return named(
        [("features", nn.Sequential(*features)), ("classifier", nn.Sequential(*classifier))]
    )


def _block(n_in: int, n_out: int, momentum: float) -> list[nn.Module]:
    return [conv(n_in, n_out), nn.ReLU(), batch_norm(n_out, momentum)]


@dataclass(frozen=True)
class _TwoHalvings(NetworkSpec):
    """Convolutions with two poolings that halve the map, then dense layers."""

    last_map: ClassVar[str | None] = "features"

    @property
    def n_halvings(self) -> int:
        """Two poolings."""
        return 2


@dataclass(frozen=True)
class CnnNellangara(_TwoHalvings):
    """Two convolutions with pooling, and a dense layer of 200."""

    name: str = "cnn-nellangara"
    origin: str = "Nellangara, CIFAR-10: conv 64, pool, conv 128, pool, dense 200"
    dropout: float = setting(0.2, within="[0, 1)")

    def _build(self, n_classes: int, input_px: int) -> nn.Module:
        features = [
            *(conv(3, 64), nn.ReLU(), nn.MaxPool2d(2)),
            *(conv(64, 128), nn.ReLU(), nn.MaxPool2d(2)),
        ]
        n_flat = 128 * (input_px // 4) ** 2
        classifier = [
            nn.Dropout(self.dropout),
            nn.Flatten(),
            *dense_stack(n_flat, [200], n_classes),
        ]
        return start_as_keras(_in_two(features, classifier))


@dataclass(frozen=True)
class CnnHoogasianCifar(_TwoHalvings):
    """Four convolutions with batch normalisation, 592,169 parameters at 32 pixels and 9 classes."""

    name: str = "cnn-hoogasian-cifar"
    origin: str = "Hoogasian, CIFAR-10: four convolutions, 592,169 parameters"
    dropout: float = setting(0.5, within="[0, 1)")
    bn_momentum: float = setting(0.01, within="(0, 1]")

    def _build(self, n_classes: int, input_px: int) -> nn.Module:
        parts: list[nn.Module] = []
        n_in = 3
        for n_filters in (32, 64):
            for _ in range(2):
                parts += _block(n_in, n_filters, self.bn_momentum)
                n_in = n_filters
            parts.append(nn.MaxPool2d(2))
        parts.append(batch_norm(64, self.bn_momentum))
        classifier = [
            nn.Flatten(),
            *dense_stack(64 * (input_px // 4) ** 2, [128]),
            nn.Dropout(self.dropout),
            nn.Linear(128, n_classes),
        ]
        return start_as_keras(_in_two(parts, classifier))


@dataclass(frozen=True)
class CnnHoogasianStl(_TwoHalvings):
    """What the random search found for STL-10: 38,124,937 parameters at 96 pixels and 9 classes.

    The source's table of layers lacks the normalisation after the second convolution, but its
    512 parameters are part of the total.
    """

    name: str = "cnn-hoogasian-stl"
    origin: str = "Hoogasian, STL-10: three convolutions, 38,124,937 parameters"
    usual_px: int = 96
    dropout: tuple[float, ...] = setting((0.25, 0.5), within="[0, 1)")
    bn_momentum: float = setting(0.01, within="(0, 1]")

    def _build(self, n_classes: int, input_px: int) -> nn.Module:
        features = [
            *(*_block(3, 64, self.bn_momentum), nn.MaxPool2d(2)),
            *_block(64, 128, self.bn_momentum),
            *(*_block(128, 256, self.bn_momentum), nn.MaxPool2d(2)),
        ]
        classifier = [
            nn.Dropout(self.dropout[0]),
            nn.Flatten(),
            *dense_stack(256 * (input_px // 4) ** 2, [256]),
            batch_norm(256, self.bn_momentum, is_flat=True),
            nn.Dropout(self.dropout[-1]),
            nn.Linear(256, n_classes),
        ]
        return start_as_keras(_in_two(features, classifier))


@dataclass(frozen=True)
class CnnVeer(_TwoHalvings):
    """Two convolutions with pooling, and a dense layer of 256; model 1 of its source."""

    name: str = "cnn-veer"
    origin: str = "Veer, Ram, Ranjani, CIFAR-10, model 1: conv 32, pool, conv 64, pool, dense 256"
    dropout: float = setting(0.5, within="[0, 1)")

    def _build(self, n_classes: int, input_px: int) -> nn.Module:
        features = [
            *(conv(3, 32), nn.ReLU(), nn.MaxPool2d(2)),
            *(conv(32, 64), nn.ReLU(), nn.MaxPool2d(2)),
        ]
        classifier = [
            nn.Flatten(),
            *dense_stack(64 * (input_px // 4) ** 2, [256]),
            nn.Dropout(self.dropout),
            nn.Linear(256, n_classes),
        ]
        return _in_two(features, classifier)


SEARCH_SPACE: Mapping[str, Sequence[Any]] = {
    "convs": (1, 2, 3),
    "filters": (32, 48, 64, 80, 96),
    "dense": (1, 2, 3),
    "neurons": (128, 256, 384, 512, 640, 768, 896, 1024),
}
"""Settings of `SearchCnn` from which Hoogasian's random search drew; the source gives the
ends of the ranges and no steps. The learning rate (0.1 to 0.001) and the optimizer (Nesterov, Adam,
RMSprop) are settings of the training."""


@dataclass(frozen=True)
class AutoCnn(NetworkSpec):
    """A small network for images of any size.

    A block is some 3 x 3 convolutions, each with batch normalisation and a ReLU, and a pooling
    that halves the map. It has twice the filters of the block before, up to `max_filters`. The
    last map is averaged, so that the trained network also runs on images of other sizes.
    """

    name: str = "auto-cnn"
    origin: str = "featx: as many blocks as the images allow"
    filters: int = setting(32, within="[1, inf)")
    blocks: int = setting(0, within="[0, 8]")
    convs: int = setting(2, within="[1, 100]")
    max_filters: int = setting(256, within="[1, inf)")
    dropout: float = setting(0.2, within="[0, 1)")

    @property
    def n_halvings(self) -> int:
        """One for each block; blocks=0 chooses what the images allow."""
        return self.blocks

    def _build(self, n_classes: int, input_px: int) -> nn.Module:
        n_blocks = self.blocks or max(1, int(math.log2(input_px / 4)))  # to a map of 4 to 7 pixels
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
            # Maps of one pixel cannot be halved.
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

    Each convolution has twice the filters of the one before, batch normalisation and a pooling
    that halves the map. Each dense layer has half the units of the one before, batch
    normalisation and dropout.
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
    def n_halvings(self) -> int:
        """One for each convolution."""
        return self.convs

    def _build(self, n_classes: int, input_px: int) -> nn.Module:
        parts: list[nn.Module] = []
        n_in = 3
        for i in range(self.convs):
            n_out = self.filters * 2**i
            parts += [*_block(n_in, n_out, self.bn_momentum), nn.MaxPool2d(2)]
            n_in = n_out
        rest: list[nn.Module] = [nn.Dropout(self.dropout), nn.Flatten()]
        n_in *= (input_px // 2**self.convs) ** 2
        for i in range(self.dense):
            width = self.neurons // 2**i
            rest += dense_stack(n_in, [width])
            rest += [batch_norm(width, self.bn_momentum, is_flat=True), nn.Dropout(self.dropout)]
            n_in = width
        classifier = [*rest, nn.Linear(n_in, n_classes)]
        return start_as_keras(_in_two(parts, classifier))


_ORIGIN = (
    "torchvision's {}, its first convolution 3 x 3 with stride 1 (as huyvnphan/PyTorch_CIFAR10)"
)


@dataclass(frozen=True)
class SmallNetwork(NetworkSpec):
    """A network of torchvision with the first convolution of huyvnphan's collection for CIFAR-10.

    Only the first convolution differs from torchvision's (3 x 3, stride 1, padding 1), as in
    the code of that collection, which keeps the pooling after it. Parameters have torchvision's
    names, as in the collection, so that state dicts of the collection fit.

    References
    ----------
    H. Phan, "huyvnphan/PyTorch_CIFAR10", version 3.0.1, Zenodo, 2021,
    https://doi.org/10.5281/zenodo.4431043.
    """

    architecture: str = ""
    stem_pool: bool = setting(True)

    def _build(self, n_classes: int, input_px: int) -> nn.Module:
        from torchvision import models

        del input_px  # the map is averaged: every size fits
        network: Any = models.get_model(self.architecture, weights=None, num_classes=n_classes)
        if self.architecture.startswith("densenet"):
            network.features.conv0 = _stem(network.features.conv0)
            if not self.stem_pool:
                network.features.pool0 = nn.Identity()
        else:
            network.conv1 = _stem(network.conv1)
            if not self.stem_pool:
                network.maxpool = nn.Identity()
        made: nn.Module = network
        return made


def _stem(before: nn.Conv2d) -> nn.Conv2d:
    stem = nn.Conv2d(3, before.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    return stem


_ARCHITECTURES = ("densenet121", "densenet161", "densenet169", "resnet18", "resnet34", "resnet50")

NETWORKS: dict[str, NetworkSpec] = {
    spec.name: spec
    for spec in (
        AnnNellangara(),
        CnnNellangara(),
        CnnHoogasianCifar(),
        CnnHoogasianStl(),
        CnnVeer(),
        AutoCnn(),
        SearchCnn(),
        *(SmallNetwork(f"{n}-small", _ORIGIN.format(n), architecture=n) for n in _ARCHITECTURES),
    )
}
"""All networks by name, with their default settings."""
