"""Whole networks, the transforms of their libraries, and the features tapped from them.

The network runs as it is: nothing of it is traced or cut.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models, transforms

from featx.arithmetic import true_float32
from featx.backbones import Backbone, default_weights, is_trained, load_network
from featx.backbones.factories import is_factory
from featx.backbones.module_taps import in_this_thread
from featx.backbones.timm_models import config, import_timm, resolve
from featx.errors import BackboneError
from featx.network_names import PACKAGED, TIMM
from featx.preprocess import Preprocessing
from featx.progress import SILENT

__all__ = ["Reference", "Tapped", "open_reference", "plain_transform", "pool_plainly", "tap"]

Transform = Callable[[Image.Image], torch.Tensor]
"""Makes a normalised float32 tensor of shape (3, size, size) of an RGB image."""


def _transform_of(
    backbone: Backbone, network: nn.Module, weights: str | None
) -> tuple[Transform, str]:
    """Build the transform that the library brings with the weights, and say where it is from."""
    name, side = backbone.name, backbone.input_size
    if is_factory(name) or is_trained(name):
        plain = plain_transform(backbone.preprocessing)
        return plain, f"{name} and torchvision's standard transform with its values"
    if name in PACKAGED or name.startswith(TIMM):
        data: Any = importlib.import_module("timm.data")
        options = data.resolve_model_data_config(network) | {"input_size": (3, side, side)}
        transform: Transform = data.create_transform(**options, is_training=False)
        parts = [f"tf_{name}"] if name in PACKAGED else resolve(name, weights)
        return transform, f"timm's {'.'.join(filter(None, parts))} and its transform"
    entries = {entry.name: entry for entry in models.get_model_weights(name)}
    entry = entries.get(weights or "", entries[default_weights(name)])
    usual = entry.transforms()
    usual_px = int(usual.crop_size[0])
    if side != usual_px:
        resize_px = side * usual.resize_size[0] // usual_px
        usual = entry.transforms(crop_size=side, resize_size=resize_px)
    return usual, f"torchvision's {name} and transform of {entry.name}"


def plain_transform(preprocessing: Preprocessing) -> Transform:
    """Build the standard transform from recorded values, where the weights bring none."""
    values = preprocessing.identity()
    steps = [
        *_resize_and_crop(values),
        transforms.ToTensor(),
        transforms.Normalize(values["mean"], values["std"]),
    ]
    return transforms.Compose(steps)  # type: ignore[no-any-return]


def _resize_and_crop(values: dict[str, Any]) -> list[Any]:
    mode, side = values.get("crop_mode", "center"), values["resize_px"]
    if mode == "border":
        import_timm()
        timm: Any = importlib.import_module("timm.data.transforms")
        fill = [round(255 * value) for value in values["mean"]]
        resize = timm.ResizeKeepRatio(
            (side, side), interpolation=values["interpolation"], longest=1.0
        )
        return [resize, timm.CenterCropOrPad(values["crop_px"], fill=fill)]
    return [
        transforms.Resize(
            side if mode == "center" else [side, side],
            transforms.InterpolationMode(values["interpolation"]),
        ),
        transforms.CenterCrop(values["crop_px"]),
    ]


@dataclass
class Tapped:
    """What one forward pass of a whole network gave."""

    features: torch.Tensor
    output: object


def tap(network: nn.Module, layer: str, images: torch.Tensor) -> Tapped:
    """Run a whole network and catch the output of one layer."""
    if layer in _BY_TIMM and hasattr(network, "forward_head"):
        return Tapped(_BY_TIMM[layer](network, images), network(images))
    is_token = layer == "class_token"
    path, call = _module_of(network, "encoder" if is_token else layer)
    if not path:
        return _tap_function(network, layer, images)
    outputs: list[object] = []

    def keep(module: nn.Module, args: object, output: object) -> None:
        # A copy: a later step may work in place on what the module returned.
        outputs.append(output.clone() if isinstance(output, torch.Tensor) else output)

    with network.get_submodule(path).register_forward_hook(in_this_thread(keep)):
        output = network(images)
    features = outputs[call] if call < len(outputs) else None
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

    def leave(self, module: nn.Module, args: object, output: object) -> None:
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
    with ExitStack() as stack:
        for module in network.modules():
            enter, leave = in_this_thread(functions.enter), in_this_thread(functions.leave)
            stack.enter_context(module.register_forward_pre_hook(enter))
            stack.enter_context(module.register_forward_hook(leave))
        stack.enter_context(functions)
        output = network(images)
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


@dataclass(frozen=True)
class Reference:
    """A whole network with the transform of its weights."""

    network: nn.Module
    transform: Transform
    point: Backbone
    origin: str
    has_head: bool = True

    @torch.inference_mode()
    def run(self, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Transform one image and put it through the whole network."""
        inputs = self.transform(image)
        point = self.point
        with true_float32():
            tapped = tap(self.network, point.layer, inputs[None])
        features = pool_plainly(
            tapped.features,
            point.pool,
            n_prefix_tokens=point.n_prefix_tokens,
            is_channels_last=_is_channels_last(tapped.features, point.map_shape),
        )
        return inputs, features, _logits(tapped.output) if self.has_head else None


def _is_channels_last(features: torch.Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a map comes as (1, height, width, channels) and featx says channels first."""
    return features.dim() == 4 and tuple(features.shape[1:]) == (*shape[1:], shape[0]) != shape


def _logits(output: object) -> torch.Tensor | None:
    if not isinstance(output, torch.Tensor) or output.dim() != 2:
        return None
    return output[0] if bool(output.isfinite().all()) else None


def open_reference(
    backbone: Backbone,
    *,
    weights: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    weights_key: str | None = None,
    allow_code: Collection[str] = (),
) -> Reference:
    """Load the whole network of a backbone again, with the transform of its weights."""
    changes, name = dict(overrides or {}), backbone.name
    # Whoever holds the backbone has named its code: it has run already.
    allowed = (name, *allow_code)
    loaded = load_network(name, weights, changes, SILENT, allowed, weights_key)
    transform, origin = _transform_of(backbone, loaded.network, weights)
    changed = sorted(set(changes) - {"input_size"})
    if changed:
        transform = plain_transform(backbone.preprocessing)
        origin += f", transform changed by {', '.join(changed)}"
    has_head = not loaded.unfilled and _has_usual_classes(loaded.network, name, weights)
    return Reference(loaded.network.eval(), transform, backbone, origin, has_head)


def _has_usual_classes(network: Any, name: str, weights: str | None) -> bool:
    """Whether the classifier is that of the library: for a file, timm builds one that fits it."""
    if not name.startswith(TIMM):
        return True
    return bool(network.num_classes == config(*resolve(name, weights)).get("num_classes"))
