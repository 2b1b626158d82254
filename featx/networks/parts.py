"""Pieces that several networks are built of."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

__all__ = ["KERAS_EPS", "batch_norm", "conv", "dense_stack", "named", "start_as_keras"]

KERAS_EPS = 1e-3
"""What Keras adds to the variance in batch normalisation; torch adds 1e-5."""


def conv(n_in: int, n_out: int) -> nn.Conv2d:
    """Make a 3 x 3 convolution that keeps the size of the map (Keras' ``padding="same"``)."""
    return nn.Conv2d(n_in, n_out, kernel_size=3, padding=1)


def batch_norm(n_channels: int, momentum: float, *, is_flat: bool = False) -> nn.Module:
    """Make a batch normalisation with the constant of Keras."""
    kind = nn.BatchNorm1d if is_flat else nn.BatchNorm2d
    return kind(n_channels, eps=KERAS_EPS, momentum=momentum)


def named(parts: Iterable[tuple[str, nn.Module]]) -> nn.Sequential:
    """Chain parts that have names."""
    chain = nn.Sequential()
    for name, part in parts:
        chain.add_module(name, part)
    return chain


def dense_stack(n_in: int, widths: Iterable[int]) -> list[nn.Module]:
    """Make dense layers with a ReLU behind each."""
    parts: list[nn.Module] = []
    for width in widths:
        parts += [nn.Linear(n_in, width), nn.ReLU()]
        n_in = width
    return parts


def start_as_keras(network: nn.Module) -> nn.Module:
    """Give weights the values that Keras starts from: Glorot's uniform ones, and biases of 0.

    References
    ----------
    X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", AISTATS 2010, equation 16.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
