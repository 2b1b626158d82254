"""Where features can be tapped from a network, and the network cut off there.

What every network has in common; `featx.backbones.graph_taps` traces the network,
`featx.backbones.module_taps` stops its forward pass with hooks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn

from featx.errors import UsageError, unknown_name

__all__ = ["CLASS_TOKEN", "Layout", "TapPoint", "Taps", "channels_first"]

Shape = tuple[int, ...]

CLASS_TOKEN = "class_token"  # noqa: S105


@dataclass(frozen=True)
class TapPoint:
    """One place in a network whose output can be the features.

    Parameters
    ----------
    name : str
        The name to give to ``--layer``.
    shape : tuple of int
        Shape of the output for one image: ``(channels, height, width)`` for a
        feature map, ``(tokens, channels)`` for a transformer, ``(channels,)``.
    n_prefix_tokens : int, default=0
        Tokens before the patch tokens (class token, registers), where these are tokens.
    has_class_token : bool, default=True
        Whether the first token may serve as a class token, where these are tokens.
    variant : str, default=""
        What makes its values others than the name says to older versions of featx.
    """

    name: str
    shape: Shape
    n_prefix_tokens: int = 0
    has_class_token: bool = True
    variant: str = ""

    @property
    def n_values(self) -> int:
        """Number of values for one image, flattened."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """What is known of the order in which a network lays out its outputs.

    Parameters
    ----------
    n_tokens : int, default=0
        Tokens of a whole sequence, the prefix counted; 0 where nothing is known.
    n_prefix : int, default=0
        Tokens before the patch tokens.
    has_class : bool, default=False
        Whether the first of the prefix is a class token.
    is_channels_last : bool, default=False
        Whether maps have their channels last (Swin). It decides where the shape does
        not tell it, for it has as many channels as rows.
    """

    n_tokens: int = 0
    n_prefix: int = 0
    has_class: bool = False
    is_channels_last: bool = False

    def puts_channels_last(self, raw: Shape, module: nn.Module | None = None) -> bool:
        """Whether the output for one (square) image is a map with its channels last.

        Parameters
        ----------
        raw : tuple of int
            Its shape, as the network computes it.
        module : torch.nn.Module, optional
            What computed it: a convolution puts its channels first.

        Returns
        -------
        bool
            False for what is no map.
        """
        if len(raw) != 3 or raw[0] != raw[1]:
            return False
        return raw[1] != raw[2] or (self.is_channels_last and not isinstance(module, nn.Conv2d))

    def point(self, name: str, raw: Shape, module: nn.Module | None = None) -> TapPoint:
        """Describe an output as featx hands it on: channels first.

        Parameters
        ----------
        name : str
            Of the point.
        raw, module
            As for `puts_channels_last`.

        Returns
        -------
        TapPoint
            With the layout of its tokens, where it has any.
        """
        if self.puts_channels_last(raw, module):
            return TapPoint(name, (raw[2], raw[0], raw[1]))
        if len(raw) != 2 or not self.n_tokens:
            return TapPoint(name, raw)
        if raw[0] != self.n_tokens:
            return TapPoint(name, raw, has_class_token=False)
        return TapPoint(name, raw, self.n_prefix, self.has_class)


class Taps(ABC):
    """All tap points of one network at one input size."""

    default: str | None
    points: tuple[TapPoint, ...]
    aliases: Mapping[str, str] = MappingProxyType({})
    others: Mapping[str, str] = MappingProxyType({})
    """What the modules give whose output cannot be tapped."""

    def find(self, name: str | None) -> TapPoint:
        """Look up a tap point.

        Parameters
        ----------
        name : str or None
            A name of `points`; None for the default.

        Returns
        -------
        TapPoint
            Of that name.

        Raises
        ------
        UsageError
            If there is none, with the nearest names, or its output is no tensor.
        """
        if name is not None and name in self.others:
            raise UsageError(
                f"layer {name!r} gives {self.others[name]}, not a tensor with one entry an "
                "image: tap a layer inside or behind it"
            )
        wanted = self.default if name is None else self._canonical(name)
        names = [point.name for point in self.points]
        if wanted is None:
            error = UsageError("this network has no known feature point: choose one with --layer")
        elif wanted in names:
            return self.points[names.index(wanted)]
        else:
            error = unknown_name("layer", wanted, [*names, *self.aliases])
        error.add_note(f"the layers are: {', '.join([*self.aliases, *names])}")
        raise error

    def _canonical(self, name: str) -> str:
        return self.aliases.get(name, name)

    def cut(self, name: str) -> nn.Module:
        """Network that computes the output of one tap point and nothing behind it.

        Parameters
        ----------
        name : str
            Name of one of `points`.

        Returns
        -------
        torch.nn.Module
            Sharing its parameters with the network.
        """
        return _One(self.cut_many([name]))

    @abstractmethod
    def cut_many(self, names: Sequence[str]) -> nn.Module:
        """Network that computes the outputs of several tap points in one pass.

        Parameters
        ----------
        names : sequence of str
            Names of some of `points`, in any order; the same may come twice.

        Returns
        -------
        torch.nn.Module
            Maps images to a tuple of tensors, one a name, each equal bit for bit to what
            `cut` gives. It shares its parameters with the network.
        """

    def lies_behind(self, name: str, prefixes: Sequence[str]) -> bool:
        """Whether a point is computed by some modules, or after them.

        Parameters
        ----------
        name : str
            Name of one of `points`.
        prefixes : sequence of str
            Paths of modules.

        Returns
        -------
        bool
            False where none of them gives a point at all.
        """
        names = [point.name for point in self.points]
        begins = tuple(f"{prefix}." for prefix in prefixes)
        inside = [i for i, other in enumerate(names) if f"{other}.".startswith(begins)]
        return bool(inside) and names.index(name) >= min(inside)


def channels_first(output: torch.Tensor) -> torch.Tensor:
    """Put the channels of a map before its rows.

    Parameters
    ----------
    output : tensor of shape (n, height, width, channels)
        A map.

    Returns
    -------
    tensor of shape (n, channels, height, width)
        A view of it.
    """
    return output.permute(0, 3, 1, 2)


class _One(nn.Module):
    """The only output of a network that gives a tuple of one.

    Parameters
    ----------
    network : torch.nn.Module
        Gives that tuple.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the output.

        Parameters
        ----------
        images : tensor of shape (n, 3, size, size)
            As for `network`.

        Returns
        -------
        tensor of shape (n, ...)
            The first of the tuple.
        """
        output: torch.Tensor = self.network(images)[0]
        return output
