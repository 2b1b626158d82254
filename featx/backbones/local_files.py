"""Files of weights given by hand, and preprocessing that must come with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featx.errors import UsageError
from featx.preprocess import Preprocessing
from featx.progress import Reporter

__all__ = [
    "as_preprocessing",
    "assume",
    "note_positions",
    "preprocessing_from_options",
]

_NEEDED = {"mean": "--mean R G B", "std": "--std R G B", "input_size": "--input-size N"}
_CROP_PCT = 0.875
_INTERPOLATION = "bilinear"


def assume(path: Path, origin: str, overrides: Mapping[str, Any], reporter: Reporter) -> None:
    """Say which preprocessing is assumed for a file that does not record its own."""
    if not {"mean", "std"} <= set(overrides):
        reporter.say(
            f"{path} does not record its preprocessing: that of {origin} is assumed. "
            "Where it was trained with another one, give --mean --std --input-size"
        )


def note_positions(
    preprocessing: Preprocessing, state: Mapping[str, torch.Tensor], network: nn.Module
) -> Preprocessing:
    """Say in the origin which positions of a file were interpolated to fit into a network."""
    fitted = network.state_dict()
    names = [
        name
        for name, value in state.items()
        if "pos" in name and name in fitted and fitted[name].shape != value.shape
    ]
    if not names:
        return preprocessing
    first, more = names[0], f" and {len(names) - 1} more" if len(names) > 1 else ""
    before, after = (" x ".join(map(str, found[first].shape)) for found in (state, fitted))
    said = f"positions interpolated: {first}{more} from {before} to {after}"
    return replace(preprocessing, origin=f"{preprocessing.origin}; {said}")


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


def as_preprocessing(value: Any, origin: str) -> Preprocessing | None:
    """Read the preprocessing that a user's function returned."""
    if value is None or isinstance(value, Preprocessing):
        return value
    try:
        if isinstance(value, Mapping):
            return Preprocessing.from_timm(value, origin)
        if hasattr(value, "crop_size") and hasattr(value, "resize_size"):
            return Preprocessing.from_torchvision(value, origin)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"the preprocessing that {origin} returns lacks {error}: it needs input_size, "
            "crop_pct, interpolation, mean and std"
        ) from error
    raise UsageError(
        f"{origin} returns a {type(value).__name__} as its preprocessing: return a "
        "featx.preprocess.Preprocessing, a torchvision ImageClassification preset, or a mapping "
        "with input_size, crop_pct, interpolation, mean and std"
    )
