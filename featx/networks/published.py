"""The networks of the published systems, layer by layer as their tables give them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from featx.configurable import setting
from featx.networks.parts import batch_norm, conv, dense_stack, named, start_as_keras
from featx.networks.spec import NetworkSpec

__all__ = ["AnnNellangara", "CnnHoogasianCifar", "CnnHoogasianStl", "CnnNellangara", "CnnVeer"]


@dataclass(frozen=True)
class AnnNellangara(NetworkSpec):
    """Three dense layers on the pixels.

    The source gives their number and no widths: `hidden` are those of the tutorial that it
    most plausibly followed.
    """

    name: str = "ann-nellangara"
    origin: str = "Nellangara, CIFAR-10: three dense layers"
    usual_px: int = 32
    hidden: tuple[int, ...] = setting((3000, 1000), within="[1, inf)")

    def _build(self, n_classes: int, input_px: int) -> nn.Module:
        parts = [nn.Flatten(), *dense_stack(3 * input_px**2, self.hidden)]
        last = nn.Linear(self.hidden[-1], n_classes)
        return start_as_keras(named([("hidden", nn.Sequential(*parts)), ("classifier", last)]))


@dataclass(frozen=True)
class CnnNellangara(NetworkSpec):
    """Two convolutions with pooling, and a dense layer of 200."""

    last_map: ClassVar[str | None] = "features"

    name: str = "cnn-nellangara"
    origin: str = "Nellangara, CIFAR-10: conv 64, pool, conv 128, pool, dense 200"
    usual_px: int = 32
    dropout: float = setting(0.2, within="[0, 1)")

    @property
    def least_px(self) -> int:
        """Two halvings."""
        return 4

    def _build(self, n_classes: int, input_px: int) -> nn.Module:
        features = nn.Sequential(
            *(conv(3, 64), nn.ReLU(), nn.MaxPool2d(2)),
            *(conv(64, 128), nn.ReLU(), nn.MaxPool2d(2)),
        )
        n_flat = 128 * (input_px // 4) ** 2
        classifier = nn.Sequential(
            nn.Dropout(self.dropout),
            nn.Flatten(),
            *dense_stack(n_flat, [200]),
            nn.Linear(200, n_classes),
        )
        return start_as_keras(named([("features", features), ("classifier", classifier)]))


@dataclass(frozen=True)
class CnnHoogasianCifar(NetworkSpec):
    """Four convolutions with batch normalisation, 592,169 parameters at 32 pixels and 9 classes."""

    last_map: ClassVar[str | None] = "features"

    name: str = "cnn-hoogasian-cifar"
    origin: str = "Hoogasian, CIFAR-10: four convolutions, 592,169 parameters"
    usual_px: int = 32
    dropout: float = setting(0.5, within="[0, 1)")
    bn_momentum: float = setting(0.01, within="(0, 1]")

    @property
    def least_px(self) -> int:
        """Two halvings."""
        return 4

    def _build(self, n_classes: int, input_px: int) -> nn.Module:
        parts: list[nn.Module] = []
        n_in = 3
        for n_filters in (32, 64):
            for _ in range(2):
                parts += [conv(n_in, n_filters), nn.ReLU(), batch_norm(n_filters, self.bn_momentum)]
                n_in = n_filters
            parts.append(nn.MaxPool2d(2))
        parts.append(batch_norm(64, self.bn_momentum))
        classifier = nn.Sequential(
            nn.Flatten(),
            *dense_stack(64 * (input_px // 4) ** 2, [128]),
            nn.Dropout(self.dropout),
            nn.Linear(128, n_classes),
        )
        network = named([("features", nn.Sequential(*parts)), ("classifier", classifier)])
        return start_as_keras(network)


@dataclass(frozen=True)
class CnnHoogasianStl(NetworkSpec):
    """What the random search found for STL-10: 38,124,937 parameters at 96 pixels and 9 classes.

    The source's table of layers lacks the normalisation behind the second convolution; its
    512 parameters are in the total.
    """

    last_map: ClassVar[str | None] = "features"

    name: str = "cnn-hoogasian-stl"
    origin: str = "Hoogasian, STL-10: three convolutions, 38,124,937 parameters"
    usual_px: int = 96
    dropout: tuple[float, ...] = setting((0.25, 0.5), within="[0, 1)")
    bn_momentum: float = setting(0.01, within="(0, 1]")

    @property
    def least_px(self) -> int:
        """Two halvings."""
        return 4

    def _build(self, n_classes: int, input_px: int) -> nn.Module:
        def block(n_in: int, n_out: int) -> list[nn.Module]:
            return [conv(n_in, n_out), nn.ReLU(), batch_norm(n_out, self.bn_momentum)]

        features = nn.Sequential(
            *(*block(3, 64), nn.MaxPool2d(2)),
            *block(64, 128),
            *(*block(128, 256), nn.MaxPool2d(2)),
        )
        classifier = nn.Sequential(
            nn.Dropout(self.dropout[0]),
            nn.Flatten(),
            *dense_stack(256 * (input_px // 4) ** 2, [256]),
            batch_norm(256, self.bn_momentum, is_flat=True),
            nn.Dropout(self.dropout[-1]),
            nn.Linear(256, n_classes),
        )
        return start_as_keras(named([("features", features), ("classifier", classifier)]))


@dataclass(frozen=True)
class CnnVeer(NetworkSpec):
    """Two convolutions with pooling, and a dense layer of 256; model 1 of its source."""

    last_map: ClassVar[str | None] = "features"

    name: str = "cnn-veer"
    origin: str = "Veer, Ram, Ranjani, CIFAR-10, model 1: conv 32, pool, conv 64, pool, dense 256"
    usual_px: int = 32
    dropout: float = setting(0.5, within="[0, 1)")

    @property
    def least_px(self) -> int:
        """Two halvings."""
        return 4

    def _build(self, n_classes: int, input_px: int) -> nn.Module:
        features = nn.Sequential(
            *(conv(3, 32), nn.ReLU(), nn.MaxPool2d(2)),
            *(conv(32, 64), nn.ReLU(), nn.MaxPool2d(2)),
        )
        classifier = nn.Sequential(
            nn.Flatten(),
            *dense_stack(64 * (input_px // 4) ** 2, [256]),
            nn.Dropout(self.dropout),
            nn.Linear(256, n_classes),
        )
        return named([("features", features), ("classifier", classifier)])
