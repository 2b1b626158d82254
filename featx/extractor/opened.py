"""Networks that stay open in this process: a search over parameters makes many estimators."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from featx.backbones import Backbone, open_backbone
from featx.engines import LocalEngine
from featx.errors import UsageError

__all__ = ["engine_once", "open_once"]


def open_once(
    name: str,
    weights: str | None,
    layer: str | None,
    pool: str,
    overrides: Mapping[str, Any],
    device: torch.device,
    weights_key: str | None = None,
) -> Backbone:
    """Open a backbone, or take one of the last two that were opened.

    Parameters
    ----------
    name, weights, layer, pool
        As for `featx.open_backbone`.
    overrides : mapping
        Keyword arguments of `Preprocessing.override`; None where nothing is changed.
    device : torch.device
        Where an engine moves the network.
    weights_key : str, optional
        As for `featx.open_backbone`.

    Returns
    -------
    Backbone
        At the feature point.

    Raises
    ------
    UsageError, WeightsError, BackboneError
        As `featx.open_backbone`.
    """
    chosen = tuple(
        (key, _triple(key, value) if key in ("mean", "std") else value)
        for key, value in overrides.items()
        if value is not None
    )
    file = (weights, weights_key)
    return _open_once(name, file, layer, pool, chosen, str(device), _stamp(weights))


def _triple(name: str, values: Any) -> tuple[float, ...]:
    """Make a list or an array hashable, and equal numbers equal."""
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} must be 3 finite numbers (RGB), got {values!r}") from error


def _stamp(weights: str | None) -> tuple[int, int] | None:
    """Tell a changed file of weights from an unchanged one."""
    path = Path(weights or "").expanduser()
    if not path.is_file():
        return None
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=2)
def _open_once(
    name: str,
    file: tuple[str | None, str | None],
    layer: str | None,
    pool: str,
    overrides: tuple[tuple[str, Any], ...],
    device: str,
    stamp: tuple[int, int] | None,
) -> Backbone:
    """Load it; the device is part of the key because an engine moves the network to it."""
    del device, stamp
    options: dict[str, Any] = dict(zip(("weights", "weights_key"), file, strict=True))
    return open_backbone(name, layer=layer, pool=pool, overrides=dict(overrides), **options)


@lru_cache(maxsize=1)
def engine_once(
    device: torch.device, precision: str, batch_size: int | None, workers: int | None, runtime: str
) -> LocalEngine:
    """Make an engine, or take the last one: it keeps the last network ready to run.

    Parameters
    ----------
    device, precision, batch_size, workers, runtime
        As for `LocalEngine`.

    Returns
    -------
    LocalEngine
    """
    return LocalEngine(device, precision, batch_size, workers, runtime=runtime)
