"""A recipe: one system, what was reported of it, and the settings that run it; found by name."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from featx.errors import UsageError, unknown_name
from featx.evaluate import Settings
from featx.extract import Plan
from featx.plugins import named_by
from featx.reproduce.schema import check_keys, read_fields
from featx.sweep import Axes
from featx.train import TrainPlan

__all__ = [
    "FULL",
    "PRETRAINED",
    "SCALES",
    "SMALL",
    "Data",
    "Recipe",
    "Reported",
    "all_recipes",
    "find_recipes",
    "read_recipe",
]

FULL, SMALL = "full", "small"
SCALES = (FULL, SMALL)
PRETRAINED = "@pretrain"
"""In place of a network or backbone: the file that the section ``[pretrain]`` gave."""

# What stands in [data], and what the user decides.
_OF_DATA = ("data", "classes", "drop", "map", "cache_per_class", "test_per_class", "seed")
_OF_USER = (
    *("device", "workers", "reports_dir", "cache_dir", "refit", "overwrite", "append"),
    "allow_code",
)
_NOT_IN = {
    "data": (),
    "extract": (*_OF_DATA, *_OF_USER, "per_class", "split", "on_error"),
    "fit": (*_OF_USER, "seed", "n_jobs"),
    "sweep": (),
    "train": (*_OF_DATA, *_OF_USER, "image_memory_gb"),
    "pretrain": (*_OF_DATA, *_OF_USER, "image_memory_gb", "save"),
}


@dataclass(frozen=True, kw_only=True)
class System:
    """What the recipe is of."""

    source: str
    title: str
    document: str = ""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which images, for every part of the recipe."""

    data: str = "cifar10"
    classes: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    map: tuple[str, ...] = ()
    cache_per_class: int | None = None
    test_per_class: int | None = None
    seed: int = 0
    moved_to: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reported:
    """What the source says."""

    where: str
    accuracy: float | None = None
    split: str = "test"
    seconds: float | None = None
    timed: str = ""
    per_class: int | str | None = None
    data: str = ""
    layers: int | None = None
    features: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Differs:
    text: str = ""


_SECTIONS: dict[str, type] = {
    "system": System,
    "data": Data,
    "extract": Plan,
    "fit": Settings,
    "sweep": Axes,
    "train": TrainPlan,
    "pretrain": TrainPlan,
    "reported": Reported,
    "differs": _Differs,
}
_CHANGED_BY_SMALL = ("data", "extract", "fit", "sweep", "train", "pretrain")


@dataclass(frozen=True)
class Recipe:
    """A recipe, read and checked."""

    name: str
    path: Path
    system: System
    data: Data
    reported: Reported
    differs: str
    parts: Mapping[str, Mapping[str, Any]]
    small: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scale: str = FULL
    replaced: tuple[str, ...] = ()
    allow_code: tuple[str, ...] = ()

    def has(self, part: str) -> bool:
        """Whether it has a section of this name."""
        return part in self.parts

    def at_scale(self, scale: str) -> Recipe:
        """Give the recipe at a scale."""
        if scale == FULL:
            return self
        parts = {
            name: {**values, **self.small.get(name, {})} for name, values in self.parts.items()
        }
        data = replace(self.data, **self.small.get("data", {}))
        return replace(self, parts=parts, data=data, scale=scale)

    def described_scale(self) -> str:
        """Say in words what the small scale changes."""
        changes = [
            f"{'pretrain.' * (name == 'pretrain')}{key}="
            f"{'/'.join(map(str, value)) if isinstance(value, tuple) else value}"
            for name, section in self.small.items()
            for key, value in section.items()
        ]
        return ", ".join(changes) or "nothing"

    def plan(self, **machine: Any) -> Plan:
        """Give what is to be extracted."""
        data = {name: getattr(self.data, name) for name in ("data", "classes", "drop", "map")}
        pool = {
            "per_class": self.data.cache_per_class,
            "test_per_class": self.data.test_per_class,
            "seed": self.data.seed,
        }
        code = {"allow_code": self.allow_code}
        return Plan(**{**data, **pool, **self.parts["extract"], **code, **machine})

    def settings(self, device: str = "auto") -> Settings:
        """Give what is to be fitted."""
        chosen = {"seed": self.data.seed, "device": device, "allow_code": self.allow_code}
        return Settings(**{**self.parts["fit"], **chosen})

    def axes(self) -> Axes:
        """Give what is varied."""
        return Axes(**self.parts["sweep"])

    def train_plan(self, part: str = "train", **machine: Any) -> TrainPlan:
        """Give what is to be trained."""
        data = {name: getattr(self.data, name) for name in _OF_DATA}
        code = {"allow_code": self.allow_code}
        return TrainPlan(**{**data, **self.parts[part], **code, **machine})


def read_recipe(path: Path, allow_code: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe and check all of it."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"there is no recipe {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is no TOML: {error}") from error
    check_keys(str(path), values, [*_SECTIONS, "small"])
    sections = {name: _section(path, name, values[name]) for name in _SECTIONS if name in values}
    small = _small(path, values.get("small", {}), sections)
    try:
        recipe = replace(_assembled(path, sections, small), allow_code=allow_code)
        with named_by(path):
            for scale in SCALES:
                _check(recipe.at_scale(scale))
    except TypeError as error:  # a required key is missing
        raise UsageError(f"{path}: {str(error).partition('__init__() ')[2] or error}") from error
    except UsageError as error:
        error.add_note(f"in the recipe {path}")
        raise
    return recipe


def _section(path: Path, name: str, values: Any, label: str = "") -> dict[str, Any]:
    where = f"[{label or name}] of {path.name}"
    if not isinstance(values, dict):
        raise UsageError(f"{path}: {name} is no section: write [{name}] above its keys")
    fields: dict[str, Any] = read_fields(where, values, _SECTIONS[name], _NOT_IN.get(name, ()))
    return fields


def _small(path: Path, values: Any, sections: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    present = [name for name in _CHANGED_BY_SMALL if name in sections or name == "data"]
    check_keys(f"[small] of {path.name}", values, present)
    return {name: _section(path, name, part, f"small.{name}") for name, part in values.items()}


def _assembled(
    path: Path, sections: Mapping[str, dict[str, Any]], small: dict[str, dict[str, Any]]
) -> Recipe:
    runs = ("extract", "fit", "sweep", "train", "pretrain")
    return Recipe(
        name=path.stem,
        path=path,
        system=System(**sections.get("system", {})),
        data=Data(**sections.get("data", {})),
        reported=Reported(**sections.get("reported", {"where": "nowhere: a system of featx"})),
        differs=" ".join(sections.get("differs", {}).get("text", "").split()),
        parts={name: sections[name] for name in runs if name in sections},
        small=small,
    )


def _check(recipe: Recipe) -> None:
    """Build every plan once: the dataclasses check themselves."""
    if recipe.has("extract") != recipe.has("fit"):
        raise UsageError("[extract] and [fit] go together: features, and heads on them")
    if not (recipe.has("extract") or recipe.has("train")):
        raise UsageError("nothing to run: give [extract] and [fit], or [train], or both")
    if recipe.has("sweep") and not recipe.has("extract"):
        raise UsageError("[sweep] varies an extraction: give [extract] and [fit]")
    if recipe.has("extract"):
        recipe.plan().overrides() if not isinstance(recipe.plan().input_size, str) else None
        recipe.settings()
    if recipe.has("sweep"):
        recipe.axes()
    for part in ("train", "pretrain"):
        if recipe.has(part):
            recipe.train_plan(part)
    uses = PRETRAINED in str(recipe.parts.get("extract")) + str(recipe.parts.get("train"))
    if uses != recipe.has("pretrain"):
        raise UsageError(f'[pretrain] and "{PRETRAINED}" in another section go together')
    if recipe.reported.split not in ("test", "train"):
        raise UsageError(f"split in [reported] is {recipe.reported.split!r}: give test or train")


_ENDING = ".toml"


def _folder() -> Path:
    return Path(str(files("featx"))) / "recipes"


@cache
def all_recipes() -> tuple[Recipe, ...]:
    """Recipes that featx brings, sorted by source, then by name."""
    recipes = [read_recipe(path) for path in _folder().glob(f"*{_ENDING}")]
    return tuple(sorted(recipes, key=lambda recipe: (recipe.system.source, recipe.name)))


def find_recipes(names: Sequence[str], allow_code: tuple[str, ...] = ()) -> list[Recipe]:
    """Find recipes by what was typed."""
    found: dict[str, Recipe] = {}
    for name in names:
        for recipe in _find(name, allow_code):
            found.setdefault(recipe.name, recipe)
    return list(found.values())


def _find(name: str, allow_code: tuple[str, ...]) -> list[Recipe]:
    if name.endswith(_ENDING):
        return [read_recipe(Path(name).expanduser(), allow_code)]
    recipes = all_recipes()
    exact = [recipe for recipe in recipes if recipe.name == name]
    begun = exact or [recipe for recipe in recipes if recipe.name.startswith(name)]
    if not begun or not name:
        names = [recipe.name for recipe in recipes]
        error: UsageError = unknown_name("recipe", name, names, see="featx reproduce --list")
        error.add_note(f"a recipe of your own is the path of a {_ENDING} file")
        raise error
    return begun
