"""What a plan trains: the network with its preprocessing, the images, and the identity of both."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from featx.backbones import Backbone, check_backbone, open_backbones
from featx.errors import ProtocolError, UsageError
from featx.evaluate import Leaks, Pair, Settings
from featx.evaluate.leaks import find_copies
from featx.evaluate.pair import images_sha256
from featx.evaluate.question import BaseQuestion, Subset
from featx.evaluate.settings import NEAR_OFF
from featx.extract.settings import Sample, take_sample
from featx.fingerprint import fingerprint
from featx.networks import FineTuned, get_network, get_top, is_network
from featx.preprocess import Preprocessing
from featx.progress import Reporter
from featx.sources import LAYOUT_FIELDS, ClassChoice, LayoutChoice, Source, open_data
from featx.sources.splits import choose_splits
from featx.train.classifier import Callback, NetworkClassifier
from featx.train.images import Augment, Decoded, Decoder, PixelSet, SourceRows, is_readable
from featx.train.optimisation import get_loss, get_optimizer
from featx.train.plan import NORMALISATIONS, TrainPlan

__all__ = [
    "Recipe",
    "TrainQuestion",
    "check_frozen",
    "check_network",
    "make_classifier",
    "open_recipe",
    "open_sources",
]

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


_VERSION = 1
"""Part of every training's id; raise it when the same question gets another answer."""

_VERSION_HELD = 2
"""The version of trainings with frozen layers, or with ``plateau``.

In version 1, batch normalisation of frozen layers changed in some networks, and ``plateau`` waited
one epoch too long.
"""

# Fields of the plan that choose the images. The identity of a training has the images themselves.
_OF_THE_IMAGES = {
    *LAYOUT_FIELDS,
    *("data", "classes", "drop", "map", "seed", "cache_per_class", "test_per_class", "test_split"),
}

# Left out of the name of the "head": columns of the table have them, or the recipe.
_NOT_IN_HEAD = _OF_THE_IMAGES | {
    *("network", "holdout", "on_leak", "weights", "weights_key", "layer", "input_size", "bits"),
    *("precision", "channels_last"),
}


def open_sources(plan: TrainPlan, reporter: Reporter) -> dict[str, Source]:
    """Open the splits, with the chosen classes and the pool of images that is drawn first."""
    classes = ClassChoice.parse(plan.classes, plan.drop, plan.map)
    sample = Sample(plan.cache_per_class, plan.test_per_class, plan.seed, classes)
    splits = open_data(plan.data, layout=LayoutChoice.of(plan), reporter=reporter)
    try:
        names = dict.fromkeys(choose_splits(splits, plan.test_split))
    except ProtocolError as error:
        raise ProtocolError(f"{plan.data}: {error}") from error
    return {name: take_sample(splits[name], sample) for name in names}


class TrainQuestion(BaseQuestion):
    """The images of a training: the same subsets that heads draw, and test images."""

    def __init__(
        self,
        plan: TrainPlan,
        sources: Mapping[str, Source],
        recipe: Recipe,
        decoder: Decoder,
        precision: str,
    ) -> None:
        self.plan, self.recipe, self.decoder, self.precision = plan, recipe, decoder, precision
        self._sources = list(sources.values())
        self._digests = {
            id(source): source.image_digests(reporter=decoder.reporter) for source in self._sources
        }
        # A draw depends on which images can be read. Only for some sources is this known before.
        self._decoded: dict[int, Decoded] = {
            id(source): decoder.decode(source, self._digests[id(source)])
            for source in self._sources
            if not is_readable(source)
        }
        rows = [self._rows(source) for source in self._sources]
        settings = Settings(
            heads=(),
            per_class=plan.per_class,
            repeats=plan.repeats,
            seed=plan.seed,
            holdout=plan.holdout,
            on_leak=plan.on_leak,
            near=NEAR_OFF,
        )
        super().__init__(Pair(rows[0], rows[-1]), settings, decoder.reporter)
        self._decode_the_rest()

    def _find_leaks(self, drawable: NDArray[np.bool_]) -> Leaks:
        return find_copies(self.pair, drawable, self.test_rows)

    def _rows(self, source: Source) -> SourceRows:
        digests = self._digests[id(source)]
        identity = {
            "content": source.content_id(digests),
            "split": source.split,
            "preprocessing": self.recipe.preprocessing.identity(),
        }
        decoded = self._decoded.get(id(source))
        failed = sorted(decoded.failed) if decoded else []
        return SourceRows.of(source, digests, failed, fingerprint(identity), self.recipe.text)

    def _decode_the_rest(self) -> None:
        """Decode the drawn images and the test images of sources that can be read for sure."""
        drawn = np.unique(np.concatenate([subset.rows for subset in self.subsets]))
        wanted: dict[int, NDArray[np.int64]] = {id(self._sources[0]): drawn}
        last = id(self._sources[-1])
        wanted[last] = np.union1d(wanted.get(last, drawn[:0]), self.test_rows)
        for source in self._sources:
            if id(source) not in self._decoded:
                digests = self._digests[id(source)]
                decoded = self.decoder.decode(source, digests, wanted[id(source)])
                self._decoded[id(source)] = decoded
                if decoded.failed:
                    row, why = next(iter(decoded.failed.items()))
                    raise ProtocolError(f"{source.paths[row]} cannot be read: {why}")

    def recipe_of(self, plan: TrainPlan) -> Recipe:
        """Return the recipe with the settings of a plan: a search varies those of a network."""
        if self.recipe.backbone is not None:
            return self.recipe
        return replace(self.recipe, text=get_network(plan.network).text)

    def classifier(
        self, plan: TrainPlan, seed: int, device: torch.device, callbacks: Sequence[Callback]
    ) -> NetworkClassifier:
        """Make the classifier of one training with the settings of a plan, not yet fitted."""
        return make_classifier(
            plan,
            self.recipe_of(plan),
            len(self.class_names),
            seed=seed,
            device=str(device),
            precision=self.precision,
            callbacks=callbacks,
        )

    @property
    def class_names(self) -> list[str]:
        """One name per class."""
        return self.pair.train.class_names

    def training_images(self, subset: Subset) -> PixelSet:
        """Images of one draw."""
        source = self._sources[0]
        return self._decoded[id(source)].take(source.labels, subset.rows)

    @cached_property
    def test_images(self) -> PixelSet:
        """Test images."""
        source = self._sources[-1]
        return self._decoded[id(source)].take(source.labels, self.test_rows)

    @property
    def head(self) -> str:
        """What the column of heads shows: the settings that are not the defaults."""
        usual = {f.name: f.default for f in fields(TrainPlan)}
        asked = {k: v for k, v in self.plan.asked().items() if k not in _NOT_IN_HEAD}
        if self.recipe.top is not None:
            asked["top"] = self.recipe.top
        changed = {k: v for k, v in asked.items() if v != _plain(usual[k])}
        words = " ".join(f"{key}={_text(value)}" for key, value in changed.items())
        return f"train({words})" if words else "train"

    def fit_id(self, subset: Subset) -> str:
        """Return the id of the training: 16 hexadecimal digits, of images, network and settings."""
        # The number of a draw is not part of the question, as for fits of heads.
        draw = {
            "repeat": 0,
            "seed": subset.seed,
            "train_images": images_sha256(self.pair.train, subset.rows),
            "n_drawn_leaks": self._n_drawn_leaks(subset),
        }
        identity = self._identity(subset)
        identity["asked"]["seed"] = subset.seed
        return fingerprint(identity | draw)[:16]

    def question_id(self, head: str, subset: Subset) -> str:
        """Return the id of what all draws of one size have in common: 16 hexadecimal digits."""
        return fingerprint(self._identity(subset))[:16]

    def _identity(self, subset: Subset) -> dict[str, Any]:
        asked = {k: v for k, v in self.plan.asked().items() if k not in _OF_THE_IMAGES}
        return {
            "version": self._version,
            "kind": "train",
            "asked": {**asked, "precision": self.precision},
            "recipe": self.recipe.identity(),
            "class_names": self.class_names,
            "test_images": self._test_images,
            "per_class": str(subset.per_class),
        }

    @property
    def _version(self) -> int:
        is_held = self.plan.freeze != "none" or self.plan.scheduler == "plateau"
        return _VERSION_HELD if is_held else _VERSION

    def names(self) -> dict[str, Any]:
        """Return the columns of the table about network and images."""
        recipe, backbone = self.recipe, self.recipe.backbone
        return {
            "data": self.pair.data_name,
            "backbone": recipe.text,
            "weights": "" if backbone is None else backbone.weights.label,
            "layer": "input" if backbone is None else backbone.layer,
            "pool": "none",
            "input_size": recipe.input_px,
            "precision": self.precision,
            "n_features": recipe.n_inputs,
            "clf": self.head,
        }

    def asked(self, head: str, subset: Subset) -> dict[str, Any]:
        """Return the options that a training's JSON keeps; see `BaseQuestion.asked`."""
        known = super().asked(head, subset)
        settings = {**known["settings"], **self.plan.asked(), "heads": [self.head]}
        return known | {"settings": settings}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(str(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
