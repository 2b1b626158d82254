"""Whole networks and transforms as their libraries make them, and the features tapped from them.

The network runs as it is: nothing of it is traced or cut.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from featx.arithmetic import true_float32
from featx.backbones import Backbone, default_weights, factories, load_network
from featx.backbones.module_taps import in_this_thread
from featx.backbones.timm_models import packaged_file, resolve
from featx.backbones.trained import is_trained
from featx.errors import BackboneError
from featx.network_names import PACKAGED, TIMM, parse_random
from featx.progress import SILENT
from featx.reference.transforms import Transform, plain_transform
from featx.weights import read_state_dict

__all__ = ["Built", "Reference", "Tapped", "build", "open_reference", "pool_plainly", "tap"]

_HEADS = ("classifier.", "fc.", "head.", "heads.", "AuxLogits.", "aux1.", "aux2.")


@dataclass(frozen=True)
class Built:
    """A network of a library."""

    network: nn.Module
    transform: Transform
    origin: str
    has_head: bool = True


def build(
    backbone: Backbone,
    weights: str | None,
    overrides: Mapping[str, Any],
    weights_key: str | None,
    allow_code: Collection[str],
) -> Built:
    """Build the network that a backbone was cut from, without featx's loaders.

    Only for a function of the user's, and the file of a trained network, there is no other way
    than to call it, or open it, again.
    """
    if backbone.name in PACKAGED:
        return _embedded(backbone, weights)
    if backbone.name.startswith(TIMM):
        return _timm(backbone, weights, weights_key)
    if factories.is_factory(backbone.name) or is_trained(backbone.name):
        loaded = load_network(backbone.name, weights, overrides, SILENT, allow_code, weights_key)
        transform = plain_transform(backbone.preprocessing)
        origin = f"{backbone.name} and torchvision's standard transform with its values"
        return Built(loaded.network, transform, origin, not loaded.unfilled)
    return _torchvision(backbone, weights, overrides, weights_key)


def _torchvision(
    backbone: Backbone, weights: str | None, overrides: Mapping[str, Any], key: str | None
) -> Built:
    name, side = backbone.name, backbone.input_size
    entries = {entry.name: entry for entry in models.get_model_weights(name)}
    tag = weights or default_weights(name)
    entry = entries.get(tag, entries[default_weights(name)])
    transform = entry.transforms()
    usual_px = int(transform.crop_size[0])
    if side != usual_px:
        resize_px = side * transform.resize_size[0] // usual_px
        transform = entry.transforms(crop_size=side, resize_size=resize_px)
    has_head = True
    if tag in entries and (side == usual_px or not name.startswith(("vit_", "maxvit_"))):
        network = models.get_model(name, weights=entries[tag])
    else:
        state = _read(backbone, tag, entries, key)
        is_plain = _is_fed_plainly(backbone, entries, overrides)
        network, has_head = _filled(name, parse_random(tag), state, side, is_plain)
    origin = f"torchvision's {name} and transform of {entry.name}"
    return Built(network, transform, origin, has_head)


def _read(
    backbone: Backbone, weights: str, entries: Mapping[str, Any], key: str | None
) -> Mapping[str, torch.Tensor] | None:
    if weights in entries:
        state: Mapping[str, torch.Tensor] = entries[weights].get_state_dict(check_hash=True)
        return state
    is_random = parse_random(weights) is not None
    return None if is_random else read_state_dict(Path(backbone.weights.file), key=key)


def _is_fed_plainly(backbone: Backbone, entries: Mapping[str, Any], overrides: Any) -> bool:
    """Whether a file of the user's says by mean and std what its first convolution takes."""
    digest, is_file = backbone.weights.file_sha256, backbone.weights.label not in entries
    is_own = any(f"-{digest[:8]}." in entry.url for entry in entries.values())
    return bool(digest) and is_file and not is_own and bool({"mean", "std"} & set(overrides))


def _filled(
    name: str, seed: int | None, state: Mapping[str, torch.Tensor] | None, side: int, is_plain: bool
) -> tuple[nn.Module, bool]:
    """Fill torchvision's network from a file, from an entry for another size, or at random."""
    options: dict[str, Any] = {"image_size": side} if name.startswith("vit_") else {}
    if name.startswith("maxvit_"):
        options = {"input_size": (side, side)}
    if name in ("inception_v3", "googlenet"):
        # What torchvision sets by itself where weights are given.
        has_aux = state is None or any(key.lower().startswith("aux") for key in state)
        options = {"transform_input": not is_plain, "aux_logits": has_aux}
        options["init_weights"] = state is None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        network: nn.Module = models.get_model(name, weights=None, **options)
    return network, state is None or _load(name, network, dict(state))


def _load(name: str, network: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    """Load a state dict; False where its classifier is another one and was left out."""
    if name.startswith("densenet"):  # torchvision renames the keys of 2017 in the same way
        state = {
            re.sub(r"(layer\d+\.(?:norm|relu|conv))\.(\d)\.", r"\1\2.", key): value
            for key, value in state.items()
        }
    if name.startswith("vit_"):
        size, patch = int(network.image_size), int(network.patch_size)  # type: ignore[arg-type]
        state = dict(interpolate_embeddings(size, patch, state))
    own = network.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    network.load_state_dict(fitting, strict=False)
    unfit = (own.keys() | state.keys()) - fitting.keys()
    unfit = {key for key in unfit if not key.endswith("num_batches_tracked")}
    wrong = sorted(key for key in unfit if not key.startswith(_HEADS))
    if wrong:
        raise BackboneError(f"the weights do not fit torchvision's {name}: {', '.join(wrong[:3])}")
    return not unfit


def _import_timm() -> Any:
    return importlib.import_module("timm")


def _timm_transform(network: nn.Module, backbone: Backbone) -> Transform:
    data: Any = importlib.import_module("timm.data")
    config = data.resolve_model_data_config(network)
    config["input_size"] = (3, backbone.input_size, backbone.input_size)
    transform: Transform = data.create_transform(**config, is_training=False)
    return transform


def _timm(backbone: Backbone, weights: str | None, key: str | None) -> Built:
    """Build the network by timm, which reads the file of weights in its own way."""
    seed = parse_random(weights or "")
    name = ".".join(filter(None, resolve(backbone.name, weights)))
    config = _import_timm().models.get_pretrained_cfg(name)
    options: dict[str, Any] = {}
    if config.fixed_input_size and config.input_size[-1] != backbone.input_size:
        options["img_size"] = backbone.input_size
    if seed is None:
        file = backbone.weights.file
        overlay: dict[str, Any] = {"file": file}
        if key is not None:
            overlay = {"state_dict": read_state_dict(Path(file), key=key)}
        options |= {"pretrained": True, "pretrained_cfg_overlay": overlay}
    has_head = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        try:
            network = _import_timm().create_model(name, **options)
        except RuntimeError:  # a classifier of other classes: timm leaves it out, if told so
            network, has_head = _import_timm().create_model(name, num_classes=0, **options), False
    transform = _timm_transform(network, backbone)
    return Built(network, transform, f"timm's {name} and its transform", has_head)


def _embedded(backbone: Backbone, weights: str | None) -> Built:
    """Build timm's network; the tensors of the other package stand in the same order."""
    name, seed = f"tf_{backbone.name}", parse_random(weights or "")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        network = _import_timm().create_model(name, pretrained=False)
    if seed is None:
        path = packaged_file(backbone.name)
        tensors = torch.load(path, map_location="cpu", weights_only=True).values()
        network.load_state_dict(dict(zip(network.state_dict(), tensors, strict=True)))
    transform = _timm_transform(network, backbone)
    return Built(network, transform, f"timm's {name} and its transform")


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
    """Build the reference of a backbone, without featx's own loaders where that is possible."""
    # Whoever holds the backbone has named its code: it has run already.
    allowed = (backbone.name, *allow_code)
    built = build(backbone, weights, overrides or {}, weights_key, allowed)
    transform, origin = built.transform, built.origin
    changed = sorted(set(overrides or {}) - {"input_size"})
    if changed:
        transform = plain_transform(backbone.preprocessing)
        origin += f", transform changed by {', '.join(changed)}"
    return Reference(built.network.eval(), transform, backbone, origin, built.has_head)
