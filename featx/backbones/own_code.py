"""What is tried out before a network of somebody's own code is trusted.

A trace takes one way through the code, and need not be the one that the network takes: a
condition on the kind or the number of its inputs is decided without an image. And a network may
give other features for the same image: a dropout that is always on, a random augmentation, a
normalisation by the batch.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from featx.backbones.base import BackboneGroup
from featx.backbones.fake import buffers_kept, unchanged
from featx.backbones.module_taps import in_this_thread
from featx.errors import BackboneError

__all__ = ["check_own_code", "random_states", "steps_of"]

_N_PASSES = 3

_TOLERANCE = 1e-3
"""Of the largest feature. The kernels for one image and for two round otherwise, by some 1e-6 of
it; a batch normalisation without running averages, or a dropout, moves it by 1e-2 and more."""

_MEND_TRAINING = "its forward pass puts itself into training mode: take out train()"
_MEND_CHANCE = (
    "take out what is random in forward. A dropout must stop in evaluation mode: nn.Dropout, or "
    "F.dropout(x, training=self.training)"
)
_MEND_BATCH = (
    "normalise by running averages (BatchNorm with track_running_stats=True, in evaluation mode), "
    "not by the batch, and keep the first dimension (flatten(1), not squeeze())"
)


def steps_of(
    network: nn.Module,
    run: Callable[[torch.Tensor], Any],
    is_leaf: Callable[[nn.Module, str], bool],
    images: torch.Tensor,
    n_before: int = 0,
) -> list[tuple[str, Any]]:
    """Digest what torch's own modules and the network give, in order, after some passes before."""
    seen: list[tuple[str, Any]] = []

    def hook_of(path: str) -> Any:
        return in_this_thread(lambda module, args, output: seen.append((path, _digest(output))))

    leaves = [(path, m) for path, m in network.named_modules() if path and is_leaf(m, path)]
    with _trial(network):
        for _ in range(n_before):
            run(images.clone())
        torch.manual_seed(0)
        handles = [module.register_forward_hook(hook_of(path)) for path, module in leaves]
        try:
            return [("", _digest(run(images.clone()))), *seen]
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _trial(network: nn.Module) -> Iterator[None]:
    """Run a network and leave nothing behind in it, nor in torch's random numbers."""
    with (
        buffers_kept(network),
        unchanged(network),
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(),
    ):
        yield


def _digest(output: Any) -> list[int]:
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    flat = (tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in tensors)
    return [zlib.crc32(values.numpy().data) for values in flat]


def random_states() -> bytes:
    """States of the generators of random numbers that a forward pass may draw from."""
    state: Any = np.random.get_state(legacy=False)
    of_numpy: bytes = state["state"]["key"].tobytes() + repr(state["state"]["pos"]).encode()
    return torch.get_rng_state().numpy().tobytes() + of_numpy + repr(random.getstate()).encode()


def check_own_code(group: BackboneGroup) -> None:
    """Refuse a network whose features of an image depend on chance, or on other images.

    An image is computed alone, several times, and beside others, before and behind it.
    """
    side = group.preprocessing.crop_px
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, side, side, 3), generator=generator, dtype=torch.uint8)
    image, other = group.preprocessing.normalise(pixels)
    other = 3 * other + 1  # other averages, deviations and extremes than those of the first
    name = f"{group[0].name} at layer {', '.join(member.layer for member in group)}"

    def features(row: int, *images: torch.Tensor) -> list[torch.Tensor]:
        return [output[row : row + 1] for output in group.network(torch.stack(images))]

    with _trial(group.network):
        before = random_states()
        first, *again = (features(0, image) for _ in range(_N_PASSES))
        is_drawn = random_states() != before
        beside = [features(0, image, other), features(1, -other, image)]
        is_training = _training(group.network)
    mend = "" if is_training == _training(group.network) else _MEND_TRAINING
    if is_drawn or not all(_are_same(first, outputs) for outputs in again):
        what = "draws random numbers" if is_drawn else "gives other features each time"
        raise BackboneError(
            f"{name} {what} for the same image, so it cannot be cached: {mend or _MEND_CHANCE}"
        )
    if not all(_are_same(first, outputs) for outputs in beside):
        raise BackboneError(
            f"the features of an image by {name} depend on the other images of the batch, so they "
            f"cannot be cached: {mend or _MEND_BATCH}"
        )


def _are_same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(map(_is_same, one, other))


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    allowed = float(one.abs().nan_to_num(0, 0).amax()) * _TOLERANCE
    return one.shape == other.shape and torch.allclose(one, other, 0, allowed, equal_nan=True)


def _training(network: nn.Module) -> list[bool]:
    return [module.training for module in network.modules()]
