"""A network that was cut off, with a top of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import torch
from torch import nn

__all__ = ["FineTuned", "hold_still"]


def hold_still(modules: Iterable[nn.Module]) -> None:
    """Put modules into evaluation mode, each by itself: what is inside is named on its own."""
    for module in modules:
        module.training = False


class FineTuned(nn.Module):
    """A backbone with a custom top, to be trained together.

    Modules that were given to `hold` stay in evaluation mode when the rest is put into training
    mode: frozen batch normalisation keeps its running statistics, frozen dropout drops nothing.
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
        """Put it into training mode, but for what is held."""
        super().train(mode)
        hold_still(self._held)
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Give logits."""
        logits: torch.Tensor = self.top(self.body(images))
        return logits
