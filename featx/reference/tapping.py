"""Features from a whole network, which runs as it is: nothing of it is traced."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from featx.backbones.module_taps import in_this_thread
from featx.errors import BackboneError

__all__ = ["Tapped", "pool_plainly", "tap"]


_Seer = TypeVar("_Seer", bound=Callable[..., None])


@dataclass
class Tapped:
    """What one forward pass of a whole network gave."""

    features: torch.Tensor
    output: object


@dataclass
class _Recorder:
    """Keeps copies: a later step may work in place on what the module returned."""

    outputs: list[object] = field(default_factory=list)

    def __call__(self, module: nn.Module, args: object, output: object) -> None:
        self.outputs.append(output.clone() if isinstance(output, torch.Tensor) else output)


def tap(network: nn.Module, layer: str, images: torch.Tensor) -> Tapped:
    """Run a whole network and catch the output of one layer."""
    if layer in _BY_TIMM and hasattr(network, "forward_head"):
        return Tapped(_BY_TIMM[layer](network, images), network(images))
    is_token = layer == "class_token"
    path, call = _module_of(network, "encoder" if is_token else layer)
    if not path:
        return _tap_function(network, layer, images)
    with _hooked([network.get_submodule(path)], _Recorder()) as recorder:
        output = network(images)
    features = recorder.outputs[call] if call < len(recorder.outputs) else None
    if not isinstance(features, torch.Tensor):
        raise BackboneError(f"the module {path} gives no tensor in the forward pass")
    return Tapped(features[:, 0] if is_token else features, output)


_BY_TIMM: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "forward_features": lambda network, images: network.forward_features(images),
    "class_token": lambda network, images: network.forward_features(images)[:, 0],
    "pre_logits": lambda network, images: network.forward_head(
        network.forward_features(images), pre_logits=True
    ),
}


@contextmanager
def _hooked(modules: Iterable[nn.Module], see: _Seer) -> Iterator[_Seer]:
    handles = [module.register_forward_hook(in_this_thread(see)) for module in modules]
    try:
        yield see
    finally:
        for handle in handles:
            handle.remove()


class _Functions(TorchFunctionMode):
    """Keeps what one function gives that the forward pass of one module calls by itself.

    A function is named as torch.fx names its step: `torch.flatten` and ``x.flatten`` are both
    ``flatten``, ``x + y`` and ``x += y`` are ``add``.
    """

    def __init__(self, inside: nn.Module, name: str) -> None:
        super().__init__()
        self.outputs: list[torch.Tensor] = []
        self._inside, self._name = inside, name
        self._running: list[nn.Module] = []

    def enter(self, module: nn.Module, args: object) -> None:
        self._running.append(module)

    def __call__(self, module: nn.Module, args: object, output: object) -> None:
        self._running.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").strip("_")
        is_here = bool(self._running) and self._running[-1] is self._inside
        if is_here and name in (self._name, f"i{self._name}") and isinstance(output, torch.Tensor):
            self.outputs.append(output.clone())
        return output


def _tap_function(network: nn.Module, layer: str, images: torch.Tensor) -> Tapped:
    path, _, step = layer.rpartition(".")
    found = re.fullmatch(r"(.+?)(?:_(\d+))?", step)
    paths = dict(network.named_modules())
    if path not in paths or found is None:
        raise BackboneError(f"the network has no layer {layer}")
    functions = _Functions(paths[path], found.group(1))
    modules = list(network.modules())
    handles = [m.register_forward_pre_hook(in_this_thread(functions.enter)) for m in modules]
    try:
        with _hooked(modules, functions), functions:
            output = network(images)
    finally:
        for handle in handles:
            handle.remove()
    call = int(found.group(2) or 0)
    if call >= len(functions.outputs):
        raise BackboneError(f"the forward pass of {path or 'the network'} calls no {step}")
    return Tapped(functions.outputs[call], output)


def _module_of(network: nn.Module, layer: str) -> tuple[str, int]:
    """Path of the module, and which of its calls; an empty path where it is no module."""
    paths = dict(network.named_modules())
    path, call = layer, 0
    repeated = re.fullmatch(r"(.+)_(\d+)", layer)
    if layer not in paths and repeated and repeated.group(1) in paths:
        path, call = repeated.group(1), int(repeated.group(2))
    while isinstance(paths.get(path), nn.ModuleList):  # never called itself: its last one is
        path = f"{path}.{len(list(paths[path].children())) - 1}"
    return (path, call) if path in paths else ("", 0)


def pool_plainly(
    features: torch.Tensor, pool: str, *, n_prefix_tokens: int = 0, is_channels_last: bool = False
) -> torch.Tensor:
    """Pool and flatten, written anew."""
    values = features[0].movedim(-1, 0) if is_channels_last else features[0]
    if pool == "none":
        return values.flatten()
    places = values.flatten(1).T if values.dim() == 3 else values  # (places, channels)
    inner = places[n_prefix_tokens:] if values.dim() == 2 else places
    pooled = {"cls": places[0], "avg": inner.sum(0) / len(inner), "max": inner.max(0).values}
    return torch.cat([pooled[part] for part in pool.split("+")])
