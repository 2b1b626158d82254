"""All image networks of timm, with the preprocessing of their ``pretrained_cfg``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featx.backbones.base import OUTLINE, LoadedNetwork
from featx.backbones.fake import without_values
from featx.backbones.local_files import (
    assume,
    note_positions,
    preprocessing_from_options,
)
from featx.backbones.timm_taps import TimmTaps
from featx.backbones.timm_weights import find_weights, pinned_tags
from featx.errors import BackboneError, MissingExtraError, UsageError, WeightsError, unknown_name
from featx.network_names import TIMM, canonical_prefix, choose_file, parse_random, unknown_network
from featx.preprocess import Preprocessing
from featx.progress import Reporter
from featx.weights import (
    StoredFile,
    Weights,
    fill_from_file,
    state_sha256,
    stored,
)

__all__ = ["canonical", "config", "default_tag", "import_timm", "load", "resolve", "tags"]


def import_timm() -> Any:
    """Import timm."""
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise MissingExtraError("timm", "timm", "a backbone of timm") from error


def canonical(name: str) -> str:
    """Give the name that timm uses today: of ``hf_hub:timm/NAME``, and of names that moved."""
    name = canonical_prefix(name)
    if not name.startswith(TIMM):
        return name
    architecture, dot, tag = name.removeprefix(TIMM).partition(".")
    current = import_timm().models.get_deprecated_models().get(architecture)
    if current is None:
        return name
    return TIMM + (f"{current.partition('.')[0]}.{tag}" if dot else current)


def resolve(name: str, weights: str | None = None) -> tuple[str, str]:
    """Architecture and tag of a name."""
    timm = import_timm()
    architecture, _, tag = canonical(name).removeprefix(TIMM).partition(".")
    if not timm.is_model(architecture):
        raise unknown_network(TIMM + architecture)
    known = tags(architecture)
    if weights in known:
        if tag and tag != weights:
            raise UsageError(f"{name} names the weights {tag}, --weights names {weights}: give one")
        tag = str(weights)
    tag = tag or default_tag(architecture)
    if tag and tag not in known:
        raise unknown_name(f"weights of {TIMM}{architecture}", tag, known)
    return architecture, tag


def default_tag(architecture: str) -> str:
    """Tag of the weights of a bare name: pinned by featx, see `pinned_tags`."""
    known = tags(architecture)
    for tag in (pinned_tags().get(architecture), config(architecture, "").get("tag"), *known):
        if tag in known:
            return str(tag)
    return ""


def tags(architecture: str) -> list[str]:
    """Tags of the weights of an architecture, in timm's order."""
    return _all_tags().get(architecture, [])


@cache
def _all_tags() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in import_timm().list_pretrained():
        architecture, _, tag = name.partition(".")
        found.setdefault(architecture, []).append(tag)
    return found


def config(architecture: str, tag: str) -> dict[str, Any]:
    """Read timm's record of a network: preprocessing, licence, where the weights lie."""
    name = f"{architecture}.{tag}" if tag else architecture
    found = import_timm().models.get_pretrained_cfg(name)
    return dict(found.to_dict()) if found else {}


def load(
    name: str,
    weights: str | None,
    overrides: Mapping[str, Any],
    reporter: Reporter,
    weights_key: str | None = None,
) -> LoadedNetwork:
    """Build a network of timm and fill it.

    Parameters
    ----------
    name : str
        ``timm/ARCHITECTURE`` or ``timm/ARCHITECTURE.TAG``.
    weights : str or None
        A tag, path of a file, ``random`` or ``random:SEED``.
    overrides : mapping
        Keyword arguments of `Preprocessing.override`.
    reporter : Reporter
        Shows downloads.
    weights_key : str, optional
        Entry of a file, see `read_state_dict`.

    Returns
    -------
    LoadedNetwork
        In evaluation mode, on the CPU; its name has the tag where these are timm's weights.

    Raises
    ------
    UsageError, WeightsError, BackboneError
        If the name is unknown, the weights cannot be had or do not fit, or the network
        cannot be built for the input size.
    """
    if canonical(name) != name:
        reporter.say(f"{name} is {canonical(name)} today")
        name = canonical(name)
    architecture, tag = resolve(name, weights)
    cfg = config(architecture, tag)
    if weights == OUTLINE:
        network = _outline(architecture, cfg, _preprocessing(name, cfg, overrides).crop_px)
        return _loaded(name, network, Weights(OUTLINE, ""), _preprocessing(name, cfg, overrides))
    seed = parse_random(weights) if weights else None
    is_known = bool(tag) or seed is not None
    preprocessing = _preprocessing(name, cfg if is_known else {}, overrides)
    px = preprocessing.crop_px
    if seed is not None:
        network = _build(architecture, cfg, px, seed=seed)
        record = Weights(f"random:{seed}", state_sha256(network.state_dict()))
        return _loaded(name, network, record, preprocessing)
    is_own = weights is None or weights == tag
    if not is_own:
        found = _local(name, str(weights), cfg, overrides, reporter)
    elif tag:
        found = find_weights(cfg, reporter)
        name = f"{TIMM}{architecture}.{tag}"
    else:
        raise WeightsError(
            f"timm has no weights for {name}: give --weights FILE, or random for a dry run"
        )
    if cfg.get("notes"):
        reporter.say(f"{name}: timm notes: {'; '.join(map(str, cfg['notes']))}")
    used = tag if is_own else ""
    record, state, (network, said) = fill_from_file(
        found,
        weights_key,
        lambda state: _filled(architecture, cfg, px, found.path, state, used),
        lambda: _outline(architecture, cfg, px).state_dict(),
        reporter,
        tag=used,
        default=used,
    )
    if said:
        reporter.say(f"{found.path}: {said}")
    return _loaded(name, network, record, note_positions(preprocessing, state, network))


def _loaded(
    name: str, network: nn.Module, weights: Weights, preprocessing: Preprocessing
) -> LoadedNetwork:
    return LoadedNetwork(
        name=name,
        network=network,
        weights=weights,
        preprocessing=preprocessing,
        tap=lambda input_px: TimmTaps(network, input_px),
    )


def _outline(architecture: str, cfg: Mapping[str, Any], px: int) -> nn.Module:
    return without_values(lambda: _build(architecture, cfg, px))


def _preprocessing(
    name: str, cfg: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Preprocessing:
    if not cfg:
        return preprocessing_from_options(name, overrides)
    channels, height, width = cfg["input_size"]
    if channels != 3:
        raise BackboneError(f"{name} takes images of {channels} channels, featx gives 3 (RGB)")
    if height != width and "input_size" not in overrides:
        raise UsageError(
            f"{name} was trained on images of {height} x {width} pixels, and featx gives square "
            "ones: choose --input-size"
        )
    side = overrides.get("input_size", width)
    square = cfg if height == width else {**cfg, "input_size": (channels, side, side)}
    return Preprocessing.from_timm(square, _origin(cfg)).override(**overrides)


def _origin(cfg: Mapping[str, Any]) -> str:
    return f"timm {cfg['architecture']}.{cfg.get('tag') or ''}".rstrip(".")


def _local(
    name: str,
    spec: str,
    cfg: Mapping[str, Any],
    overrides: Mapping[str, Any],
    reporter: Reporter,
) -> StoredFile:
    architecture = str(cfg.get("architecture", name.removeprefix(TIMM)))
    path = choose_file(name, spec, [*tags(architecture), "random"])
    if cfg.get("tag"):
        assume(path, _origin(cfg), overrides, reporter)
    return stored(path)


def _filled(
    architecture: str,
    cfg: Mapping[str, Any],
    px: int,
    path: Path,
    state: Mapping[str, torch.Tensor],
    tag: str,
) -> tuple[nn.Module, str]:
    """Build the network for a state dict; with a sentence that says what is another in it."""
    usual = int(cfg.get("num_classes") or 0)
    state = _as_clip(state)
    first: Exception | None = None
    for n_classes, pool in [(usual, "")] if tag else _forms(cfg, state):
        overlay = {"state_dict": dict(state), "num_classes": n_classes}
        try:
            network = _build(architecture, cfg, px, overlay=overlay, pool=pool)
        except _DOES_NOT_FIT as error:
            first = first or error
            continue
        except BackboneError:
            if first is None:
                raise
            continue
        said = f"its classifier has {n_classes} classes, and is not used"
        pooled = f"its tokens are pooled by {pool!r}, which its norm shows" if pool else ""
        return network, "; ".join(filter(None, [said if n_classes != usual else "", pooled]))
    size = "" if px == cfg["input_size"][-1] else f" at {px} pixels"
    mend = "leave --input-size out, or name" if size else "Name"
    raise WeightsError(
        f"{path} holds the weights of another network than timm's {architecture}{size}: "
        f"{_summary(first)}. {mend.capitalize()} the backbone that they were trained in"
    ) from first


_DOES_NOT_FIT = (RuntimeError, KeyError, ValueError, TypeError, AttributeError, AssertionError)


def _as_clip(state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Put OpenAI's image tower under the name where timm looks for it."""
    towers = [name.removesuffix(_OPENAI) for name in state if name.endswith(_OPENAI)]
    if len(towers) != 1 or f"{towers[0]}conv1.weight" not in state:
        return state
    inside = {k.removeprefix(towers[0]): v for k, v in state.items() if k.startswith(towers[0])}
    return {f"visual.{name}": tensor for name, tensor in inside.items()}


_OPENAI = "class_embedding"


def _forms(cfg: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> list[tuple[int, str]]:
    """Numbers of classes, and ways to pool tokens, that a file may have; the likeliest first."""
    paths = cfg.get("classifier") or ()
    first = paths if isinstance(paths, str) else next(iter(paths), "")
    usual = int(cfg.get("num_classes") or 0)
    heads = (state.get(f"{path}.weight") for path in (first, "visual.head.proj", "head"))
    found = [int(weight.shape[0]) for weight in heads if weight is not None]
    found += [int(state[name].shape[1]) for name in ("visual.proj",) if name in state]
    bare = 0 if first and "." not in first else usual
    own = found[:1] if f"{first}.weight" in state else [bare]
    counts = dict.fromkeys([*own, *found, usual, 0])
    has_norm, has_pooled = (f"{name}.weight" in state for name in ("norm", "fc_norm"))
    other = {(True, False): ["token"], (False, True): ["avg"]}.get((has_norm, has_pooled), [])
    return [(n, pool) for pool in ("", *other) for n in counts]


def _summary(error: Exception | None) -> str:
    lines = [line.strip().rstrip(". ") for line in str(error).splitlines() if line.strip()]
    text = "; ".join(lines[1:] or lines)
    return text if len(text) <= 300 else f"{text[:300]} …"


def _build(
    architecture: str,
    cfg: Mapping[str, Any],
    px: int,
    *,
    seed: int = 0,
    overlay: Mapping[str, Any] | None = None,
    pool: str = "",
) -> nn.Module:
    """Build a network; position embeddings are interpolated by timm as it loads a state dict."""
    name = f"{architecture}.{cfg['tag']}" if cfg.get("tag") else architecture
    options: dict[str, Any] = {"global_pool": pool} if pool else {}
    if overlay is not None:
        options |= {"pretrained": True, "pretrained_cfg_overlay": dict(overlay)}
        options["num_classes"] = overlay["num_classes"]
    if cfg.get("fixed_input_size") and tuple(cfg["input_size"][1:]) != (px, px):
        options["img_size"] = px
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network: nn.Module = import_timm().create_model(name, **options)
    except (TypeError, AssertionError, ValueError) as error:
        if "img_size" not in options:
            raise
        side = cfg["input_size"][-1]
        raise BackboneError(
            f"{TIMM}{name} cannot be built for an input size of {px} pixels "
            f"({_summary(error)}): its weights are for {side} pixels"
        ) from error
    return network.eval()
