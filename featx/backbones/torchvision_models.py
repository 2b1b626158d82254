"""All classification networks of torchvision, with their own weights and transforms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from featx.backbones.base import LoadedNetwork
from featx.backbones.graph_taps import GraphTaps
from featx.backbones.taps import TokenFacts
from featx.errors import WeightsError, nearest
from featx.preprocess import Preprocessing
from featx.progress import Reporter
from featx.weights import (
    Weights,
    WeightsFile,
    download,
    load_into,
    parse_random,
    read_state_dict,
    state_sha256,
)

__all__ = ["available", "default_tag", "load"]

# These builders normalise with mean and std 0.5 inside the network when weights are given.
_TRANSFORMS_INPUT = ("googlenet", "inception_v3")
_AUXILIARY_HEADS = ("AuxLogits.", "aux1.")


@cache
def available() -> tuple[str, ...]:
    """Names of torchvision's classification networks."""
    return tuple(models.list_models(module=models))


def default_tag(name: str) -> str:
    """Weights used when none are asked for.

    Never torchvision's moving ``DEFAULT``: the first entry that torchvision lists,
    which is ``IMAGENET1K_V1`` wherever that exists.

    Parameters
    ----------
    name : str
        Name of a network.

    Returns
    -------
    str
        Name of its weights entry.
    """
    return next(iter(_entries(name)))


def _entries(name: str) -> dict[str, Any]:
    return {entry.name: entry for entry in models.get_model_weights(name)}


def load(
    name: str, weights: str | None, overrides: Mapping[str, Any], reporter: Reporter
) -> LoadedNetwork:
    """Build a network of torchvision and fill it.

    Parameters
    ----------
    name : str
        One of `available`.
    weights : str or None
        Name of an entry, path of a file, ``random`` or ``random:SEED``; None for `default_tag`.
    overrides : mapping
        Keyword arguments of `Preprocessing.override`.
    reporter : Reporter
        Shows downloads.

    Returns
    -------
    LoadedNetwork
        In evaluation mode, on the CPU.

    Raises
    ------
    WeightsError
        If the weights are missing, damaged or of another network.
    """
    entries = _entries(name)
    spec = weights or default_tag(name)
    seed = parse_random(spec)
    state: Mapping[str, torch.Tensor] | None = None
    file = ""
    if spec in entries:
        path = download(_file_of(entries[spec]), reporter=reporter)
        state, file, label = read_state_dict(path), str(path), spec
        preprocessing = _preprocessing(name, spec)
    else:
        preprocessing = _preprocessing(name, default_tag(name))
        label = f"random:{seed}"
        if seed is None:
            path = _local_file(name, spec, entries)
            state, file, label = read_state_dict(path), str(path), path.stem
    preprocessing = preprocessing.override(**overrides)
    network = _build(name, state, seed, preprocessing.crop_px, source=file)
    digest = state_sha256(network.state_dict() if state is None else state)
    return LoadedNetwork(
        name=name,
        network=network,
        weights=Weights(label, digest, file, is_default=label == default_tag(name)),
        preprocessing=preprocessing,
        tap=lambda input_px: GraphTaps(network, input_px, _aliases(network), _token_facts(network)),
    )


def _file_of(entry: Any) -> WeightsFile:
    prefix = re.search(r"-([0-9a-f]{8,})\.", entry.url)
    return WeightsFile(
        url=entry.url,
        size_bytes=int(float(entry.meta.get("_file_size", 0)) * 2**20),
        sha256_prefix=prefix.group(1) if prefix else "",
    )


def _preprocessing(name: str, tag: str) -> Preprocessing:
    return Preprocessing.from_torchvision(_entries(name)[tag].transforms(), f"{name} {tag}")


def _local_file(name: str, spec: str, entries: Mapping[str, Any]) -> Path:
    path = Path(spec).expanduser()
    if path.is_file() or path.suffix or "/" in spec:
        return path
    choices = [*entries, "random"]
    close = nearest(spec, choices)
    hint = f"did you mean {', '.join(close)}? " if close else ""
    raise WeightsError(
        f"unknown weights {spec!r} for {name}: {hint}"
        f"choose from {', '.join(choices)}, or give the path of a file"
    )


def _build(
    name: str,
    state: Mapping[str, torch.Tensor] | None,
    seed: int | None,
    input_px: int,
    source: str,
) -> nn.Module:
    options: dict[str, Any] = {}
    if name in _TRANSFORMS_INPUT:
        has_aux = state is None or any(key.startswith(_AUXILIARY_HEADS) for key in state)
        options = {
            "transform_input": True,
            "aux_logits": has_aux,
            "init_weights": state is None,
        }
    if name.startswith("vit_"):
        options["image_size"] = input_px
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0 if seed is None else seed)
        try:
            network: nn.Module = models.get_model(name, weights=None, **options)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise WeightsError(f"{name} cannot be built at {input_px} pixels: {error}") from error
    if state is not None:
        load_into(network, _converted(name, state, network), f"{source or 'the file'}")
    return network.eval()


# Torchvision's own conversion of the files of 2017, in which "norm.1" was "norm1" of today.
_OLD_DENSE_KEY = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$"
)


def _converted(
    name: str, state: Mapping[str, torch.Tensor], network: nn.Module
) -> Mapping[str, torch.Tensor]:
    if name.startswith("densenet"):
        return {_OLD_DENSE_KEY.sub(r"\1\2", key): value for key, value in state.items()}
    if name.startswith("vit_"):
        key = "encoder.pos_embedding"
        image_size, patch_size = int(network.image_size), int(network.patch_size)  # type: ignore[arg-type]
        if key in state and state[key].shape != network.state_dict()[key].shape:
            resized: Mapping[str, torch.Tensor] = interpolate_embeddings(
                image_size, patch_size, dict(state)
            )
            return resized
    return state


def _token_facts(network: nn.Module) -> TokenFacts | None:
    if isinstance(network, models.VisionTransformer):
        return TokenFacts(n_tokens=network.seq_length, n_prefix=1, has_class=True)
    return None


def _aliases(network: nn.Module) -> dict[str, str]:
    """Keras's names for the blocks of a VGG: ``block3`` and ``block3_pool``."""
    if not isinstance(network, models.VGG):
        return {}
    pools = [
        f"features.{i}"
        for i, module in enumerate(network.features)
        if isinstance(module, nn.MaxPool2d)
    ]
    return {
        f"block{i}{suffix}": path
        for i, path in enumerate(pools, start=1)
        for suffix in ("", "_pool")
    }
