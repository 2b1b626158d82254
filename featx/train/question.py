"""The question of a training: its training and test images, and its identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.errors import ProtocolError
from featx.evaluate import Leaks, Pair, Settings
from featx.evaluate.leaks import find_copies
from featx.evaluate.pair import images_sha256
from featx.evaluate.question import BaseQuestion, Subset
from featx.evaluate.settings import NEAR_OFF
from featx.extract.settings import Sample, take_sample
from featx.fingerprint import fingerprint
from featx.progress import Reporter
from featx.sources import LAYOUT_FIELDS, ClassChoice, LayoutChoice, Source, open_data
from featx.sources.splits import choose_splits
from featx.train.images import Decoded, Decoder, PixelSet, SourceRows, is_readable
from featx.train.plan import TrainPlan
from featx.train.recipe import Recipe

__all__ = ["TrainQuestion", "open_sources"]

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
        return SourceRows(source, digests, failed, fingerprint(identity), self.recipe.text)

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
