"""Where features can be tapped from a network, and the network cut off there.

What every network has in common; `featx.backbones.graph_taps` traces the network,
`featx.backbones.module_taps` stops its forward pass with hooks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn

from featx.errors import UsageError, unknown_name

__all__ = ["CLASS_TOKEN", "Layout", "Repeated", "TapPoint", "Taps", "in_order"]

Shape = tuple[int, ...]

CLASS_TOKEN = "class_token"  # noqa: S105


@dataclass(frozen=True)
class TapPoint:
    """One place in a network whose output can be the features."""

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
    """What is known of the order in which a network lays out its outputs."""

    n_tokens: int = 0
    n_prefix: int = 0
    has_class: bool = False
    is_channels_last: bool = False

    def puts_channels_last(self, raw: Shape, module: nn.Module | None = None) -> bool:
        """Whether the output for one (square) image is a map with its channels last."""
        if len(raw) != 3 or raw[0] != raw[1]:
            return False
        return raw[1] != raw[2] or (self.is_channels_last and not isinstance(module, nn.Conv2d))

    def point(self, name: str, raw: Shape, module: nn.Module | None = None) -> TapPoint:
        """Describe an output as featx hands it on: channels first."""
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
        """Look up a tap point."""
        if name is not None and name in self.others:
            raise UsageError(
                f"layer {name!r} gives {self.others[name]}, not a tensor with one entry an "
                "image: tap a layer inside or behind it"
            )
        wanted = self.default if name is None else self._canonical(name)
        names = [point.name for point in self.points]
        if wanted is None:
            error = UsageError("no default layer of this network is known: choose one with --layer")
        elif wanted in names:
            return self.points[names.index(wanted)]
        else:
            error = unknown_name("layer", wanted, [*names, *self.aliases])
        error.add_note(f"the layers are: {', '.join([*self.aliases, *names])}")
        raise error

    def _canonical(self, name: str) -> str:
        return self.aliases.get(name, name)

    def cut(self, name: str) -> nn.Module:
        """Network that computes the output of one tap point and nothing behind it."""
        return _One(self.cut_many([name]))

    @abstractmethod
    def cut_many(self, names: Sequence[str]) -> nn.Module:
        """Network that computes the outputs of several tap points in one pass."""

    def lies_behind(self, name: str, prefixes: Sequence[str]) -> bool:
        """Whether a point is computed by some modules, or after them."""
        names = [point.name for point in self.points]
        begins = tuple(f"{prefix}." for prefix in prefixes)
        ends = {self._canonical(prefix) for prefix in prefixes}  # a module around it ends there too
        inside = [i for i, n in enumerate(names) if f"{n}.".startswith(begins) or n in ends]
        return bool(inside) and names.index(name) >= min(inside)


def in_order(
    outputs: Mapping[str, torch.Tensor], names: Sequence[str], channels_last: Collection[str]
) -> tuple[torch.Tensor, ...]:
    """Give outputs by name, each with its channels before its rows."""
    return tuple(
        outputs[name].permute(0, 3, 1, 2) if name in channels_last else outputs[name]
        for name in names
    )


class Repeated(nn.Module):
    """Gives the output of a network several times over, as a tuple."""

    def __init__(self, network: nn.Module, n_times: int) -> None:
        super().__init__()
        self.network = network
        self.n_times = n_times

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the output once."""
        return (self.network(images),) * self.n_times


class _One(nn.Module):
    """The only output of a network that gives a tuple of one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the output."""
        output: torch.Tensor = self.network(images)[0]
        return output
