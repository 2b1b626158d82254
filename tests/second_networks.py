"""The network of a backbone built a second time, by its library alone: none of featx's loaders.

What `featx verify --backbone` opens, and with it all of featx's loaders, is compared with this.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from featx.backbones import Backbone, default_weights, factories, load_network
from featx.backbones.timm_models import packaged_file, resolve
from featx.backbones.trained import is_trained
from featx.errors import BackboneError
from featx.network_names import PACKAGED, TIMM, parse_random
from featx.progress import SILENT
from featx.reference.networks import Reference, Transform, plain_transform
from featx.weights import read_state_dict

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


def second_reference(
    backbone: Backbone,
    *,
    weights: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    weights_key: str | None = None,
    allow_code: Collection[str] = (),
) -> Reference:
    """Do what `featx.reference.open_reference` does, without featx's loaders where possible."""
    allowed = (backbone.name, *allow_code)
    built = build(backbone, weights, overrides or {}, weights_key, allowed)
    transform = built.transform
    if set(overrides or {}) - {"input_size"}:
        transform = plain_transform(backbone.preprocessing)
    return Reference(built.network.eval(), transform, backbone, built.origin, built.has_head)
