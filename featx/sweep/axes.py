"""What a sweep varies, and the plans that this makes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from featx.errors import UsageError
from featx.extract import Plan

__all__ = ["Axes"]


@dataclass(frozen=True)
class Axes:
    """The values of every choice that a sweep varies; one value, or none, leaves it fixed."""

    input_size: tuple[int | str, ...] = ()
    layer: tuple[str, ...] = ()
    pool: tuple[str, ...] = ()
    preprocess: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("input_size", "layer", "pool", "preprocess"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} has a value twice: {' '.join(map(str, values))}")

    @property
    def varied(self) -> tuple[str, ...]:
        """Names of the choices that have several values."""
        names = ("input_size", "layer", "pool", "preprocess")
        return tuple(name for name in names if len(getattr(self, name)) > 1)

    def plans(self, plan: Plan) -> Iterator[Plan]:
        """Give the plan of every pass."""
        choices = itertools.product(
            dict.fromkeys(plan.backbone),
            self.pool or (plan.pool,),
            self.preprocess or (plan.preprocess,),
            self.input_size or (plan.input_size,),
        )
        for backbone, pool, preprocess, size in choices:
            yield replace(
                plan,
                backbone=(backbone,),
                layer=self.layer or plan.layer,
                pool=pool,
                preprocess=preprocess,
                input_size=size,
            )
