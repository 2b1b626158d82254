"""Keras's names for feature points, where the same point exists in torchvision's network.

Only the networks of Keras that torchvision has too, and only points that correspond one to
one: VGG16 and VGG19, ResNet50, 101 and 152, InceptionV3.
"""

from __future__ import annotations

from torch import nn
from torchvision import models

__all__ = ["keras_aliases"]


def keras_aliases(name: str, network: nn.Module) -> dict[str, str]:
    """Other names of feature points."""
    if isinstance(network, models.VGG):
        return _vgg(network, has_convolutions=name in ("vgg16", "vgg19"))
    if name in ("resnet50", "resnet101", "resnet152") and isinstance(network, models.ResNet):
        return _resnet(network)
    if isinstance(network, models.Inception3):
        return _inception()
    return {}


def _vgg(network: models.VGG, *, has_convolutions: bool) -> dict[str, str]:
    """``block3``, ``block3_pool``; ``block3_conv2`` is the ReLU, which is part of Keras's layer."""
    aliases: dict[str, str] = {}
    block, convolution = 1, 0
    for i, module in enumerate(network.features):
        if isinstance(module, nn.MaxPool2d):
            aliases |= {f"block{block}": f"features.{i}", f"block{block}_pool": f"features.{i}"}
            block, convolution = block + 1, 0
        elif isinstance(module, nn.ReLU) and has_convolutions:
            convolution += 1
            aliases[f"block{block}_conv{convolution}"] = f"features.{i}"
    return aliases


def _resnet(network: models.ResNet) -> dict[str, str]:
    """``conv4_block6_out``: what leaves the sixth block of the stage that torchvision numbers 3."""
    aliases = {"conv1_relu": "relu", "pool1_pool": "maxpool"}
    for stage in range(1, 5):
        blocks = network.get_submodule(f"layer{stage}")
        for i, _ in enumerate(blocks.children()):
            aliases[f"conv{stage + 1}_block{i + 1}_out"] = f"layer{stage}.{i}"
    return aliases


def _inception() -> dict[str, str]:
    """``mixed0`` to ``mixed10``, which the paper and torchvision call 5b to 7c."""
    blocks = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
    return {f"mixed{i}": f"Mixed_{block}" for i, block in enumerate(blocks)}
