"""What a recipe needs and this machine lacks, found before anything is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from featx.errors import FeatxError, SourceError
from featx.plugins import named_by
from featx.progress import Reporter
from featx.reproduce.recipe import PRETRAINED, Recipe

__all__ = ["Needs"]


class Needs:
    """Looks for the data and weights of recipes, each of them once.

    What is not here is downloaded where that is possible.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self._answers: dict[tuple[str, str], str] = {}

    def missing(self, recipe: Recipe) -> list[str]:
        """Say what is missing for a recipe."""
        found = [self._data(name) for name in (recipe.data.data, recipe.data.moved_to) if name]
        found += [self._weights(recipe, name, weights) for name, weights in _backbones(recipe)]
        return [line for line in found if line]

    def _ask(self, key: tuple[str, str], check: Callable[[], object]) -> str:
        if key not in self._answers:
            try:
                check()
                self._answers[key] = ""
            except FeatxError as error:
                self._answers[key] = " ".join([str(error), *getattr(error, "__notes__", ())])
        return self._answers[key]

    def _data(self, name: str) -> str:
        from featx.sources import open_data

        def check() -> None:
            try:
                open_data(name, download=False, reporter=self.reporter)
            except SourceError:
                open_data(name, reporter=self.reporter)

        problem = self._ask(("data", name), check)
        return problem and f"data {name}: {problem} (or say where it lies: --data {name}=FOLDER)"

    def _weights(self, recipe: Recipe, name: str, weights: str | None) -> str:
        from featx.backbones import check_backbone, load_network

        def check() -> None:
            check_backbone(name)
            with named_by(recipe.path):
                load_network(name, weights, {}, self.reporter, recipe.allow_code)

        problem = self._ask((name, weights or ""), check)
        instead = f"--weights {name}=FILE, --backbone {name}=OTHER"
        return problem and f"weights of {name}: {problem} (here: {instead})"


def _backbones(recipe: Recipe) -> Iterable[tuple[str, str | None]]:
    """Give the backbones with weights, not the networks that are trained from scratch."""
    from featx.networks import is_network

    for part, key in (("extract", "backbone"), ("train", "network"), ("pretrain", "network")):
        values = recipe.parts.get(part, {})
        names = values.get(key, ())
        for name in names if isinstance(names, tuple) else (names,):
            if name != PRETRAINED and not is_network(name):
                yield name, values.get("weights")
