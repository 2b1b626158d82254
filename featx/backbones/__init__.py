"""Pretrained networks by name, cut off at an explicit feature point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from featx.backbones import embedded, torchvision_models
from featx.backbones.base import POOLS, Backbone, LoadedNetwork, pooled_shape
from featx.backbones.taps import TapPoint
from featx.errors import unknown_name
from featx.progress import SILENT, Reporter

__all__ = [
    "POOLS",
    "Backbone",
    "TapPoint",
    "available_backbones",
    "default_weights",
    "list_layers",
    "open_backbone",
]

_Loader = Callable[[str, str | None, Mapping[str, Any], Reporter], LoadedNetwork]


def available_backbones() -> tuple[str, ...]:
    """Names that `open_backbone` takes, sorted."""
    return tuple(sorted((*torchvision_models.available(), embedded.NAME)))


def default_weights(name: str) -> str:
    """Tag of the weights that a backbone uses when none are asked for.

    Parameters
    ----------
    name : str
        One of `available_backbones`.

    Returns
    -------
    str
        A pinned tag, never a moving default.
    """
    return "EMBEDDED" if name == embedded.NAME else torchvision_models.default_tag(name)


def open_backbone(
    name: str,
    *,
    weights: str | None = None,
    layer: str | None = None,
    pool: str = "none",
    overrides: Mapping[str, Any] | None = None,
    reporter: Reporter = SILENT,
) -> Backbone:
    """Load a pretrained network and cut it off at its feature point.

    Parameters
    ----------
    name : str
        One of `available_backbones`.
    weights : str, optional
        Tag of the weights, path of a file, ``random`` or ``random:SEED``.
    layer : str, optional
        Tap point; the last convolutional feature map (for transformers the class
        token before the head) by default.
    pool : str, default="none"
        One of `POOLS`.
    overrides : mapping, optional
        Changes to the weights' own preprocessing, see `Preprocessing.override`.
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
    loaded = _load(name, weights, overrides or {}, reporter)
    taps = loaded.tap(loaded.preprocessing.crop_px)
    point = taps.find(layer)
    pooled_shape(point.shape, pool)
    return Backbone(
        name=name,
        layer=point.name,
        is_default_layer=point.name == taps.default,
        pool=pool,
        network=taps.cut(point.name).requires_grad_(False),
        weights=loaded.weights,
        preprocessing=loaded.preprocessing,
        map_shape=point.shape,
    )


def list_layers(
    name: str, *, overrides: Mapping[str, Any] | None = None
) -> tuple[tuple[TapPoint, ...], str]:
    """Tap points of a network, without its weights.

    Parameters
    ----------
    name : str
        One of `available_backbones`.
    overrides : mapping, optional
        Changes to the preprocessing, above all ``input_size``.

    Returns
    -------
    points : tuple of TapPoint
        In the order in which the network computes them.
    default : str
        Name of the default point.
    """
    loaded = _load(name, "random", overrides or {}, SILENT)
    taps = loaded.tap(loaded.preprocessing.crop_px)
    return taps.points, taps.default


def _load(
    name: str, weights: str | None, overrides: Mapping[str, Any], reporter: Reporter
) -> LoadedNetwork:
    if name not in available_backbones():
        raise unknown_name("backbone", name, available_backbones(), see="featx list backbones")
    loader: _Loader = embedded.load if name == embedded.NAME else torchvision_models.load
    return loader(name, weights, overrides, reporter)
