"""Tap points of any network: the outputs of its modules, caught by hooks."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from featx.backbones.fake import N_FAKE, run_fake
from featx.backbones.taps import Layout, TapPoint, Taps, in_order
from featx.errors import BackboneError

__all__ = ["ModuleTaps"]

Shape = tuple[int, ...]


class ModuleTaps(Taps):
    """Tap points of any network: the outputs of its modules.

    A module that the forward pass calls several times has its name for the first call, ``NAME_1``
    for the second, and so on.
    """

    def __init__(
        self,
        network: nn.Module,
        input_px: int,
        default: str | None,
        layout: Layout | None = None,
        variant: str = "",
    ) -> None:
        self._network = network
        self.default = default
        watched = watch(network, lambda copy, images: copy(images), input_px, is_each_call=True)
        self.others = watched.others
        points, self._channels_last = describe(network, watched.shapes, layout or Layout())
        self.points = tuple(replace(point, variant=variant) for point in points)

    def cut_many(self, names: Sequence[str]) -> nn.Module:
        """Network that stops at the last of several modules, see `Taps.cut_many`."""
        return _StopAt(self._network, tuple(names), self._channels_last)


@dataclass
class Watched:
    """What modules gave in a fake pass."""

    shapes: dict[str, Shape] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    n_calls: Counter[str] = field(default_factory=Counter)

    def record(self, name: str, output: Any) -> None:
        """Take down the first output under a name."""
        is_tensor = isinstance(output, torch.Tensor)
        if is_tensor and output.dim() > 1 and output.shape[0] == N_FAKE:
            if name not in self.others:
                self.shapes.setdefault(name, tuple(output.shape[1:]))
        elif name not in self.shapes:
            what = (
                f"a tensor of shape {tuple(output.shape)}" if is_tensor else type(output).__name__
            )
            self.others.setdefault(name, what)


def in_this_thread(see: Callable[..., None]) -> Callable[..., None]:
    """Make a forward hook that ignores the passes of other threads through the same modules."""
    owner = threading.get_ident()

    def hook(*seen: Any) -> None:
        if threading.get_ident() == owner:
            see(*seen)

    return hook


def call_of(network: nn.Module, name: str) -> tuple[str, int]:
    """Path of the module that a name stands for, and which of its calls, from 0."""
    if name in dict(network.named_modules()):
        return name, 0
    path, _, call = name.rpartition("_")
    return path, int(call)


def watch(
    network: nn.Module,
    run: Callable[[nn.Module, torch.Tensor], Any],
    input_px: int,
    *,
    is_each_call: bool = False,
) -> Watched:
    """Learn what the modules of a network give for one image."""

    def watched_run(copy: nn.Module, images: torch.Tensor) -> Watched:
        watched = Watched()
        modules = {name: module for name, module in copy.named_modules() if name}

        def hook_of(name: str) -> Any:
            def see(module: nn.Module, args: Any, output: Any) -> None:
                n_before = watched.n_calls[name]
                watched.n_calls[name] += 1
                later = f"{name}_{n_before}"
                if n_before == 0:
                    watched.record(name, output)
                elif is_each_call and later not in modules:
                    watched.record(later, output)

            return in_this_thread(see)

        handles = [m.register_forward_hook(hook_of(name)) for name, m in modules.items()]
        try:
            run(copy, images)
        finally:
            for handle in handles:
                handle.remove()
        return watched

    return run_fake(watched_run, network, input_px)


def describe(
    network: nn.Module, shapes: Mapping[str, Shape], layout: Layout
) -> tuple[tuple[TapPoint, ...], frozenset[str]]:
    """Make tap points of shapes."""
    modules = dict(network.named_modules())
    makers = {name: modules.get(name, modules.get(name.rpartition("_")[0])) for name in shapes}
    points = [layout.point(name, raw, makers[name]) for name, raw in shapes.items()]
    last = [n for n, raw in shapes.items() if layout.puts_channels_last(raw, makers[n])]
    return tuple(points), frozenset(last)


class ReachedError(Exception):
    """Ends a forward pass that has given everything that is wanted."""


class Catcher:
    """Catches the outputs of some modules during a forward pass of this thread."""

    def __init__(
        self,
        network: nn.Module,
        calls: Mapping[str, tuple[str, int]],
        *,
        is_whole: bool = False,
    ) -> None:
        self.caught: dict[str, torch.Tensor] = {}
        self._missing = {call: name for name, call in calls.items()}
        self._n_calls: dict[str, int] = {}
        self._is_whole = is_whole
        paths = sorted({path for path, _ in calls.values()})
        self._handles = [
            network.get_submodule(path).register_forward_hook(in_this_thread(self._hook(path)))
            for path in paths
        ]

    @property
    def is_done(self) -> bool:
        """Whether all of them were caught."""
        return not self._missing

    def _hook(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            call = self._n_calls.get(path, 0)
            self._n_calls[path] = call + 1
            if (path, call) not in self._missing:
                return
            name = self._missing.pop((path, call))
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
            missing = sorted(self._missing.values())
            raise BackboneError(f"layers not reached in the forward pass: {missing}")
        return kind is not None and issubclass(kind, ReachedError)


class _StopAt(nn.Module):
    """Runs a network until some modules have run, and returns their outputs."""

    def __init__(
        self, network: nn.Module, names: tuple[str, ...], channels_last: Collection[str]
    ) -> None:
        super().__init__()
        self.network = network
        self.names = names
        self.calls = {name: call_of(network, name) for name in names}
        self.channels_last = channels_last

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with Catcher(self.network, self.calls) as catcher:
            self.network(images)
        return in_order(catcher.caught, self.names, self.channels_last)
