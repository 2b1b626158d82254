"""Networks that featx trained, as backbones.

Where a backbone's name is typed, the path of the file of a trained network will do::

    featx extract --backbone reports/networks/cnn-hoogasian-cifar.safetensors --data stl10
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from featx.backbones.base import OUTLINE, LoadedNetwork
from featx.backbones.factories import is_factory
from featx.backbones.graph_taps import GraphTaps
from featx.backbones.taps import Taps
from featx.backbones.torchvision_models import PLAIN_INPUT, feed_plainly
from featx.backbones.trained_file import TrainedRecord, is_trained, read_contents
from featx.errors import BackboneError, UsageError
from featx.networks import FineTuned, get_network, get_top
from featx.networks.spec import named, require_memory
from featx.plugins import named_by
from featx.progress import SILENT, Reporter
from featx.weights import Weights, load_into, stored

__all__ = ["TrainedNetwork", "load", "open_trained"]


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network, opened."""

    network: nn.Module
    record: TrainedRecord


def open_trained(
    path: str | os.PathLike[str], *, allow_code: Collection[str] = ()
) -> TrainedNetwork:
    """Open a trained network with its classifier."""
    opened = _open(Path(path), allow_code)
    return TrainedNetwork(opened.parts.network, opened.record)


def load(
    name: str,
    weights: str | None,
    overrides: Mapping[str, Any],
    reporter: Reporter,
    *,
    allow_code: Collection[str],
) -> LoadedNetwork:
    """Open a trained network as a backbone.

    Parameters
    ----------
    name : str
        Path of the file.
    weights : str or None
        Path of a copy of it, where it lies elsewhere now.
    overrides : mapping
        Keyword arguments of `Preprocessing.override`. At another ``input_size`` than that of the
        training, a network whose classifier is made for that size is tapped before it.
    reporter : Reporter
        Not used: nothing is downloaded.
    allow_code : collection of str
        What it may import.

    Returns
    -------
    LoadedNetwork
        In evaluation mode, on the CPU. By default it is tapped at the last feature map; a
        fine-tuned backbone where its top began.

    Raises
    ------
    UsageError
        If random weights are asked for.
    WeightsError
        As `open_trained`.
    """
    del reporter
    if weights is not None and weights != OUTLINE and not is_trained(weights):
        raise UsageError(
            f"{name} has its own weights: leave --weights out, or give the path of a copy"
        )
    path = Path(name if weights in (None, OUTLINE) else str(weights)).expanduser()
    opened = _open(path, allow_code)
    record = Weights(path.stem, opened.sha256, str(path), True, stored(path).sha256)
    preprocessing = opened.record.preprocessing.override(**overrides)
    return LoadedNetwork(
        name=os.path.normpath(name),
        network=opened.parts.at_size(preprocessing.crop_px),
        weights=record,
        preprocessing=preprocessing,
        tap=opened.parts.tap,
        unfilled=opened.parts.unfilled,
        source_sha256=opened.parts.source_sha256,
    )


@dataclass(frozen=True)
class _Parts:
    """A network as it is rebuilt: whole with logits, and as a backbone.

    `at_size` gives what the taps of an input size are paths in.
    """

    network: nn.Module
    at_size: Callable[[int], nn.Module]
    tap: Callable[[int], Taps]
    unfilled: tuple[str, ...] = ()
    source_sha256: str = ""


@dataclass(frozen=True)
class _Opened:
    record: TrainedRecord
    parts: _Parts
    sha256: str


def _open(path: Path, allow_code: Collection[str]) -> _Opened:
    contents = read_contents(path)
    with named_by(path):
        parts = _rebuilt(contents.record, allow_code)
    load_into(parts.network, contents.state, str(path))
    parts.network.eval()
    return _Opened(contents.record, parts, contents.sha256)


def _rebuilt(record: TrainedRecord, allow_code: Collection[str]) -> _Parts:
    """Build the network of a record, with values that mean nothing."""
    n_classes = len(record.class_names)
    if record.network is not None:
        spec = get_network(record.network)
        network = spec.build(n_classes, record.input_px, 0).eval()
        return _scratch(network, spec.last_map)
    inner = _inner(record, allow_code)
    taps = inner.tap(record.input_px)
    point = taps.find(record.layer)
    body = taps.cut(point.name)
    top = get_top(str(record.top)).build(point.shape, n_classes, 0)
    unfilled = _outside(inner.at_size(record.input_px), body)

    def tap(input_px: int) -> Taps:
        found = inner.tap(input_px)
        found.default = point.name
        return found

    whole = FineTuned(body, top).eval()
    return _Parts(whole, inner.at_size, tap, unfilled, inner.source_sha256)


def _inner(record: TrainedRecord, allow_code: Collection[str]) -> _Parts:
    """Build what was fine-tuned: another trained network, or a backbone by name."""
    from featx.backbones import load_network

    if record.base is not None:
        return _rebuilt(TrainedRecord.from_json(record.base), allow_code)
    name = str(record.backbone)
    weights = None if is_factory(name) else "random"
    overrides = {"input_size": record.input_px}
    if weights is not None:
        require_memory(name, load_network(name, OUTLINE, overrides, SILENT).network)
    loaded = load_network(name, weights, overrides, SILENT, allow_code)
    if PLAIN_INPUT in (record.variant or ""):
        feed_plainly(loaded.network)
    source = loaded.source_sha256
    return _Parts(loaded.network, lambda px: loaded.network, loaded.tap, source_sha256=source)


def _scratch(network: nn.Module, last_map: str | None) -> _Parts:
    def parts_at(input_px: int) -> tuple[nn.Module, Taps]:
        try:
            return network, GraphTaps(network, input_px, default=last_map)
        except BackboneError:
            if last_map is None:
                raise
        # Its classifier is made for another size: what lies before it runs at any.
        front = named([(last_map, network.get_submodule(last_map))]).eval()
        return front, GraphTaps(front, input_px, default=last_map)

    return _Parts(network, lambda px: parts_at(px)[0], lambda px: parts_at(px)[1])


def _outside(whole: nn.Module, body: nn.Module) -> tuple[str, ...]:
    """Paths of the modules that hold parameters of their own, none of which the body has."""
    inside = {id(parameter) for parameter in body.parameters()}
    return tuple(
        name
        for name, module in whole.named_modules()
        if name
        and any(True for _ in module.parameters())
        and not any(id(parameter) in inside for parameter in module.parameters())
    )
