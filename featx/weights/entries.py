"""Which of the networks in a checkpoint is meant.

Training programs write averaged weights (EMA) beside the plain ones, a teacher beside its student,
a generator beside its discriminator. Averaged weights are taken where there are any, as timm does;
between networks of which none is known to be the one, nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from featx.errors import WeightsError

__all__ = ["PREFIXES", "Entry", "few", "find_entry"]

PREFIXES = ("module.", "_orig_mod.")
_AVERAGED = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict"),
    *("ema_model", "ema", "module_ema"),
)
_PLAIN = ("state_dict", "model", "model_state_dict", "module")
_MOST_LISTED = 12
_COUNTERS = {"n_averaged", "steps"}  # of averaged models in torch.optim.swa_utils and MMEngine


@dataclass(frozen=True)
class Entry:
    """One entry of a checkpoint: its tensors, the names that lead to it, and what was left."""

    found: Mapping[Any, Any]
    names: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def is_averaged(self) -> bool:
        """Whether it was taken because it is named as averaged weights are."""
        return bool(set(self.names) & set(_AVERAGED))


def find_entry(found: Mapping[Any, Any], key: str | None, source: str) -> Entry:
    """Take the entry that `key` names, and off it what training programs wrap around networks."""
    entry = Entry(found) if key is None else Entry(_below(found, key, source), (key,))
    while name := _known(entry.found, source):
        others = [k for k in entry.found if k != name and _is_worth_naming(entry.found, k)]
        entry = Entry(entry.found[name], (*entry.names, name), (*entry.left, *map(str, others)))
    rest = {k: value for k, value in entry.found.items() if k not in _COUNTERS}
    is_counted = len(rest) < len(entry.found) and all(str(k).startswith("module.") for k in rest)
    return replace(entry, found=rest) if is_counted else entry


def _below(found: Mapping[Any, Any], key: str, source: str) -> Mapping[Any, Any]:
    """Everything whose dotted name begins with `key`: an entry, or some keys of a state dict."""
    if isinstance(found.get(key), Mapping):
        inside: Mapping[Any, Any] = found[key]
        return inside
    below = {str(k)[len(key) + 1 :]: v for k, v in found.items() if str(k).startswith(f"{key}.")}
    for name, value in found.items():
        if not below and isinstance(value, Mapping) and key.startswith(f"{name}."):
            return _below(value, key.removeprefix(f"{name}."), source)
    if below:
        return below
    names = [str(k) for k, value in found.items() if isinstance(value, Mapping)]
    names = names or sorted({str(k).partition(".")[0] for k in found})
    raise WeightsError(
        f"{source} has no entry {key!r}: --weights-key takes {few(names, _MOST_LISTED)}"
    )


def _known(found: Mapping[Any, Any], source: str) -> str | None:
    """Name of the network in a checkpoint; None where it is a state dict, or nothing known."""
    networks = [str(name) for name in found if _is_network(found, name)]
    names = (*_PLAIN, *_AVERAGED) if _is_swapped(found) else (*_AVERAGED, *_PLAIN)
    known = next((n for n in names if n in networks), None)
    if known is None and len(networks) > 1:
        raise WeightsError(
            f"{source} holds several networks: choose one with --weights-key "
            f"(weights_key in Python): {few(networks, _MOST_LISTED)}"
        )
    if known is None:
        return networks[0] if networks else None
    strange = set(networks) - {*_AVERAGED, *_PLAIN}
    alike = sorted(n for n in strange if _keys(found[n]) == _keys(found[known]))
    if alike:
        raise WeightsError(
            f"{source} holds several networks of one kind: choose one with --weights-key "
            f"(weights_key in Python): {few([known, *alike], _MOST_LISTED)}"
        )
    return known


def _is_network(found: Mapping[Any, Any], name: Any) -> bool:
    """Whether an entry is a state dict, or wraps one; that of an optimiser has numbers as keys."""
    value = found[name]
    if not isinstance(value, Mapping) or not value or not all(isinstance(k, str) for k in value):
        return False
    if all(isinstance(tensor, torch.Tensor) for tensor in value.values()):
        return True
    wrapped = any(_is_network(value, inner) for inner in (*_AVERAGED, *_PLAIN) if inner in value)
    return wrapped or name in _PLAIN


def _is_swapped(found: Mapping[Any, Any]) -> bool:
    """Whether the averaged weights stand in ``state_dict``, and the plain ones in the other entry.

    MMEngine's hook saves them so. Its averaged model counts its steps.
    """
    return "state_dict" in found and "steps" in (found.get("ema_state_dict") or ())


def _is_worth_naming(found: Mapping[Any, Any], name: Any) -> bool:
    """Whether an entry is a network, or averaged weights, or has such in it (in callbacks)."""
    value = found[name]
    if not isinstance(value, Mapping) or not value:
        return False
    parts = ({name}, value, *filter(lambda part: isinstance(part, Mapping), value.values()))
    is_averaged = any({*_AVERAGED} & {*part} for part in parts)
    return is_averaged or _is_network(found, name)


def _keys(state: Mapping[str, Any]) -> set[str]:
    keys = set(state) - _COUNTERS
    for prefix in PREFIXES:
        keys = {key.removeprefix(prefix) for key in keys}
    return keys


def few(names: Sequence[str], n: int = 3) -> str:
    """Name the first `n` of many, and say how many more there are."""
    more = f", and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[:n]) + more
