"""Networks that featx trained: one file each, which is a backbone at once.

A ``.safetensors`` file holds the tensors of the network, and in its metadata, as JSON, what
rebuilds it: a network of `featx.networks`, or a backbone with its layer and custom top; classes,
preprocessing, and how it was trained. Nothing in it can run code. Where a backbone's name is
typed, the path of such a file will do::

    featx extract --backbone reports/networks/cnn-hoogasian-cifar.safetensors --data stl10
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from featx.backbones.base import OUTLINE, LoadedNetwork
from featx.backbones.factories import is_factory
from featx.backbones.graph_taps import GraphTaps
from featx.backbones.taps import Taps
from featx.errors import BackboneError, UsageError, WeightsError
from featx.networks import FineTuned, get_network, get_top
from featx.networks.parts import named
from featx.preprocess import Preprocessing
from featx.progress import SILENT, Reporter
from featx.replacing import replace_file
from featx.weights import Weights, load_into, state_sha256, stored

__all__ = [
    "ENDING",
    "TrainedNetwork",
    "TrainedRecord",
    "is_trained",
    "load",
    "open_trained",
    "read_trained",
    "save_trained",
]

ENDING = ".safetensors"
VERSION = 1
_KEY, _FORMAT = "featx", "featx trained network"
_DIGEST, _TENSORS = "sha256", "tensors_sha256"
_MOST_PX = 1 << 14


@dataclass(frozen=True, kw_only=True)
class TrainedRecord:
    """What is known of a trained network, beside its tensors.

    Parameters
    ----------
    class_names : tuple of str
        One a logit.
    preprocessing : Preprocessing
        How its images were prepared; ``crop_px`` is the size that it was trained at.
    network : str, optional
        As `featx.networks.get_network` reads it; None for a fine-tuned backbone.
    backbone : str, optional
        Name of the backbone that was fine-tuned, or the path of a trained network.
    layer : str, optional
        Where it was cut off.
    top : str, optional
        What was put there, as `featx.networks.get_top` reads it.
    base : mapping, optional
        Where `backbone` is a trained network, what its own file says: the new file needs the old
        one no longer. `save_trained` fills it in.
    training : mapping, optional
        How it was trained, for people: plain values.

    Raises
    ------
    UsageError
        If it says neither or both of network and backbone, or a part is missing.
    """

    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    network: str | None = None
    backbone: str | None = None
    layer: str | None = None
    top: str | None = None
    base: Mapping[str, Any] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.network is None) == (self.backbone is None):
            raise UsageError("a trained network is one of featx.networks, or a backbone with a top")
        if self.backbone is not None and (self.layer is None or self.top is None):
            raise UsageError("a fine-tuned backbone needs the layer where it was cut, and its top")

    @property
    def input_px(self) -> int:
        """Side of the images that it was trained with."""
        return self.preprocessing.crop_px

    def as_json(self) -> dict[str, Any]:
        """Give plain values."""
        values = {k: v for k, v in vars(self).items() if v is not None}
        values["class_names"] = list(self.class_names)
        values["preprocessing"] = self.preprocessing.identity()
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainedRecord:
        """Read what `as_json` gave.

        Parameters
        ----------
        values : mapping
            Plain values; unknown ones are an error.

        Returns
        -------
        TrainedRecord

        Raises
        ------
        KeyError, TypeError, ValueError, UsageError
            If it is something else.
        """
        image = dict(values["preprocessing"])
        image |= {name: tuple(map(float, image[name])) for name in ("mean", "std")}
        preprocessing = Preprocessing(**image, origin="as it was trained")
        if max(preprocessing.crop_px, preprocessing.resize_px) > _MOST_PX:
            raise ValueError(f"images of {preprocessing.crop_px:,} pixels")
        names = tuple(str(name) for name in values["class_names"])
        return cls(**{**values, "preprocessing": preprocessing, "class_names": names})


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network, opened.

    Parameters
    ----------
    network : torch.nn.Module
        Maps normalised images at ``record.input_px`` to logits; evaluation mode, on the CPU.
    record : TrainedRecord
        What is known of it.
    """

    network: nn.Module
    record: TrainedRecord


def is_trained(name: str) -> bool:
    """Whether what was typed as a backbone is the file of a trained network.

    Parameters
    ----------
    name : str
        As typed after ``--backbone``.
    """
    return name.endswith(ENDING)


def save_trained(path: Path, network: nn.Module, record: TrainedRecord) -> None:
    """Write a trained network: whole, or not at all.

    Parameters
    ----------
    path : Path
        Ends in `ENDING`; its folder is made. A file that is there is replaced.
    network : torch.nn.Module
        What ``record.network`` builds, or a `FineTuned` of ``record.backbone`` and its top; on
        any device.
    record : TrainedRecord
        What is known of it.

    Raises
    ------
    UsageError
        If the path has another ending.
    WeightsError
        If it cannot be written.
    """
    from safetensors.torch import save_file

    if path.suffix != ENDING:
        raise UsageError(f"{path}: the file of a trained network must end in {ENDING}")
    if record.backbone is not None and is_trained(record.backbone) and record.base is None:
        record = replace(record, base=read_trained(Path(record.backbone)).as_json())
    # Copies, for tensors may share memory, or lie in channels-last order.
    state = {
        key: value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for key, value in network.state_dict().items()
    }
    whole = {"format": _FORMAT, "version": VERSION, **record.as_json()}
    whole[_TENSORS] = state_sha256(state)
    whole[_DIGEST] = _digest(whole)
    metadata = {_KEY: json.dumps(whole, allow_nan=False)}
    try:
        replace_file(path, lambda part: save_file(state, part, metadata))
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"the trained network {path} cannot be written: {error}") from error


def _digest(record: Mapping[str, Any]) -> str:
    # ASCII: names of classes and files may be no text, and still have a digest.
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode("ascii")).hexdigest()


def read_trained(path: Path) -> TrainedRecord:
    """Read what is known about a trained network, and none of its tensors.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    TrainedRecord

    Raises
    ------
    WeightsError
        If the file is missing, damaged, or no trained network of this version of featx.
    """
    return TrainedRecord.from_json(_read(path)[0])


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """Read the record, checked, and the digest that the tensors must have."""
    if not path.is_file():
        raise WeightsError(
            f"there is no trained network {path}: make one with  featx train --save, or name a "
            "backbone (all of them: featx list backbones)"
        )
    try:
        with safe_open(path, framework="pt") as stream:
            text = (stream.metadata() or {}).get(_KEY)
        if text is None:
            raise WeightsError(
                f"{path} holds weights and does not say of which network: give "
                f"--backbone NAME --weights {path}"
            )
        values = _parsed(path, text)
        digest = str(values.pop(_TENSORS))
        TrainedRecord.from_json(values)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, UsageError) as error:
        raise WeightsError(
            f"{path} is no trained network of featx, or is damaged: {error}"
        ) from error
    return values, digest


def _parsed(path: Path, text: str) -> dict[str, Any]:
    values = json.loads(text)
    kind = values.pop("format", None)
    version = values.pop("version", None)
    if kind != _FORMAT:
        raise WeightsError(
            f"{path} is not a trained network but a {kind}: a saved head of  featx fit  is for  "
            "featx predict --model"
        )
    if version != VERSION:
        raise WeightsError(
            f"{path} is a trained network in version {version} of the format, and this featx "
            f"reads version {VERSION}: update featx"
        )
    if values.pop(_DIGEST, "") != _digest({"format": kind, "version": version, **values}):
        raise WeightsError(f"{path} is damaged: what it says about itself does not fit its digest")
    return dict(values)


def open_trained(path: str | os.PathLike[str]) -> TrainedNetwork:
    """Open a trained network with its classifier.

    Parameters
    ----------
    path : path-like
        What `save_trained` wrote.

    Returns
    -------
    TrainedNetwork

    Raises
    ------
    WeightsError
        If the file is missing or damaged, or the network can no longer be rebuilt.
    """
    opened = _open(Path(path))
    return TrainedNetwork(opened.parts.network, opened.record)


def load(
    name: str, weights: str | None, overrides: Mapping[str, Any], reporter: Reporter
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
    opened = _open(path)
    record = Weights(path.stem, opened.sha256, str(path), True, stored(path).sha256)
    preprocessing = opened.record.preprocessing.override(**overrides)
    return LoadedNetwork(
        name=os.path.normpath(name),
        network=opened.parts.at_size(preprocessing.crop_px),
        weights=record,
        preprocessing=preprocessing,
        tap=opened.parts.tap,
        unfilled=opened.parts.unfilled,
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


@dataclass(frozen=True)
class _Opened:
    record: TrainedRecord
    parts: _Parts
    sha256: str


def _open(path: Path) -> _Opened:
    from safetensors.torch import load_file

    values, digest = _read(path)
    record = TrainedRecord.from_json(values)
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is damaged: its tensors cannot be read ({error})") from error
    if state_sha256(state) != digest:
        raise WeightsError(f"{path} is damaged: its tensors do not fit their digest")
    parts = _rebuilt(record)
    load_into(parts.network, state, str(path))
    parts.network.eval()
    return _Opened(record, parts, digest)


def _rebuilt(record: TrainedRecord) -> _Parts:
    """Build the network of a record, with values that mean nothing."""
    n_classes = len(record.class_names)
    if record.network is not None:
        spec = get_network(record.network)
        network = spec.build(n_classes, record.input_px, 0).eval()
        return _scratch(network, spec.last_map)
    inner = _inner(record)
    taps = inner.tap(record.input_px)
    point = taps.find(record.layer)
    body = taps.cut(point.name)
    top = get_top(str(record.top)).build(point.shape, n_classes, 0)
    unfilled = _outside(inner.at_size(record.input_px), body)

    def tap(input_px: int) -> Taps:
        found = inner.tap(input_px)
        found.default = point.name
        return found

    return _Parts(FineTuned(body, top).eval(), inner.at_size, tap, unfilled)


def _inner(record: TrainedRecord) -> _Parts:
    """Build what was fine-tuned: another trained network, or a backbone by name."""
    from featx.backbones import load_network

    if record.base is not None:
        return _rebuilt(TrainedRecord.from_json(record.base))
    name = str(record.backbone)
    weights = None if is_factory(name) else "random"
    loaded = load_network(name, weights, {"input_size": record.input_px}, SILENT)
    return _Parts(loaded.network, lambda input_px: loaded.network, loaded.tap)


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
