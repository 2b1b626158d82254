"""Recipes by name: those that featx brings, and the user's own files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from featx.errors import UsageError, unknown_name
from featx.reproduce.recipe import Recipe, read_recipe

__all__ = ["all_recipes", "find_recipes"]

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
