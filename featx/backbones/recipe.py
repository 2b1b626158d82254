"""One way to load a network, whichever library builds it.

A `Recipe` says how a library builds and fills one of its networks. `Recipe.load` is the same for
all: choose the preprocessing, build the network for its input size, fill it with nothing (to look
at), with seeded random values, or from a file, and say which weights these are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featx.backbones.fake import without_values
from featx.backbones.taps import Taps
from featx.errors import UsageError
from featx.network_names import choose_file, parse_random
from featx.preprocess import Preprocessing
from featx.progress import Reporter
from featx.weights import StoredFile, Weights, fill_from_file, state_sha256, stored

__all__ = ["OUTLINE", "Filled", "LoadedNetwork", "Recipe", "State", "preprocessing_from_options"]

State = Mapping[str, torch.Tensor]

OUTLINE = "<outline>"
"""In place of weights: the network without any values, on torch's meta device, to look at only."""


@dataclass(frozen=True)
class LoadedNetwork:
    """A whole network, not cut off yet."""

    name: str
    network: nn.Module
    weights: Weights
    preprocessing: Preprocessing
    tap: Callable[[int], Taps]
    unfilled: tuple[str, ...] = ()
    variant: str = ""
    is_own_code: bool = False
    source_sha256: str = ""


@dataclass(frozen=True)
class Filled:
    """A network with weights: the modules left empty, and what to say to the user."""

    network: nn.Module
    unfilled: tuple[str, ...] = ()
    said: str = ""


class Recipe(ABC):
    """How a library builds and fills one network."""

    tags: Sequence[str] = ()
    """Of the weights that the library has for it."""
    tag = ""
    """Of the library's weights that are used where no file is given."""
    default_tag = ""
    """Of those that are used where nothing is asked for."""
    origin = ""
    """Of the preprocessing, where a file is taken to have the same."""
    notes = ""
    """What the library says of these weights."""

    def __init__(self, name: str, weights: str | None, reporter: Reporter) -> None:
        self.name, self.weights, self.reporter = name, weights, reporter
        self.seed = parse_random(weights or "")

    @property
    def is_own(self) -> bool:
        """Whether the library's own weights are wanted, and not a file of the user's."""
        return self.weights in (None, self.tag)

    @abstractmethod
    def preprocess(self, overrides: Mapping[str, Any]) -> Preprocessing:
        """Give the preprocessing of the weights, changed."""

    @abstractmethod
    def build(self, input_px: int, seed: int = 0) -> nn.Module:
        """Build the network with seeded random values, in evaluation mode."""

    @abstractmethod
    def own(self, input_px: int, weights_key: str | None) -> tuple[Weights, State, Filled]:
        """Fill the network with the library's own weights `tag`."""

    @abstractmethod
    def fill(self, state: State, input_px: int, path: Path) -> Filled:
        """Build the network and fill it; a `WeightsError` where a state dict does not fit."""

    @abstractmethod
    def tap(self, network: nn.Module, input_px: int) -> Taps:
        """Find the tap points of the network."""

    def check(self, loaded: LoadedNetwork, overrides: Mapping[str, Any]) -> LoadedNetwork:
        """Look whether a network that was filled fits its preprocessing."""
        del overrides
        return loaded

    def outline(self, input_px: int) -> nn.Module:
        """Build the network without values."""
        return without_values(lambda: self.build(input_px))

    def load(self, overrides: Mapping[str, Any], weights_key: str | None = None) -> LoadedNetwork:
        """Build the network, fill it, and say what it is."""
        preprocessing = self.preprocess(overrides)
        input_px = preprocessing.crop_px
        if self.weights == OUTLINE:
            filled = Filled(self.outline(input_px))
            return self._loaded(filled, Weights(OUTLINE, ""), preprocessing)
        if self.seed is not None:
            filled = Filled(self.build(input_px, self.seed))
            digest = state_sha256(filled.network.state_dict())
            return self._loaded(filled, Weights(f"random:{self.seed}", digest), preprocessing)
        if self.is_own:
            weights, state, filled = self.own(input_px, weights_key)
        else:
            found = self.choose(str(self.weights), overrides)
            weights, state, filled = self.read(found, input_px, weights_key)
        if filled.said:
            self.reporter.say(f"{weights.file}: {filled.said}")
        preprocessing = _note_positions(preprocessing, state, filled)
        return self.check(self._loaded(filled, weights, preprocessing), overrides)

    def _loaded(
        self, filled: Filled, weights: Weights, preprocessing: Preprocessing
    ) -> LoadedNetwork:
        return LoadedNetwork(
            name=self.name,
            network=filled.network,
            weights=weights,
            preprocessing=preprocessing,
            tap=lambda input_px: self.tap(filled.network, input_px),
            unfilled=filled.unfilled,
        )

    def read(
        self, found: StoredFile, input_px: int, weights_key: str | None
    ) -> tuple[Weights, State, Filled]:
        """Fill the network from a file."""
        if self.notes:
            self.reporter.say(f"{self.name}: {self.notes}")
        return fill_from_file(
            found,
            weights_key,
            lambda state: self.fill(state, input_px, found.path),
            lambda: self.outline(input_px).state_dict(),
            self.reporter,
            tag=self.tag if self.is_own else "",
            default=self.default_tag,
        )

    def choose(self, spec: str, overrides: Mapping[str, Any]) -> StoredFile:
        """Take a file of the user's, and say which preprocessing is assumed for it."""
        found = stored(choose_file(self.name, spec, [*self.tags, "random"]))
        if self.origin and not {"mean", "std"} <= set(overrides):
            self.reporter.say(
                f"{found.path} does not record its preprocessing: that of {self.origin} is "
                "assumed. Where it was trained with another one, give --mean --std --input-size"
            )
        return found


def _note_positions(preprocessing: Preprocessing, state: State, filled: Filled) -> Preprocessing:
    """Say in the origin which positions of a file were interpolated to fit into a network."""
    fitted, unused = filled.network.state_dict(), tuple(f"{path}." for path in filled.unfilled)
    names = [
        name
        for name, value in state.items()
        if "pos" in name and name in fitted and fitted[name].shape != value.shape
        if not name.startswith(unused)
    ]
    if not names:
        return preprocessing
    first, more = names[0], f" and {len(names) - 1} more" if len(names) > 1 else ""
    before, after = (" x ".join(map(str, found[first].shape)) for found in (state, fitted))
    said = f"positions interpolated: {first}{more} from {before} to {after}"
    return replace(preprocessing, origin=f"{preprocessing.origin}; {said}")


_NEEDED = {"mean": "--mean R G B", "std": "--std R G B", "input_size": "--input-size N"}
_CROP_PCT = 0.875
_INTERPOLATION = "bilinear"


def preprocessing_from_options(name: str, overrides: Mapping[str, Any]) -> Preprocessing:
    """Make a preprocessing of the user's flags alone."""
    missing = [flag for key, flag in _NEEDED.items() if overrides.get(key) is None]
    if missing:
        raise UsageError(
            f"the preprocessing of {name} is not known, and a network fed with wrongly scaled "
            f"pixels is useless: give {' '.join(missing)}"
        )
    crop_px = int(overrides["input_size"])
    base = Preprocessing(
        resize_px=max(1, math.floor(crop_px / _CROP_PCT)),
        crop_px=crop_px,
        interpolation=_INTERPOLATION,
        mean=overrides["mean"],
        std=overrides["std"],
        origin="given by options",
    )
    rest = {k: v for k, v in overrides.items() if k not in _NEEDED}
    return base.override(**rest)
