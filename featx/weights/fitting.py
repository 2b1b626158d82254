"""The part of a file that fits a network, and filling the network with it.

Training programs write a network as a part of another one (``model.``, ``backbone.`` beside a
head, ``encoder_q.`` beside ``encoder_k.``) and below names of their own. Where what is usually
taken does not fit, every part of the file is tried that holds most of the network's names.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.nn.parameter import is_lazy

from featx.errors import WeightsError
from featx.progress import Reporter
from featx.weights.base import Weights, state_sha256
from featx.weights.entries import few
from featx.weights.files import StoredFile
from featx.weights.reading import check_size, is_plain, read_file, unwrap

__all__ = [
    "fill_from_file",
    "load_into",
]


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


T = TypeVar("T")
State = dict[str, torch.Tensor]

_COUNTS = ("total_ops", "total_params")  # which the package thop adds to every module
_MOST_TRIED = 12


def fill_from_file(
    file: StoredFile,
    key: str | None,
    fill: Callable[[State], T],
    wanted: Callable[[], Collection[str]],
    reporter: Reporter,
    *,
    tag: str = "",
    default: str = "",
) -> tuple[Weights, State, T]:
    """Fill a network with the one part of a file that fits; return that part and what `fill` gave.

    `fill` raises a `WeightsError` where a state dict does not fit. `wanted` gives the names in the
    network's own state dict. `tag` is the name of the weights where they are a library's own, and
    `default` that of the usual ones.
    """
    path = file.path
    found = read_file(path)
    try:
        state, said = unwrap(found, path, key)
        state = _without_counts(state, wanted)
        filled = fill(state)
    except WeightsError as error:
        said, state, filled = _only_fit(found, path, key, fill, wanted(), error)
    if said:
        reporter.say(said)
    digest = state_sha256(state)
    record = Weights.of_file(path, digest, file.sha256, key, default)
    if tag:
        record = Weights(tag, digest, str(path), tag == default, file.sha256)
    return record, state, filled


def _without_counts(state: State, wanted: Callable[[], Collection[str]]) -> State:
    counts = [name for name in state if name.rpartition(".")[2] in _COUNTS]
    for name in set(counts).difference(wanted() if counts else ()):
        del state[name]
    return state


def _only_fit(
    found: Any,
    path: Path,
    key: str | None,
    fill: Callable[[State], T],
    wanted: Collection[str],
    error: WeightsError,
) -> tuple[str, State, T]:
    """Find the part that fits, and say which; raise the error of the likeliest where none does."""
    tensors = dict(_tensors(found, set()))
    modules = {name.partition(".")[0] for name in wanted}
    fits: dict[str, tuple[State, T]] = {}
    left: dict[str, list[str]] = {}
    errors = []
    for prefix, front in _places(tensors, wanted, key)[:_MOST_TRIED]:
        state: State = OrderedDict(
            (front + name[len(prefix) :], tensor)
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        )
        below = prefix.rstrip(".")
        left[below] = _take_beside(state, modules)
        if not all(map(is_plain, state.values())):
            raise error
        try:
            check_size(path, sum(value.numel() * value.element_size() for value in state.values()))
            state = _without_counts(state, lambda: wanted)
            fits[below] = state, fill(state)
        except WeightsError as reason:
            errors.append(reason)
    if len(fits) > 1 and "" not in fits:
        raise WeightsError(
            f"{path} holds several networks that fit: choose one with --weights-key (weights_key "
            f"in Python): {few([*fits], _MOST_TRIED)}"
        ) from error
    if not fits:
        raise errors[0] if errors else error
    below = min(fits)
    what = f"the weights below {below!r} are" if below else "the network at its top is"
    rest = f"; left: {few(left[below])}" if left[below] else ""
    return f"{path}: {what} taken, the only part of it that fits{rest}", *fits[below]


def _take_beside(state: State, modules: Collection[str]) -> list[str]:
    """Take out what stands beside the network: modules that it has not, such as another head.

    A tensor of no module (a token of a transformer) may be a part of what the network computes.
    """
    beside = [name for name in state if "." in name and name.partition(".")[0] not in modules]
    for name in beside:
        del state[name]
    return list(dict.fromkeys(name.partition(".")[0] for name in beside))


def _tensors(found: Any, seen: set[int]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor, with the names that lead to it."""
    if isinstance(found, Mapping) and id(found) not in seen:
        seen.add(id(found))
        for name, value in found.items():
            if isinstance(value, torch.Tensor):
                yield str(name), value
            else:
                yield from ((f"{name}.{inner}", tensor) for inner, tensor in _tensors(value, seen))


def _places(
    names: Collection[str], wanted: Collection[str], key: str | None
) -> list[tuple[str, str]]:
    """Prefixes below which at least half of the wanted names stand, the fullest first.

    Each comes with what the network's own names have before them: it may be a part of the file, or
    the file a part of it.
    """
    counted: Counter[tuple[str, str]] = Counter()
    first, last = min(wanted, default="").split("."), max(wanted, default="").split(".")
    shared = [*takewhile(lambda pair: pair[0] == pair[1], zip(first[:-1], last, strict=False))]
    for front in ("".join(f"{part}." for part, _ in shared[:n]) for n in range(len(shared) + 1)):
        inner = {name.removeprefix(front) for name in wanted}
        for name in names:
            starts = [0, *(i + 1 for i, letter in enumerate(name) if letter == ".")]
            places = [name[:start] for start in starts if name[start:] in inner]
            counted.update((p, front) for p in places if not front or not p.endswith(front))
    enough = [place for place, n in counted.most_common() if 2 * n >= len(wanted)]
    return [place for place in enough if key is None or f".{key}." in f".{place[0]}"]
