"""Networks that stay open in this process.

A search over parameters makes many estimators, and each of them needs its network.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from featx.backbones import Backbone, open_backbone
from featx.engines import LocalEngine
from featx.errors import UsageError
from featx.network_names import GROUP
from featx.plugins import is_plugin, loaded_now
from featx.sources.places import digest_file
from featx.words import check_scale

__all__ = ["engine_once", "open_once"]


def open_once(
    name: str,
    overrides: Mapping[str, Any],
    device: torch.device,
    *,
    allow_code: Collection[str],
    is_anew: bool = False,
    **options: str | None,
) -> Backbone:
    """Open a backbone, or return one of the last two that were opened."""
    chosen = tuple(
        (key, _triple(key, value) if key in ("mean", "std") else value)
        for key, value in overrides.items()
        if value is not None
    )
    values = dict(chosen)
    check_scale(values.get("mean", (0.0,)), values.get("std", (0.0,)))
    allowed = tuple(allow_code)
    key = name, tuple(options.items()), chosen, allowed, str(device)
    if is_anew and _codes(name, allowed):
        _open_once.cache_clear()
    found, codes = _open_once(*key)
    file, sha256 = found.weights.file, found.weights.file_sha256
    if (file and digest_file(Path(file)) != sha256) or _codes(name, allowed) != codes:
        _open_once.cache_clear()
        found, _ = _open_once(*key)
    return found


def _triple(name: str, values: Any) -> tuple[float, ...]:
    """Turn a list or an array into a tuple of floats, which has a hash."""
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} must be 3 finite numbers (RGB), got {values!r}") from error


def _codes(name: str, allowed: tuple[str, ...]) -> list[tuple[Any, str]]:
    """Return the user's functions with digests: a notebook may define or reload them again."""
    return [loaded_now(code, GROUP) for code in (name, *allowed) if is_plugin(code, GROUP)]


@lru_cache(maxsize=2)
def _open_once(
    name: str,
    options: tuple[tuple[str, Any], ...],
    overrides: tuple[tuple[str, Any], ...],
    allow_code: tuple[str, ...],
    device: str,
) -> tuple[Backbone, list[tuple[Any, str]]]:
    """Open it; `device` is part of the key because an engine moves the network there."""
    del device
    chosen: dict[str, Any] = dict(options)
    found = open_backbone(name, overrides=dict(overrides), allow_code=allow_code, **chosen)
    return found, _codes(name, allow_code)


@lru_cache(maxsize=1)
def engine_once(
    device: torch.device, precision: str, batch_size: int | None, workers: int | None, runtime: str
) -> LocalEngine:
    """Make an engine, or return the last one, which keeps its last network ready to run."""
    return LocalEngine(device, precision, batch_size, workers, runtime=runtime)
