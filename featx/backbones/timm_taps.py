"""Tap points of a network that is built like timm's: ``forward_features``, then ``forward_head``.

Besides the outputs of all modules there are up to three points of timm's own:
``forward_features`` (the last feature map, channels first, or all tokens after the final norm),
``class_token`` (the first of those tokens) and ``pre_logits`` (what enters the classifier).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from featx.backbones.fake import N_FAKE
from featx.backbones.module_taps import Catcher, describe, watch
from featx.backbones.taps import CLASS_TOKEN, Layout, Taps, in_order

__all__ = ["TimmTaps", "is_like_timm"]

FEATURES = "forward_features"
PRE_LOGITS = "pre_logits"


def is_like_timm(network: nn.Module) -> bool:
    """Whether a network has the two halves that timm gives all of its networks."""
    return all(callable(getattr(network, half, None)) for half in (FEATURES, "forward_head"))


class TimmTaps(Taps):
    """Tap points of a network of timm.

    The default is the last feature map; for a network whose classifier reads the class
    token, that token after the final norm; for any other network of tokens, the vector that
    enters the classifier.
    """

    def __init__(self, network: nn.Module, input_px: int) -> None:
        self._network = network
        own = _Own()
        watched = watch(network, own.run, input_px)
        self.others = watched.others | own.others
        layout = _layout(network, own)
        points, last = describe(network, watched.shapes | own.shapes, layout)
        # timm's own points come first: they are what is wanted.
        self.points = tuple(sorted(points, key=lambda point: point.name not in own.shapes))
        self._channels_last = last
        self.default = _default(network, own, layout)

    def cut_many(self, names: Sequence[str]) -> nn.Module:
        """Network that computes several points in one pass, see `Taps.cut_many`."""
        return _Halves(self._network, tuple(names), self._channels_last)


@dataclass
class _Own:
    """Shapes of timm's own points, learned in a fake pass."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)

    def run(self, network: Any, images: torch.Tensor) -> None:
        self.shapes, self.others = {}, {}
        output = network.forward_features(images)
        if isinstance(output, torch.Tensor):
            self.shapes[FEATURES] = tuple(output.shape[1:])
        else:
            self.others[FEATURES] = type(output).__name__
        network.forward_head(output)
        try:
            vector = network.forward_head(output, pre_logits=True)
        except TypeError:  # some networks have no such option
            return
        if isinstance(vector, torch.Tensor) and vector.shape[0] == N_FAKE:
            self.shapes[PRE_LOGITS] = tuple(vector.shape[1:])


def _layout(network: Any, own: _Own) -> Layout:
    """Read off the tokens; names the class token as a point where there is one."""
    shape = own.shapes.get(FEATURES, ())
    is_last = str(getattr(network, "output_fmt", "")).upper().endswith("NHWC")
    if len(shape) != 2:
        return Layout(is_channels_last=is_last)
    has_class = getattr(network, "cls_token", None) is not None
    n_prefix = int(getattr(network, "num_prefix_tokens", 1 if has_class else 0))
    if has_class and n_prefix:
        own.shapes[CLASS_TOKEN] = shape[1:]
    return Layout(shape[0], n_prefix, has_class and n_prefix > 0, is_last)


def _default(network: Any, own: _Own, layout: Layout) -> str | None:
    shape = own.shapes.get(FEATURES)
    if shape is not None and len(shape) != 2:
        return FEATURES
    if layout.has_class and getattr(network, "global_pool", "token") in ("token", ""):
        return CLASS_TOKEN
    return PRE_LOGITS if PRE_LOGITS in own.shapes else None


class _Halves(nn.Module):
    """Runs a network of timm half by half, as far as is needed."""

    def __init__(
        self, network: nn.Module, names: tuple[str, ...], channels_last: frozenset[str]
    ) -> None:
        super().__init__()
        self.network = network
        self.names = names
        self.channels_last = channels_last

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        own = {FEATURES, CLASS_TOKEN, PRE_LOGITS} & set(self.names)
        caught: dict[str, torch.Tensor] = {}
        calls = {name: (name, 0) for name in self.names if name not in own}
        with Catcher(self.network, calls, is_whole=bool(own)) as catcher:
            self._run(images, own, caught, catcher)
        return in_order(catcher.caught | caught, self.names, self.channels_last)

    def _run(
        self,
        images: torch.Tensor,
        own: set[str],
        caught: dict[str, torch.Tensor],
        catcher: Catcher,
    ) -> None:
        network: Any = self.network
        output = network.forward_features(images)
        if own & {FEATURES, CLASS_TOKEN}:
            # A copy, for the head may write into it.
            caught[FEATURES] = output if own == {FEATURES} and catcher.is_done else output.clone()
            caught[CLASS_TOKEN] = caught[FEATURES][:, 0]
        if PRE_LOGITS in own:
            caught[PRE_LOGITS] = network.forward_head(output, pre_logits=True)
        if not catcher.is_done:
            network.forward_head(output)
