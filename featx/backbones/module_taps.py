"""Tap points of any network: the outputs of its modules, caught by hooks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn

from featx.backbones.fake import N_FAKE, run_fake
from featx.backbones.taps import Taps, TokenFacts, channels_first, is_channels_last, make_point
from featx.errors import BackboneError

__all__ = ["ModuleTaps"]

Shape = tuple[int, ...]


class ModuleTaps(Taps):
    """Tap points of any network: the outputs of its modules.

    A module that the forward pass calls several times counts with its first call.

    Parameters
    ----------
    network : torch.nn.Module
        In evaluation mode.
    input_px : int
        Side of the square input.
    default : str or None
        Path of the module whose output is the default; None where there is none.
    tokens : TokenFacts, optional
        What is known of the tokens.
    """

    def __init__(
        self,
        network: nn.Module,
        input_px: int,
        default: str | None,
        tokens: TokenFacts | None = None,
    ) -> None:
        self._network = network
        self.default = default
        shapes = module_shapes(network, network, input_px)
        self.points = tuple(make_point(name, shape, tokens) for name, shape in shapes.items())
        self._channels_last = {name for name, shape in shapes.items() if is_channels_last(shape)}

    def cut(self, name: str) -> nn.Module:
        """Network that stops at the output of one module.

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

    def cut_many(self, names: Sequence[str]) -> nn.Module:
        """Network that stops at the last of several modules, see `Taps.cut_many`."""
        return _StopAt(self._network, tuple(names), self._channels_last)


def module_shapes(
    network: nn.Module, run: Callable[[torch.Tensor], Any], input_px: int
) -> dict[str, Shape]:
    """Learn what the modules give for one image, in the order in which they finish.

    Parameters
    ----------
    network : torch.nn.Module
        Whose modules are watched.
    run : callable
        The pass over a batch of images.
    input_px : int
        Side of the square input.

    Returns
    -------
    dict of str to tuple of int
        Shapes as the network computes them. What is no tensor with one entry an image is left out.
    """
    shapes: dict[str, Shape] = {}

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            is_per_image = isinstance(output, torch.Tensor) and output.shape[:1] == (N_FAKE,)
            if is_per_image and output.dim() > 1:
                shapes.setdefault(name, tuple(output.shape[1:]))

        return hook

    handles = [
        module.register_forward_hook(record(name))
        for name, module in network.named_modules()
        if name
    ]
    try:
        run_fake(run, input_px)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


class ReachedError(Exception):
    """Ends a forward pass that has given everything that is wanted."""


class Catcher:
    """Catches the outputs of some modules during a forward pass.

    Parameters
    ----------
    network : torch.nn.Module
        Whose modules are watched.
    names : collection of str
        Paths of modules.
    is_whole : bool, default=False
        Whether the pass shall go on when all of them were caught.
    """

    def __init__(
        self, network: nn.Module, names: Collection[str], *, is_whole: bool = False
    ) -> None:
        self.caught: dict[str, torch.Tensor] = {}
        self._missing = set(names)
        self._is_whole = is_whole
        self._handles = [
            network.get_submodule(name).register_forward_hook(self._hook(name))
            for name in sorted(self._missing)
        ]

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            if name not in self._missing:
                return
            self._missing.discard(name)
            is_last = not (self._missing or self._is_whole)
            # A copy, for what comes later may write into this one (a ReLU in place).
            self.caught[name] = output if is_last else output.clone()
            if is_last:
                raise ReachedError

        return hook

    def __enter__(self) -> Catcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, traceback: Any) -> bool:
        for handle in self._handles:
            handle.remove()
        if kind is None and self._missing:
            raise BackboneError(f"layers not reached in the forward pass: {sorted(self._missing)}")
        return kind is not None and issubclass(kind, ReachedError)


class _StopAt(nn.Module):
    """Runs a network until some modules have run, and returns their outputs."""

    def __init__(
        self, network: nn.Module, names: tuple[str, ...], channels_last: Collection[str]
    ) -> None:
        super().__init__()
        self.network = network
        self.names = names
        self.channels_last = channels_last

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with Catcher(self.network, self.names) as catcher:
            self.network(images)
        return tuple(
            channels_first(catcher.caught[name])
            if name in self.channels_last
            else catcher.caught[name]
            for name in self.names
        )


class _One(nn.Module):
    """The only output of a network that gives a tuple of one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.network(images)[0]
        return output
