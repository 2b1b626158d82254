"""What the user decides about a run, and what is put in place of what a recipe names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from featx.errors import UsageError
from featx.reproduce.recipe import FULL, SCALES, Recipe

__all__ = ["Options", "read_pairs"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Choices for a run of recipes."""

    scale: str = FULL
    data: Mapping[str, str] = field(default_factory=dict)
    backbone: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    cache_dir: str = "cache"
    reports_dir: str = "reports"
    device: str = "auto"
    workers: int | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise UsageError(f"scale is {self.scale!r}: choose from {', '.join(SCALES)}")

    @property
    def machine(self) -> dict[str, Any]:
        """What extraction and training take alike."""
        chosen = {"device": self.device, "workers": self.workers}
        return chosen if self.precision is None else {**chosen, "precision": self.precision}

    def apply(self, recipe: Recipe) -> Recipe:
        """Give a recipe at the scale, with everything replaced that is to be."""
        recipe = recipe.at_scale(self.scale)
        data = recipe.data
        changes: dict[str, Any] = {
            name: self.data[value]
            for name in ("data", "moved_to")
            if (value := getattr(data, name)) in self.data
        }
        recipe = replace(recipe, data=replace(data, **changes))
        said: list[str] = []
        parts = {name: self._part(name, dict(p), said) for name, p in recipe.parts.items()}
        return replace(recipe, parts=parts, replaced=tuple(dict.fromkeys(said)))

    def _part(self, name: str, part: dict[str, Any], said: list[str]) -> dict[str, Any]:
        key = {"extract": "backbone", "train": "network", "pretrain": "network"}.get(name)
        if key is None:
            return part
        before = part[key][0] if isinstance(part[key], tuple) else part[key]
        after = self.backbone.get(before, before)
        if after != before:
            said.append(f"{after} in place of {before}")
            part[key] = (after,) if isinstance(part[key], tuple) else after
            # Layers are those of the network that was replaced.
            part.pop("layer", None)
            part.pop("weights", None)
        if after in self.weights:
            part["weights"] = self.weights[after]
            # A file may hold the very weights of the recipe.
            if self.weights[after].partition(":")[0] == "random":
                said.append("random weights")
        return part


def read_pairs(option: str, words: Iterable[str]) -> dict[str, str]:
    """Read words ``NAME=VALUE``."""
    pairs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise UsageError(
                f"{option} {word!r}: write NAME=VALUE, as in {option} {_EXAMPLES[option]}"
            )
        pairs[name] = value
    return pairs


_EXAMPLES = {
    "--data": "cifar10=/data/cifar10",
    "--backbone": "vgg16=squeezenet1_0",
    "--weights": "vgg16=vgg16.pth",
}
