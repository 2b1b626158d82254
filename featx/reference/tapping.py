"""Features from a whole network, by hooks or by the library's own function."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from featx.errors import BackboneError

__all__ = ["Tapped", "pool_plainly", "tap"]


@dataclass
class Tapped:
    """What one forward pass of a whole network gave.

    Parameters
    ----------
    features : tensor of shape (1, ...)
        Output of the layer, before pooling.
    output : object
        What the network returned: logits of shape (1, n_classes) for a classifier.
    """

    features: torch.Tensor
    output: object


@dataclass
class _Recorder:
    """Keeps copies: a later step may work in place on what the module returned."""

    outputs: list[object] = field(default_factory=list)

    def __call__(self, module: nn.Module, args: object, output: object) -> None:
        self.outputs.append(output.clone() if isinstance(output, torch.Tensor) else output)


def tap(network: nn.Module, layer: str, images: torch.Tensor) -> Tapped:
    """Run a whole network and catch the output of one layer.

    Parameters
    ----------
    network : torch.nn.Module
        In evaluation mode.
    layer : str
        Path of a module; ``PATH_1`` is the second call of a module; any other name is a step
        between modules, which torchvision's `create_feature_extractor` gives. For networks of
        timm, ``forward_features``, ``class_token`` and ``pre_logits`` are what its own
        functions give; elsewhere ``class_token`` is the first token behind ``encoder``.
    images : tensor of shape (1, 3, height, width), dtype float32
        Normalised.

    Returns
    -------
    Tapped
        The caught features and the output of the network.

    Raises
    ------
    BackboneError
        If there is no such layer, or its output is no tensor.
    """
    if layer in _BY_TIMM and hasattr(network, "forward_head"):
        return Tapped(_BY_TIMM[layer](network, images), network(images))
    is_token = layer == "class_token"
    path, call = _module_of(network, "encoder" if is_token else layer)
    if not path:
        by_library = create_feature_extractor(network, return_nodes={layer: layer})
        return Tapped(by_library.eval()(images)[layer], network(images))
    with _recorded(network.get_submodule(path)) as recorder:
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
def _recorded(module: nn.Module) -> Iterator[_Recorder]:
    recorder = _Recorder()
    handle = module.register_forward_hook(recorder)
    try:
        yield recorder
    finally:
        handle.remove()


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
    """Pool and flatten, written anew.

    Parameters
    ----------
    features : tensor of shape (1, channels, height, width), (1, tokens, channels) or (1, channels)
        Output of a layer.
    pool : str
        ``none``, ``avg``, ``max``, ``cls`` or ``avg+cls``.
    n_prefix_tokens : int, default=0
        Class and register tokens, over which ``avg`` and ``max`` do not run.
    is_channels_last : bool, default=False
        Whether the map is (1, height, width, channels).

    Returns
    -------
    tensor of shape (n_features,)
        In the order channels, rows, columns.
    """
    values = features[0].movedim(-1, 0) if is_channels_last else features[0]
    if pool == "none":
        return values.flatten()
    places = values.flatten(1).T if values.dim() == 3 else values  # (places, channels)
    inner = places[n_prefix_tokens:] if values.dim() == 2 else places
    pooled = {"cls": places[0], "avg": inner.sum(0) / len(inner), "max": inner.max(0).values}
    return torch.cat([pooled[part] for part in pool.split("+")])
