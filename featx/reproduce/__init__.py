"""Published systems run again: recipes, and tables of reported beside measured.

In: a recipe (a TOML file: data, network, heads, reported figures) and where data and weights lie.
Out: a table for each source, as text and CSV. The way: `recipe` is read and checked, `run` looks
for what is missing, then extracts, fits, sweeps or trains, `outcome` and `table` set it beside
what was reported. Nothing in a recipe is run as code. Only commands may import this room.
"""

from __future__ import annotations

from featx.reproduce.outcome import Outcome
from featx.reproduce.recipe import SCALES, Recipe, all_recipes, find_recipes, read_recipe
from featx.reproduce.run import Needs, Options, read_pairs, run_recipe
from featx.reproduce.table import SourceTable, format_outcomes, save_recipe, save_source

__all__ = [
    "SCALES",
    "Needs",
    "Options",
    "Outcome",
    "Recipe",
    "SourceTable",
    "all_recipes",
    "find_recipes",
    "format_outcomes",
    "read_pairs",
    "read_recipe",
    "run_recipe",
    "save_recipe",
    "save_source",
]
