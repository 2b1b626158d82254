"""From what was typed to a network that can be trained, and how its images are prepared."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from featx.backbones import Backbone, check_backbone, open_backbones
from featx.errors import UsageError, unknown_name
from featx.networks import FineTuned, available_networks, get_network, get_top, is_network
from featx.preprocess import Preprocessing
from featx.progress import Reporter
from featx.sources import Source
from featx.train.plan import NORMALISATIONS, TrainPlan

__all__ = ["Recipe", "build", "check_network", "open_recipe"]

_LINEAR = "linear"
_HALF_RANGE = "half-range"


@dataclass(frozen=True)
class Recipe:
    """What gives a network its layers and first weights."""

    text: str
    preprocessing: Preprocessing
    backbone: Backbone | None = None
    top: str | None = None

    @property
    def input_px(self) -> int:
        """Side of the input in pixels."""
        return self.preprocessing.crop_px

    @property
    def n_inputs(self) -> int:
        """Values that the untrained point of the network gives: features, or pixels."""
        return 3 * self.input_px**2 if self.backbone is None else self.backbone.n_features

    def identity(self) -> dict[str, Any]:
        """Give everything that changes the network before it is trained, but its seed."""
        return {
            "network": self.text,
            "preprocessing": self.preprocessing.identity(),
            "backbone": None if self.backbone is None else self.backbone.identity(),
            "top": self.top,
        }


def check_network(plan: TrainPlan) -> None:
    """Refuse names and options that do not fit, without loading anything."""
    if is_network(plan.network):
        get_network(plan.network)
        for name in ("top", "layer", "weights", "backbone_lr"):
            if getattr(plan, name) is not None:
                raise UsageError(
                    f"{plan.network} is trained from scratch and has layers of its own: leave "
                    f"--{name.replace('_', '-')} out, or give --network a backbone"
                )
        return
    get_top(plan.top or _LINEAR)
    try:
        check_backbone(plan.network)
    except UsageError as error:
        nearest = unknown_name("network", plan.network, available_networks())
        if "did you mean" in str(nearest):
            raise nearest from error
        error.add_note(f"networks from scratch are {', '.join(available_networks())}")
        raise


def open_recipe(plan: TrainPlan, sources: Sequence[Source], reporter: Reporter) -> Recipe:
    """Load what is to be trained, and find the size of its input."""
    check_network(plan)
    if is_network(plan.network):
        return _from_scratch(plan, sources)
    overrides: dict[str, Any] = {}
    if plan.input_size == "native":
        overrides = {"input_size": _native_px(sources), "crop_pct": 1.0}
    elif plan.input_size is not None:
        overrides = {"input_size": plan.input_size}
    if plan.normalise is not None:
        overrides["mean"], overrides["std"] = NORMALISATIONS[plan.normalise]
    if plan.bits is not None:
        overrides["bits"] = plan.bits
    (backbone,) = open_backbones(
        plan.network,
        weights=plan.weights,
        weights_key=plan.weights_key,
        layers=[plan.layer],
        overrides=overrides,
        allow_code=plan.allow_code,
        reporter=reporter,
    )
    top = get_top(plan.top or _LINEAR)
    return Recipe(backbone.name, backbone.preprocessing, backbone, top.text)


def _from_scratch(plan: TrainPlan, sources: Sequence[Source]) -> Recipe:
    size = plan.input_size if isinstance(plan.input_size, int) else _native_px(sources)
    name = plan.normalise or _HALF_RANGE
    mean, std = NORMALISATIONS[name]
    preprocessing = Preprocessing(
        resize_px=size,
        crop_px=size,
        interpolation="bilinear",
        mean=mean,
        std=std,
        origin=f"trained from scratch, {name}",
        bits=plan.bits,
    )
    return Recipe(get_network(plan.network).text, preprocessing)


def _native_px(sources: Sequence[Source]) -> int:
    from featx.sources.look import common_size

    return min(common_size(sources))


def build(recipe: Recipe, n_classes: int, seed: int, text: str | None = None) -> nn.Module:
    """Make the network, with random values where it has no weights."""
    if recipe.backbone is None or recipe.top is None:
        return get_network(text or recipe.text).build(n_classes, recipe.input_px, seed)
    top = get_top(recipe.top).build(recipe.backbone.map_shape, n_classes, seed)
    return FineTuned(copy.deepcopy(recipe.backbone.network), top)
