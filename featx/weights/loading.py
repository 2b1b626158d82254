"""Filling a network with weights that must fit it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

import torch

from featx.errors import WeightsError
from featx.weights.entries import few

__all__ = ["load_into"]


def load_into(
    network: torch.nn.Module,
    state: Mapping[str, torch.Tensor],
    source: str,
    *,
    heads: Sequence[str] = (),
) -> bool:
    """Load a state dict that must fit the network."""
    wanted = network.state_dict()
    shapes = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    other_head = _inside(shapes, heads)
    given = OrderedDict((k, v) for k, v in state.items() if not (other_head and _in(k, heads)))
    missing: list[str] = []
    unexpected: list[str] = []
    if len(shapes) == len(other_head):
        # Versions of the modules, by which some of them convert the keys of older files.
        versions = getattr(state, "_metadata", None) or getattr(wanted, "_metadata", None)
        given._metadata = versions  # type: ignore[attr-defined]
        missing, unexpected = network.load_state_dict(given, strict=False)
    # Files saved before PyTorch 0.4.1 lack these counters, which inference never reads.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    described = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in shapes
        if not _in(key, heads)
    ]
    problems = [
        f"{len(keys)} {what} ({few(keys)})"
        for what, keys in (
            ("of another shape", described),
            ("missing", _outside(missing, heads)),
            ("unexpected", _outside(unexpected, heads)),
        )
        if keys
    ]
    if problems:
        raise WeightsError(
            f"{source} holds the weights of another network than {type(network).__name__}: "
            f"{'; '.join(problems)}. Name the backbone that they were trained in"
        )
    return not (other_head or missing or unexpected)


def _in(key: str, heads: Sequence[str]) -> bool:
    return key.startswith(tuple(f"{head}." for head in heads))


def _inside(keys: Iterable[str], heads: Sequence[str]) -> list[str]:
    return [key for key in keys if _in(key, heads)]


def _outside(keys: Iterable[str], heads: Sequence[str]) -> list[str]:
    return [key for key in keys if not _in(key, heads)]
