"""Networks of torchvision for small images: the first convolution neither strides nor is 7 wide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from featx.configurable import setting
from featx.networks.spec import NetworkSpec

__all__ = ["SMALL", "SmallNetwork"]

_ORIGIN = (
    "torchvision's {}, its first convolution 3 x 3 with stride 1 (as huyvnphan/PyTorch_CIFAR10)"
)


@dataclass(frozen=True)
class SmallNetwork(NetworkSpec):
    """A network of torchvision with the stem of huyvnphan's collection for CIFAR-10.

    Only the first convolution differs from torchvision's (3 x 3, stride 1, padding 1), as in
    the code of that collection, which keeps the pooling behind it. Parameters have
    torchvision's names, which are those of the collection, so that a state dict of it fits.

    References
    ----------
    H. Phan, "huyvnphan/PyTorch_CIFAR10", version 3.0.1, Zenodo, 2021,
    https://doi.org/10.5281/zenodo.4431043.
    """

    name: str
    origin: str
    usual_px: int = 32
    architecture: str = ""
    stem_pool: bool = setting(True)

    def _build(self, n_classes: int, input_px: int) -> nn.Module:
        from torchvision import models

        del input_px  # the map is averaged: any size will do
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

SMALL = tuple(
    SmallNetwork(f"{name}-small", _ORIGIN.format(name), architecture=name)
    for name in _ARCHITECTURES
)
