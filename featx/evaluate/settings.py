"""What is asked: which heads, how many labelled images, how often."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from featx.configurable import check_number
from featx.errors import UsageError
from featx.heads import canonical_name, find_head
from featx.heads.base import LARGEST_SEED
from featx.heads.device import AUTO
from featx.heads.scaling import NONE, check_scale
from featx.words import ALL, LOCAL, RAY, check_engine, put_in_form

__all__ = ["ALL", "BALANCED", "NEAR_AUTO", "NEAR_OFF", "ON_LEAK", "RAY", "Settings"]

NEAR_AUTO, NEAR_OFF = "auto", "off"
BALANCED = "balanced"
ON_LEAK = ("warn", "drop", "raise")


@dataclass(frozen=True)
class Settings:
    """Settings of an evaluation."""

    heads: tuple[str, ...] = ("svm",)
    per_class: tuple[int | str, ...] = (100,)
    repeats: int = 5
    seed: int = 0
    C: float | None = None
    folds: int = 5
    holdout: float = 0.2
    holdout_seed: int = 0
    on_leak: str = "warn"
    near: float | str = NEAR_AUTO
    scale: str = NONE
    class_weight: str | None = None
    n_jobs: int = 1
    device: str = AUTO
    allow_code: tuple[str, ...] = ()
    engine: str = LOCAL
    address: str | None = None

    def __post_init__(self) -> None:
        put_in_form(self)
        for name in ("heads", "per_class"):  # what is named twice is asked once
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        self._check_heads()
        for k in self.per_class:
            if k != ALL and not (isinstance(k, int) and k > 0):
                raise UsageError(f"per_class is {k!r}: give numbers above 0, or {ALL!r}")
        for name, least in (("repeats", 1), ("folds", 2)):
            check_number(name, getattr(self, name), f"[{least}, inf)", is_whole=True)
        # Draw r has the seed of the first plus r.
        most = LARGEST_SEED + 1 - self.repeats
        check_number("seed", self.seed, f"[0, {most}]", is_whole=True)
        check_number("holdout_seed", self.holdout_seed, f"[0, {LARGEST_SEED}]", is_whole=True)
        check_number("holdout", self.holdout, "(0, 1)")
        if self.C is not None:
            check_number("C", self.C, "(0, inf)")
        if not (self.n_jobs > 0 or self.n_jobs == -1):
            raise UsageError(f"n_jobs is {self.n_jobs}: give 1 or more, or -1 for all cores")
        check_engine(self.engine, self.address)
        if self.engine != LOCAL and self.n_jobs != 1:
            raise UsageError("n_jobs is for fits in this process: leave it out with engine ray")
        check_scale(self.scale)
        self._check_guard()

    def _check_heads(self) -> None:
        if self.class_weight not in (None, BALANCED):
            raise UsageError(f"class_weight is {self.class_weight!r}: give {BALANCED!r}, or None")
        names = dict.fromkeys(canonical_name(name, self.allow_code) for name in self.heads)
        object.__setattr__(self, "heads", tuple(names))
        for name in self.heads:
            # One's own classifiers are asked when they are fitted.
            has_weights = getattr(find_head(name, self.allow_code), "has_class_weight", True)
            if self.class_weight and not has_weights:
                raise UsageError(
                    f"{name} cannot weight its classes: leave --class-weight out, or the head"
                )

    def _check_guard(self) -> None:
        if self.on_leak not in ON_LEAK:
            raise UsageError(f"on_leak is {self.on_leak!r}: choose from {', '.join(ON_LEAK)}")
        is_word = self.near in (NEAR_AUTO, NEAR_OFF)
        if not is_word and (isinstance(self.near, str) or not 0 < self.near < 1):
            raise UsageError(f"near is {self.near!r}: give a number between 0 and 1, or 'off'")

    def record(self) -> dict[str, Any]:
        """Give the settings as plain values for JSON."""
        values = asdict(self)
        for name in ("allow_code", "engine", "address"):  # where it is fitted changes nothing
            del values[name]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
