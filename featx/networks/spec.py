"""What networks and tops have in common, the parts that they are built of, and the tops."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, TypeVar

import torch
from torch import nn

from featx.configurable import Configurable, parse, setting, split_settings, words_of
from featx.dense import DenseLayers
from featx.errors import UsageError, unknown_name
from featx.memory import available_bytes

__all__ = [
    "AveragePool",
    "Buildable",
    "NetworkSpec",
    "Top",
    "available_tops",
    "batch_norm",
    "build_seeded",
    "conv",
    "find",
    "get_top",
    "named",
    "require_memory",
    "start_as_keras",
]

_KERAS_EPS = 1e-3  # added to the variance in batch normalisation; torch adds 1e-5


@dataclass(frozen=True)
class Buildable(Configurable):
    """Something with a name and settings that becomes a `torch.nn.Module`."""

    name: str

    @property
    def text(self) -> str:
        """Name with the settings that are not the defaults, as `find` reads it."""
        defaults = {f.name: f.default for f in fields(self)}
        changed = {key: value for key, value in self.settings.items() if value != defaults[key]}
        return f"{self.name}({words_of(changed)})" if changed else self.name


Found = TypeVar("Found", bound=Buildable)


def find(noun: str, text: str, known: Mapping[str, Found], *, see: str = "") -> Found:
    """Find something by its name, and give it the settings ``name(key=value key=value)``."""
    name, words = split_settings(text)
    if name not in known:
        raise unknown_name(noun, name, known, see=see)
    return known[name].with_settings(**parse(known[name], words))


@dataclass(frozen=True)
class NetworkSpec(Buildable, ABC):
    """A network that can be built for any number of classes, and for an image size."""

    origin: str
    usual_px: int = 32

    last_map: ClassVar[str | None] = None
    """Path of the convolutional part, which also runs at sizes other than that of the training;
    None where the whole network runs at other sizes, or no part of it."""

    def build(self, n_classes: int, input_px: int, seed: int) -> nn.Module:
        """Build the network with random weights."""
        if n_classes < 2:
            raise UsageError(f"{self.name} needs 2 classes or more, there is {n_classes}")
        if input_px < self.least_px:
            raise UsageError(
                f"{self.text} halves its images too often for {input_px} pixels: give "
                f"{self.least_px} or more"
            )
        return build_seeded(self.text, lambda: self._build(n_classes, input_px), seed)

    @property
    def n_halvings(self) -> int:
        """How many times the network halves its maps."""
        return 0

    @property
    def least_px(self) -> int:
        """Side of the smallest images that it can be built for."""
        return int(2**self.n_halvings)

    @abstractmethod
    def _build(self, n_classes: int, input_px: int) -> nn.Module:
        """Build it with torch's current random generator."""


def build_seeded(what: str, build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a network, or a part of one, if memory holds it: its settings may come from a file."""
    try:
        with torch.device("meta"):
            outline = build()
    except (RuntimeError, OverflowError, TypeError) as error:
        raise UsageError(f"{what} is too large for any memory: {_first_line(error)}") from error
    require_memory(what, outline)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def require_memory(what: str, outline: nn.Module) -> None:
    """Refuse a network that memory does not hold; `outline` has its shapes without values."""
    n_bytes = sum(value.numel() * value.element_size() for value in outline.state_dict().values())
    if n_bytes > (free := available_bytes()):
        raise UsageError(
            f"{what} needs {n_bytes / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free: "
            "take a smaller network, or smaller images"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def conv(n_in: int, n_out: int) -> nn.Conv2d:
    """Make a 3 x 3 convolution that keeps the size of the map (Keras' ``padding="same"``)."""
    return nn.Conv2d(n_in, n_out, kernel_size=3, padding=1)


def batch_norm(n_channels: int, momentum: float, *, is_flat: bool = False) -> nn.Module:
    """Make a batch normalisation with the constant of Keras."""
    kind = nn.BatchNorm1d if is_flat else nn.BatchNorm2d
    return kind(n_channels, eps=_KERAS_EPS, momentum=momentum)


def named(parts: Iterable[tuple[str, nn.Module]]) -> nn.Sequential:
    """Make a sequence of parts that have names."""
    chain = nn.Sequential()
    for name, part in parts:
        chain.add_module(name, part)
    return chain


def start_as_keras(network: nn.Module) -> nn.Module:
    """Give weights the first values of Keras: Glorot's uniform distribution, and biases of 0.

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


Shape = tuple[int, ...]


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
class DenseTop(DenseLayers, Top):
    """Hidden dense layers on the flattened (``flatten``) or the averaged map (``gap``)."""

    name: str = "flatten"

    def _build(self, map_shape: Shape, n_classes: int) -> nn.Module:
        if self.name == "flatten":
            return nn.Sequential(nn.Flatten(), *self.stack(math.prod(map_shape), n_classes))
        return nn.Sequential(AveragePool(), *self.stack(_n_averaged(map_shape), n_classes))


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
