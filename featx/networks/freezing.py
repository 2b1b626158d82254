"""Freezing the first layers of a network, and counting what it has.

A *layer* is a module with parameters or running statistics of its own: a convolution, a dense
layer, a batch normalisation, an attention. Layers are counted in the order in which the network
defines them, which is the order of the computation for all networks here. The sources froze "the
first half" by Keras' count, in which VGG16 without its top has 19 layers, with input and pooling.
The first 9 of those contain the first 6 convolutions, which are the first half of the 13 here too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from featx.errors import UsageError, unknown_name

__all__ = [
    "Count",
    "FineTuned",
    "FrozenCount",
    "count",
    "freeze",
    "keep_in_evaluation_mode",
    "statistics_of",
]

_WORDS = ("none", "half", "all")


def keep_in_evaluation_mode(modules: Iterable[nn.Module]) -> None:
    """Put modules into evaluation mode, but not what is inside them."""
    for module in modules:
        module.training = False


class FineTuned(nn.Module):
    """A backbone and a top that are trained together.

    Modules that were given to `hold` stay in evaluation mode when the rest is put into training
    mode: frozen batch normalisation keeps its running statistics, and frozen dropout does nothing.
    """

    def __init__(self, body: nn.Module, top: nn.Module) -> None:
        super().__init__()
        self.body = body.requires_grad_(True)
        self.top = top
        self._held: tuple[nn.Module, ...] = ()

    def hold(self, modules: Iterable[nn.Module]) -> None:
        """Keep some modules in evaluation mode from now on, and no others."""
        self._held = tuple(modules)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Put it into training mode, except the modules that `hold` was given."""
        super().train(mode)
        keep_in_evaluation_mode(self._held)
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute logits."""
        logits: torch.Tensor = self.top(self.body(images))
        return logits


@dataclass(frozen=True)
class Count:
    """Sizes of a network."""

    n_layers: int
    n_parameters: int
    n_trainable: int  # parameters that learn
    n_statistics: int  # running means and variances

    @property
    def n_total_keras(self) -> int:
        """What Keras prints as the total number of parameters."""
        return self.n_parameters + self.n_statistics


@dataclass(frozen=True)
class FrozenCount:
    """What is frozen in a network."""

    n_layers: int  # that can be frozen
    n_frozen: int  # layers
    n_parameters: int
    n_trainable: int  # parameters that learn
    modules: tuple[nn.Module, ...] = field(default=(), repr=False)


def count(network: nn.Module) -> Count:
    """Count layers and parameters."""
    parameters = list(network.parameters())
    return Count(
        n_layers=len(_layers(network)),
        n_parameters=sum(p.numel() for p in parameters),
        n_trainable=sum(p.numel() for p in parameters if p.requires_grad),
        n_statistics=sum(values.numel() for values in statistics_of(network)),
    )


def statistics_of(network: nn.Module) -> list[Tensor]:
    """Find the running means and variances of a network's batch normalisations."""
    return [
        values
        for name, values in network.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    ]


def freeze(network: nn.Module, text: str) -> FrozenCount:
    """Freeze the first layers of a network, and make all others trainable.

    `text` is ``none``, ``half``, ``all``, a number of layers, or the name of the last frozen layer.
    The last layer of a network from scratch, and the top of a `FineTuned` one, always learn.
    """
    body = network.body if isinstance(network, FineTuned) else network
    parts = [(name, module) for name, module in _leaves(body) if module is not body]
    places = [i for i, (_, module) in enumerate(parts) if _has_own(module)]
    if body is network:
        places = places[:-1]
    n_frozen = _number(text, parts, places)
    network.requires_grad_(True)
    end = places[n_frozen - 1] + 1 if n_frozen else 0
    is_whole = body is not network and n_frozen == len(places) > 0
    frozen = tuple(module for _, module in (parts if is_whole else parts[:end]))
    still = _freeze_all(frozen, body)
    if isinstance(network, FineTuned):
        network.hold(still)
    after = count(network)
    return FrozenCount(len(places), n_frozen, after.n_parameters, after.n_trainable, still)


def _freeze_all(frozen: tuple[nn.Module, ...], body: nn.Module) -> tuple[nn.Module, ...]:
    """Freeze layers, and the own parameters of containers in which all layers are frozen.

    The latter are position embeddings, class tokens and scales of a block. Returns all frozen
    modules one by one, because a container may also have dropout for a layer that is not frozen.
    """
    still = [part for module in frozen for part in module.modules()]
    for module in frozen:
        module.requires_grad_(False)
    for container in body.modules():
        layers = _layers(container)
        if layers and all(layer in frozen for layer in layers):
            container.requires_grad_(False)
            still.append(container)
    return tuple(still)


def _number(text: str, parts: list[tuple[str, nn.Module]], places: list[int]) -> int:
    if text in _WORDS:
        return {"none": 0, "half": len(places) // 2, "all": len(places)}[text]
    if text.isdecimal():
        if int(text) > len(places):
            raise UsageError(
                f"freeze is {text}: the network has {len(places)} layers that can be frozen"
            )
        return int(text)
    inside = [i for i, (name, _) in enumerate(parts) if f"{name}.".startswith(f"{text}.")]
    if not inside:
        paths = {".".join(name.split(".")[:depth]) for name, _ in parts for depth in range(1, 9)}
        error = unknown_name("layer to freeze up to", text, paths)
        error.add_note(f"or give {', '.join(_WORDS)} or a number up to {len(places)}")
        raise error
    return sum(place <= inside[-1] for place in places)


def _layers(network: nn.Module) -> list[nn.Module]:
    return [module for _, module in _leaves(network) if _has_own(module)]


def _has_own(module: nn.Module) -> bool:
    """Whether a module, or anything inside it, has parameters or running statistics."""
    return any(True for _ in module.parameters()) or bool(statistics_of(module))


def _leaves(network: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """Return the modules that are one layer, in order, with their paths.

    A module without children is one layer. So is a module whose children have no parameters
    (timm's batch normalisation with an activation inside), multi-head attention, and a layer whose
    weights are computed from others (spectral normalisation).
    """
    found: list[tuple[str, nn.Module]] = []
    for name, child in network.named_children():
        # A cut-off network is inside a wrapper, whose attribute name is not part of the paths.
        path = prefix if name == "network" else f"{prefix}{name}."
        parts = list(child.children())
        is_whole = _has_own(child) and not any(_has_own(part) for part in parts)
        if (
            not parts
            or is_whole
            or isinstance(child, nn.MultiheadAttention)
            or is_parametrized(child)
        ):
            found.append((path.rstrip("."), child))
        else:
            found += _leaves(child, path)
    return found
