"""Networks made cheaper to run, with the same outputs.

A batch normalisation behind a convolution is a change of the convolution's weights. Which one
follows which is seen in a real pass, so that traced networks and any others are treated alike; that
nothing else reads what lies between is held by comparing the outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from featx.backbones.base import BackboneGroup
from featx.backbones.module_taps import in_this_thread

__all__ = ["fold_batch_norms", "with_low_weights"]

_TOLERANCE = 1e-4  # of the largest output; folding moves fp32 by some 1e-6
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_N_TRIED = 2


def fold_batch_norms(group: BackboneGroup) -> BackboneGroup:
    """Fold batch normalisations into the convolutions before them."""
    if not any(isinstance(module, _BATCH_NORMS) for module in group.network.modules()):
        return group
    device = next(group.network.parameters()).device
    side = group.preprocessing.crop_px
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        0, 256, (_N_TRIED, side, side, 3), generator=generator, dtype=torch.uint8
    )
    images = group.preprocessing.normalise(pixels.to(device))
    with torch.inference_mode():
        pairs, wanted = _watched(group, images)
    if not pairs:
        return group
    network = copy.deepcopy(group.network)
    for first, second in pairs:
        _fold(network, first, second)
    folded = replace(group, network=network)
    with torch.inference_mode():
        is_same = all(map(_is_close, folded.features_many(images), wanted))
    return folded if is_same else group


def _watched(
    group: BackboneGroup, images: torch.Tensor
) -> tuple[list[tuple[str, str]], tuple[torch.Tensor, ...]]:
    """Pairs of a convolution and a normalisation that reads its output, each run once."""
    names = {module: name for name, module in group.network.named_modules()}
    made: dict[int, tuple[torch.Tensor, str]] = {}
    runs: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []

    def watch(module: nn.Module, args: Sequence[Any], output: Any) -> None:
        name = names[module]
        runs[name] = runs.get(name, 0) + 1
        if isinstance(module, _CONVOLUTIONS):
            made[id(output)] = output, name  # held, so that no other tensor gets its id
        elif args and id(args[0]) in made:
            pairs.append((made[id(args[0])][1], name))

    kinds = (*_CONVOLUTIONS, *_BATCH_NORMS)
    watched = [m for m in names if isinstance(m, kinds) and _is_fixed(m)]
    handles = [module.register_forward_hook(in_this_thread(watch)) for module in watched]
    try:
        outputs = group.features_many(images)
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in pairs if all(runs[name] == 1 for name in pair)], outputs


def _is_fixed(module: nn.Module) -> bool:
    """Whether it does the same to every batch."""
    has_statistics = getattr(module, "track_running_stats", True)
    return has_statistics and not module.training


def _fold(network: nn.Module, first: str, second: str) -> None:
    convolution: Any = network.get_submodule(first)
    norm: Any = network.get_submodule(second)
    _put(network, first, fuse_conv_bn_eval(convolution, norm))
    # What timm's normalisations do besides: drop out and activate.
    rest = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    _put(network, second, nn.Sequential(*rest) if rest else nn.Identity())


def _put(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)


def _is_close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    largest = wanted.abs().amax()
    return bool((found - wanted).abs().amax() <= _TOLERANCE * largest)


def with_low_weights(group: BackboneGroup, dtype: torch.dtype) -> BackboneGroup:
    """Convert once what autocast would convert in every pass: bit for bit the same."""
    network = copy.deepcopy(group.network)
    for module in network.modules():
        if isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
            module.to(dtype)
    return replace(group, network=network)
