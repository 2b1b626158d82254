"""What is known of every backbone without loading it: for ``featx list backbones``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files

import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from featx.backbones import factories, outline, timm_models, torchvision_models
from featx.backbones.recipe import LoadedNetwork
from featx.backbones.timm_weights import pinned_tags
from featx.errors import FeatxError
from featx.network_names import PACKAGED, PACKAGED_TAG, TIMM

__all__ = ["MOST_MEASURED", "Facts", "list_facts"]

MOST_MEASURED = 12
"""The most networks of timm that are built (without values) to be measured in one list."""

_TABLE = "torchvision_facts.tsv"
_SWAG = "CC-BY-NC-4.0"


@dataclass(frozen=True)
class Facts:
    """What a list shows of one backbone."""

    name: str
    weights: str
    input_px: int | None = None
    n_features: int | None = None
    n_parameters: int | None = None
    gmacs: float | None = None
    licence: str = ""
    others: tuple[str, ...] = ()


def list_facts(pattern: str | None = None) -> list[Facts]:
    """List backbones without downloading anything."""
    if pattern is not None and pattern.startswith("timm"):
        return _timm_facts(pattern)
    own = [*_packaged_facts(), *(Facts(name, "own") for name in factories.available())]
    known = {facts.name: facts for facts in own}
    known |= {name: _torchvision_facts(name) for name in torchvision_models.available()}
    return [known[name] for name in sorted(_matching(known, pattern))]


def _matching(names: Iterable[str], pattern: str | None) -> list[str]:
    if not pattern:
        return list(names)
    wanted = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    return [name for name in names if fnmatchcase(name, wanted)]


def _packaged_facts() -> list[Facts]:
    counts = (
        (224, 62_720, 4_652_008, 0.385),
        (240, 81_920, 5_416_680, 0.600),
        (260, 103_680, 6_092_072, 0.860),
    )
    both = zip(PACKAGED, counts, strict=True)
    return [Facts(name, PACKAGED_TAG, *known, "Apache-2.0") for name, known in both]


@cache
def default_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of the default feature points of torchvision's networks at their own sizes."""
    text = (files("featx.backbones") / _TABLE).read_text(encoding="ascii")
    rows = (line.split("\t") for line in text.splitlines() if not line.startswith("#"))
    return {row[0]: tuple(map(int, row[1].split("x"))) for row in rows}


def _torchvision_facts(name: str) -> Facts:
    tag = torchvision_models.default_tag(name)
    entries = {entry.name: entry for entry in models.get_model_weights(name)}
    meta = entries[tag].meta
    shape = default_shapes().get(name)
    return Facts(
        name=name,
        weights=tag,
        input_px=entries[tag].transforms().crop_size[0],
        n_features=None if shape is None else torch.Size(shape).numel(),
        n_parameters=meta["num_params"],
        gmacs=meta.get("_ops"),
        licence=_SWAG if "SWAG" in meta.get("license", "") else "BSD-3-Clause",
        others=tuple(other for other in entries if other != tag),
    )


def _timm_facts(pattern: str) -> list[Facts]:
    timm = timm_models.import_timm()
    pattern = TIMM if pattern == TIMM.rstrip("/") else pattern
    is_by_tag = "." in pattern
    names = timm.list_pretrained() if is_by_tag else pinned_tags()
    chosen = sorted(_matching((TIMM + name for name in names), pattern))
    return [
        _one_of_timm(name, is_by_tag, is_measured=len(chosen) <= MOST_MEASURED) for name in chosen
    ]


def _one_of_timm(name: str, is_by_tag: bool, *, is_measured: bool) -> Facts:
    architecture, tag = timm_models.resolve(name)
    cfg = timm_models.config(architecture, tag)
    others = () if is_by_tag else tuple(t for t in timm_models.tags(architecture) if t != tag)
    n_features, n_parameters, gmacs = measure(name) if is_measured else (None, None, None)
    return Facts(
        name=name,
        weights=tag,
        input_px=int(cfg["input_size"][-1]),
        n_features=n_features,
        n_parameters=n_parameters,
        gmacs=gmacs,
        licence=str(cfg.get("license") or ""),
        others=others,
    )


def measure(name: str) -> tuple[int | None, int | None, float | None]:
    """Build a network without values and count."""
    try:
        loaded = outline(name, {})
        taps = loaded.tap(loaded.preprocessing.crop_px)
        n_features = taps.find(None).n_values
    except FeatxError:
        return None, None, None
    n_parameters = sum(parameter.numel() for parameter in loaded.network.parameters())
    return n_features, n_parameters, _gmacs(loaded)


def _gmacs(loaded: LoadedNetwork) -> float | None:
    side = loaded.preprocessing.crop_px
    device = next(loaded.network.parameters()).device
    counter = FlopCounterMode(display=False)
    try:
        with torch.device(device), counter, torch.no_grad():
            loaded.network(torch.empty(1, 3, side, side))
    except (NotImplementedError, RuntimeError):
        return None
    return counter.get_total_flops() / 2 / 1e9
