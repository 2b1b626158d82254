"""PyTorch as it is: channels last, batch normalisations folded, autocast below float32.

A batch normalisation behind a convolution is a change of the convolution's weights. Which one
follows which is seen in a real pass, so that traced networks and any others are treated alike.
That nothing else reads what lies between is checked by comparing the outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from featx.arithmetic import true_float32
from featx.backbones.base import BackboneGroup
from featx.backbones.module_taps import in_this_thread
from featx.engines.runtimes.base import DTYPES, Resize, Result, Runtime, numbers
from featx.engines.runtimes.host import HostCopies
from featx.engines.runtimes.parts import ERRORS, InParts, free_cached, memory_named
from featx.memory import is_out_of_memory

__all__ = ["EagerRuntime", "fold_batch_norms", "with_low_weights"]

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


def _prepared(group: BackboneGroup, device: torch.device, precision: str) -> BackboneGroup:
    """Move a network to a device, and make it cheaper to run there."""
    with memory_named(group[0].name, device):
        group.network.to(device=device)
    with true_float32():
        cheaper = _if_it_fits(fold_batch_norms, group, device)
    if precision in DTYPES:
        convert = partial(with_low_weights, dtype=DTYPES[precision])
        cheaper = _if_it_fits(convert, cheaper, device)
    with memory_named(group[0].name, device):
        cheaper.network.to(memory_format=torch.channels_last)
    return cheaper


def _if_it_fits(
    change: Callable[[BackboneGroup], BackboneGroup], group: BackboneGroup, device: torch.device
) -> BackboneGroup:
    """Change a network that computes the same without, unless there is no memory for a copy."""
    try:
        return change(group)
    except ERRORS as error:
        if not is_out_of_memory(error):
            raise
    free_cached(device)
    return group


class EagerRuntime(Runtime):
    """Runs the modules one by one."""

    def __init__(
        self,
        group: BackboneGroup,
        device: torch.device,
        precision: str,
        dtype: torch.dtype,
        *,
        n_rows: int,
        tell: Callable[[str], object],
    ) -> None:
        self._group = _prepared(group, device, precision)
        self._device, self._precision, self._dtype = device, precision, dtype
        self._parts = InParts(group[0].name, device, n_rows, tell)
        self._copies = HostCopies(device)
        self.n_under_way = self._copies.n_under_way

    def start(self, pixels: torch.Tensor, resize: Resize | None = None) -> Result:
        """Begin with a batch, see `Runtime.start`; on a CPU it is computed at once."""
        return self._parts.run(partial(self._start, resize=resize), pixels)

    @torch.inference_mode()
    def _start(self, pixels: torch.Tensor, resize: Resize | None) -> Result:
        images = self._group.preprocessing.normalise(self._copies.bring(pixels, resize))
        with numbers(self._device, self._precision):
            features = self._group.features_many(images, self._dtype)
        return self._copies.fetch(features)

    def bare(self, pixels: torch.Tensor) -> Callable[[], object]:
        """Give the network alone on normalised images, see `Runtime.bare`."""
        how, mend = f" with {len(pixels)} images at once", "a smaller --batch-size"
        named = partial(memory_named, self._group[0].name, self._device, how, mend)
        with named():
            images = self._group.preprocessing.normalise(pixels.to(self._device))

        @torch.inference_mode()
        def run() -> None:
            with named(), numbers(self._device, self._precision):
                self._group.network(images)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)

        return run
