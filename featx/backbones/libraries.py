"""Which library a name belongs to: a table of recipes, and the names of today for older ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from featx.backbones import factories, timm_models, torchvision_models
from featx.backbones.recipe import LoadedNetwork, Recipe
from featx.errors import FeatxError, UsageError
from featx.network_names import PACKAGED, PROGRAMS, TIMM, parse_random, unknown_network
from featx.progress import Reporter
from featx.weights import program_error

__all__ = ["find_library", "load_from_library", "refuse_key"]


def find_library(
    name: str, allow_code: Collection[str] = ()
) -> Callable[[str, str | None, Reporter], Recipe]:
    """Give the recipe of the library that has a network, or refuse its name."""
    if name.startswith(TIMM):
        return timm_models.TimmRecipe
    if name in torchvision_models.available():
        return torchvision_models.TorchvisionRecipe
    if name in PACKAGED:
        return timm_models.PackagedRecipe
    if Path(name).suffix in PROGRAMS:
        raise program_error(Path(name), "a program in a file")
    if factories.is_factory(name):
        return partial(factories.FactoryRecipe, allow_code=allow_code)
    if current := _name_of_today(name):
        raise UsageError(f"unknown backbone {name!r}: timm calls it {current} today")
    raise unknown_network(name)


def _name_of_today(name: str) -> str:
    """Give timm's name of today for one of older days, where timm is there."""
    try:
        current = timm_models.canonical(TIMM + name)
    except FeatxError:
        return ""
    return current if current != TIMM + name else ""


def load_from_library(
    name: str,
    weights: str | None,
    overrides: Mapping[str, Any],
    reporter: Reporter,
    allow_code: Collection[str] = (),
    weights_key: str | None = None,
) -> LoadedNetwork:
    """Load a whole network of a library, or of a function of the user's."""
    library = find_library(name, allow_code)
    is_file = weights is not None and parse_random(weights) is None and name not in PACKAGED
    if weights_key is not None and not is_file:
        raise refuse_key()
    return library(name, weights, reporter).load(overrides, weights_key)


def refuse_key() -> UsageError:
    """Error for an entry of a checkpoint where no checkpoint is given."""
    return UsageError(
        "--weights-key (weights_key) names an entry of a checkpoint: give its file with "
        "--weights FILE, or leave it out"
    )
