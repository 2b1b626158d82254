"""Filling a network with weights that must fit it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
from torch.nn.parameter import is_lazy

from featx.errors import WeightsError
from featx.weights.entries import few

__all__ = ["load_into"]


def load_into(
    network: torch.nn.Module,
    state: Mapping[str, torch.Tensor],
    source: str,
    *,
    heads: Sequence[tuple[str, ...]] = (),
) -> tuple[str, ...]:
    """Load a state dict that must fit the network; return the modules that it does not fill.

    `heads` are modules that may be left out, from one layer to more of them: the least is.
    """
    for head in heads[:-1]:
        with suppress(WeightsError):
            return _load(network, state, source, head)
    return _load(network, state, source, heads[-1] if heads else ())


def _load(
    network: torch.nn.Module,
    state: Mapping[str, torch.Tensor],
    source: str,
    head: tuple[str, ...],
) -> tuple[str, ...]:
    wanted = network.state_dict()
    shapes = [
        key
        for key, value in wanted.items()
        if key in state and not is_lazy(value) and state[key].shape != value.shape
    ]
    other_head = [key for key in shapes if _in(key, head)]
    given = OrderedDict((k, v) for k, v in state.items() if not (other_head and _in(k, head)))
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
        if not _in(key, head)
    ]
    problems = [
        f"{len(keys)} {what} ({few(keys)})"
        for what, keys in (
            ("of another shape", described),
            ("missing", [key for key in missing if not _in(key, head)]),
            ("unexpected", [key for key in unexpected if not _in(key, head)]),
        )
        if keys
    ]
    if problems:
        raise WeightsError(
            f"{source} holds the weights of another network than {type(network).__name__}: "
            f"{'; '.join(problems)}. Name the backbone that they were trained in"
        )
    return head if other_head or missing or unexpected else ()


def _in(key: str, heads: Sequence[str]) -> bool:
    return key.startswith(tuple(f"{head}." for head in heads))
