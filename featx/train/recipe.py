"""From a plan to a network, to its preprocessing, and to the classifier that trains it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from featx.backbones import Backbone, check_backbone, open_backbones
from featx.errors import UsageError
from featx.networks import FineTuned, get_network, get_top, is_network
from featx.preprocess import Preprocessing
from featx.progress import Reporter
from featx.sources import Source
from featx.train.augment import Augment
from featx.train.classifier import Callback, NetworkClassifier
from featx.train.optimisation import get_loss, get_optimizer
from featx.train.plan import NORMALISATIONS, TrainPlan

__all__ = ["Recipe", "check_frozen", "check_network", "make_classifier", "open_recipe"]

_LINEAR = "linear"
_HALF_RANGE = "half-range"

# Fields of a plan that are parameters of `NetworkClassifier` by the same name.
_SHARED = (
    *("lr", "backbone_lr", "step_size", "gamma", "patience", "validation", "batch_size"),
    *("freeze", "unfreeze_after", "channels_last"),
)


@dataclass(frozen=True)
class Recipe:
    """What decides the layers and the first weights of a network."""

    text: str  # its name, with the settings that are not the defaults
    preprocessing: Preprocessing
    backbone: Backbone | None = None  # None for a network from scratch
    top: str | None = None

    @property
    def input_px(self) -> int:
        """Side of the input in pixels."""
        return self.preprocessing.crop_px

    @property
    def n_inputs(self) -> int:
        """Length of what the trained part gets: features of the backbone, or pixels."""
        return 3 * self.input_px**2 if self.backbone is None else self.backbone.n_features

    def identity(self) -> dict[str, Any]:
        """Return everything that changes the untrained network, except its seed."""
        return {
            "network": self.text,
            "preprocessing": self.preprocessing.identity(),
            "backbone": None if self.backbone is None else self.backbone.identity(),
            "top": self.top,
        }

    def with_network(self, text: str) -> Recipe:
        """Return the recipe of a network from scratch with other settings."""
        return replace(self, text=get_network(text).text) if self.backbone is None else self

    def build(self, n_classes: int, seed: int) -> nn.Module:
        """Make the network; layers without weights get random values."""
        if self.backbone is None or self.top is None:
            return get_network(self.text).build(n_classes, self.input_px, seed)
        top = get_top(self.top).build(self.backbone.map_shape, n_classes, seed)
        return FineTuned(copy.deepcopy(self.backbone.network), top)


def check_network(plan: TrainPlan) -> None:
    """Refuse unknown names and options that do not fit, without loading anything."""
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
    plan.check_words()
    check_backbone(plan.network)


def open_recipe(plan: TrainPlan, sources: Sequence[Source], reporter: Reporter) -> Recipe:
    """Load the backbone, if there is one, and find the size of the network's input."""
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


def make_classifier(
    plan: TrainPlan,
    recipe: Recipe,
    n_classes: int,
    *,
    seed: int,
    device: str = "cpu",
    precision: str = "fp32",
    callbacks: Sequence[Callback] = (),
) -> NetworkClassifier:
    """Make the classifier of a training, not yet fitted."""
    return NetworkClassifier(
        partial(recipe.build, n_classes, seed),
        **{name: getattr(plan, name) for name in _SHARED},
        criterion=get_loss(plan.loss),
        optimizer=get_optimizer(plan.optimizer, plan.momentum, plan.weight_decay),
        max_epochs=plan.epochs,
        schedule=plan.scheduler,
        mean=recipe.preprocessing.mean,
        std=recipe.preprocessing.std,
        augment=Augment.parse(plan.augment),
        precision=precision,
        device=device,
        seed=seed,
        callbacks=callbacks,
    )


def check_frozen(plan: TrainPlan, recipe: Recipe) -> None:
    """Refuse settings of frozen layers that do not fit the network, before images are decoded."""
    make_classifier(plan, recipe, 2, seed=plan.seed).initialize()
