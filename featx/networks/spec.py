"""What every network of `featx.networks` is: settings, and a way to build it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import nn

from featx.configurable import Configurable, words_of
from featx.errors import UsageError
from featx.memory import available_bytes

__all__ = ["NetworkSpec", "build_seeded", "require_memory", "text_of"]


@dataclass(frozen=True)
class NetworkSpec(Configurable, ABC):
    """A network that can be built for any number of classes, and for an image size."""

    name: str
    origin: str
    usual_px: int = 32

    last_map: ClassVar[str | None] = None
    """Path of the part that is convolutional throughout, and so runs at other sizes than
    that of the training; None where the whole network does, or nothing does."""

    @property
    def text(self) -> str:
        """Name with the settings that are not the default ones, as `get_network` reads it."""
        return text_of(self)

    def build(self, n_classes: int, input_px: int, seed: int) -> nn.Module:
        """Build the network with random values."""
        if n_classes < 2:
            raise UsageError(f"{self.name} needs 2 classes or more, there is {n_classes}")
        self._check_size(input_px)
        return build_seeded(self.text, lambda: self._build(n_classes, input_px), seed)

    def _check_size(self, input_px: int) -> None:
        if input_px < self.least_px:
            raise UsageError(
                f"{self.text} halves its images too often for {input_px} pixels: give "
                f"{self.least_px} or more"
            )

    @property
    def least_px(self) -> int:
        """Side of the smallest images that it can be built for."""
        return 1

    @abstractmethod
    def _build(self, n_classes: int, input_px: int) -> nn.Module:
        """Build it from torch's generator as it is."""


def text_of(spec: Configurable) -> str:
    """Write something configurable as it is typed, without what is the default anyway."""
    usual = {f.name: f.default for f in fields(spec)}  # type: ignore[arg-type]
    changed = {key: value for key, value in spec.settings.items() if value != usual[key]}
    return f"{spec.name}({words_of(changed)})" if changed else spec.name


def build_seeded(what: str, build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a network, or a part of one, if memory holds it: its settings may be a stranger's."""
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
    """Refuse a network that memory does not hold, by one with the same shapes and no values."""
    n_bytes = sum(value.numel() * value.element_size() for value in outline.state_dict().values())
    if n_bytes > (free := available_bytes()):
        raise UsageError(
            f"{what} needs {n_bytes / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free: "
            "take a smaller network, or smaller images"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
