"""Pretrained networks by name, cut off at an explicit feature point.

In: a name (torchvision, timm, packaged, a trained file, a function of the user's), weights, layer,
pooling and changes to the preprocessing. Out: a `Backbone`: the network up to its feature point,
its preprocessing, the shape of a feature, the identity of its weights. The way: the recipe of a
library gives a `LoadedNetwork`; taps find its layers; `base` cuts it. The room must not know
images, devices, caches or commands.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from featx.backbones import factories, timm_models, torchvision_models, trained
from featx.backbones.base import Backbone, BackboneGroup
from featx.backbones.libraries import find_library, load_from_library, refuse_key
from featx.backbones.own_code import check_own_code
from featx.backbones.pools import pooled_shape
from featx.backbones.recipe import OUTLINE, LoadedNetwork
from featx.backbones.taps import TapPoint, Taps
from featx.backbones.trained import (
    TrainedNetwork,
    TrainedRecord,
    is_trained,
    open_trained,
    read_trained,
    save_trained,
)
from featx.errors import UsageError, WeightsError
from featx.network_names import PACKAGED, PACKAGED_TAG, TIMM
from featx.progress import SILENT, Reporter
from featx.words import POOLS, as_only, as_text, with_side

__all__ = [
    "POOLS",
    "Backbone",
    "BackboneGroup",
    "TapPoint",
    "TrainedNetwork",
    "TrainedRecord",
    "available_backbones",
    "check_backbone",
    "default_weights",
    "is_trained",
    "list_layers",
    "open_backbone",
    "open_backbones",
    "open_trained",
    "save_trained",
]


def available_backbones() -> tuple[str, ...]:
    """Names that `open_backbone` takes, sorted.

    Besides these it takes ``timm/NAME``, ``timm/NAME.TAG``, ``module:function``, and the path of
    a file that `save_trained` wrote.
    """
    plain = (*torchvision_models.available(), *PACKAGED)
    return tuple(sorted({*plain, *factories.available()}))


def default_weights(name: str | os.PathLike[str]) -> str:
    """Tag of the weights that a backbone uses when none are asked for."""
    name = timm_models.canonical(as_text(name))
    if name in PACKAGED:
        return PACKAGED_TAG
    if is_trained(name):
        return "own"
    if name.startswith(TIMM):
        return timm_models.resolve(name)[1]
    return "own" if factories.is_factory(name) else torchvision_models.default_tag(name)


def open_backbone(  # noqa: PLR0913 - options of a command, all by name
    name: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    layer: str | None = None,
    pool: str = "none",
    overrides: Mapping[str, Any] | None = None,
    weights_key: str | None = None,
    allow_code: Collection[str] = (),
    reporter: Reporter = SILENT,
) -> Backbone:
    """Load a pretrained network and cut it off at a layer.

    Parameters
    ----------
    name : str
        One of `available_backbones`, ``timm/NAME[.TAG]``, ``module:function`` for a
        function of your own, see `featx.backbones.factories`, or the file of a trained network.
    weights : str or path-like, optional
        Tag of the weights, path of a file, ``random`` or ``random:SEED``.
    layer : str, optional
        Layer; the last convolutional feature map (for transformers the class
        token before the head) by default.
    pool : str, default="none"
        One of `POOLS`.
    overrides : mapping, optional
        Changes to the weights' own preprocessing, see `Preprocessing.override`.
    weights_key : str, optional
        Entry of the file `weights`, where it holds several networks: ``state_dict``,
        ``teacher``, ``state_dict.student``. By default averaged weights (EMA) where there are any.
    allow_code : collection of str, optional
        Functions ``module:function`` that a file may name: only these, and `name`, are imported.
    reporter : Reporter
        Shows downloads.

    Returns
    -------
    Backbone
        On the CPU, in evaluation mode.

    Raises
    ------
    UsageError
        If a name is unknown or `pool` does not fit the layer.
    WeightsError
        If the weights cannot be had or are of another network.
    BackboneError
        If the network does not run at the input size.
    """
    options: dict[str, Any] = {"overrides": overrides, "reporter": reporter}
    options |= {"weights": weights, "weights_key": weights_key}
    several = "open several with featx.backbones.open_backbones"
    options["layers"] = [as_only("layer", layer, several)]
    options["pool"] = as_only("pool", pool, several)
    return open_backbones(name, allow_code=(as_text(name), *allow_code), **options)[0]


def open_backbones(  # noqa: PLR0913 - options of a command, all by name
    name: str | os.PathLike[str],
    *,
    layers: str | Sequence[str | None] = (None,),
    pool: str | Sequence[str] = "none",
    weights: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    weights_key: str | None = None,
    allow_code: Collection[str] = (),
    reporter: Reporter = SILENT,
) -> BackboneGroup:
    """Load a pretrained network once and cut it off at several feature points."""
    changes = with_side(overrides)
    loaded = load_network(name, weights, changes, reporter, allow_code, weights_key)
    taps = loaded.tap(loaded.preprocessing.crop_px)
    points = [taps.find(layer) for layer in ([layers] if isinstance(layers, str) else layers)]
    pools = [pool] * len(points) if isinstance(pool, str) else list(pool)
    _check_points(loaded, taps, points, pools)
    network = taps.cut_many([point.name for point in points]).requires_grad_(False)
    members = (_member(loaded, taps, *pair) for pair in zip(points, pools, strict=True))
    group = BackboneGroup(tuple(members), network)
    if loaded.is_own_code:
        check_own_code(group)
    return group


def _check_points(
    loaded: LoadedNetwork, taps: Taps, points: Sequence[TapPoint], pools: Sequence[str]
) -> None:
    if not points or len(points) != len(pools):
        raise UsageError(f"{len(pools)} pools were given for {len(points)} layers")
    for i, (point, pool) in enumerate(zip(points, pools, strict=True)):
        pooled_shape(point.shape, pool, has_class_token=point.has_class_token)
        if (point, pool) in zip(points[:i], pools[:i], strict=True):
            raise UsageError(f"layer {point.name} with pool {pool} is asked for twice")
        if loaded.unfilled and taps.lies_behind(point.name, loaded.unfilled):
            raise WeightsError(
                f"layer {point.name} is, or lies behind, the classifier, which "
                f"{loaded.weights.file} does not fill: choose an earlier layer"
            )


def _member(loaded: LoadedNetwork, taps: Taps, point: TapPoint, pool: str) -> Backbone:
    return Backbone(
        name=loaded.name,
        layer=point.name,
        is_default_layer=point.name == taps.default,
        pool=pool,
        network=taps.cut(point.name).requires_grad_(False),
        weights=loaded.weights,
        preprocessing=loaded.preprocessing,
        map_shape=point.shape,
        n_prefix_tokens=point.n_prefix_tokens,
        variant=tuple(filter(None, (loaded.variant, point.variant))),
        source_sha256=loaded.source_sha256,
    )


def list_layers(
    name: str | os.PathLike[str],
    *,
    overrides: Mapping[str, Any] | None = None,
    allow_code: Collection[str] = (),
) -> tuple[tuple[TapPoint, ...], str | None]:
    """Layers of a network, without its weights."""
    loaded = outline(as_text(name), with_side(overrides), (as_text(name), *allow_code))
    taps = loaded.tap(loaded.preprocessing.crop_px)
    return taps.points, taps.default


def outline(
    name: str, overrides: Mapping[str, Any], allow_code: Collection[str] = ()
) -> LoadedNetwork:
    """Load a network to look at: without values where that is possible."""
    name = timm_models.canonical(name)  # "hf_hub:timm/NAME" has the colon of "module:function"
    weights = None if factories.is_factory(name) else OUTLINE
    return load_network(name, weights, overrides, SILENT, allow_code)


def check_backbone(name: str | os.PathLike[str]) -> None:
    """Refuse a name that `open_backbone` would not know, without loading anything."""
    name = timm_models.canonical(as_text(name))
    if name.startswith(TIMM):
        timm_models.resolve(name)
    elif is_trained(name):
        read_trained(Path(name))
    else:
        find_library(name)


def load_network(
    name: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None,
    overrides: Mapping[str, Any],
    reporter: Reporter,
    allow_code: Collection[str] = (),
    weights_key: str | None = None,
) -> LoadedNetwork:
    """Load a whole network, not cut off yet."""
    name, weights = str(as_text(name)), None if weights is None else str(as_text(weights))
    if not name.startswith(TIMM):
        name = timm_models.canonical(name)
    if name.startswith(TIMM) or not is_trained(name):
        return load_from_library(name, weights, overrides, reporter, allow_code, weights_key)
    if weights_key is not None:
        raise refuse_key()
    return trained.load(name, weights, overrides, allow_code)
