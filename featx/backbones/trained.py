"""Networks that featx trained: their files, and the backbones that these are.

A ``.safetensors`` file holds the tensors of the network, and in its metadata, as JSON, what
rebuilds it: a network of `featx.networks`, or a backbone with its layer and custom top; classes,
preprocessing, and how it was trained. Both have digests. Nothing in it can run code. Where a
backbone's name is typed, the path of such a file will do::

    featx extract --backbone reports/networks/cnn-hoogasian-cifar.safetensors --data stl10
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featx.backbones.factories import is_factory
from featx.backbones.graph_taps import GraphTaps
from featx.backbones.libraries import load_from_library
from featx.backbones.recipe import OUTLINE, LoadedNetwork
from featx.backbones.taps import Taps
from featx.backbones.torchvision_models import PLAIN_INPUT, feed_plainly
from featx.errors import BackboneError, UsageError, WeightsError
from featx.networks import FineTuned, get_network, get_top
from featx.networks.spec import named, require_memory
from featx.plugins import named_by
from featx.preprocess import Preprocessing
from featx.progress import SILENT
from featx.records import ENDING, SealedFiles
from featx.weights import Weights, load_into, stored
from featx.weights.sealed_state import TENSORS, read_state, write_state

__all__ = [
    "Contents",
    "TrainedNetwork",
    "TrainedRecord",
    "is_trained",
    "load",
    "open_trained",
    "read_contents",
    "read_trained",
    "save_trained",
]

_FILES = SealedFiles(
    format="featx trained network",
    version=1,
    noun="trained network",
    error=WeightsError,
    missing="make one with  featx train --save, or name a backbone (all of them: "
    "featx list backbones)",
    unknown="holds weights and does not say of which network: give  --backbone NAME --weights FILE",
    damaged="train it again with  featx train --save",
)
_MOST_PX = 1 << 14
_MOST_BASES = 16
_TEXTS = ("network", "backbone", "layer", "top", "variant")


@dataclass(frozen=True, kw_only=True)
class TrainedRecord:
    """What is known of a trained network, beside its tensors."""

    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    network: str | None = None
    backbone: str | None = None
    layer: str | None = None
    top: str | None = None
    base: Mapping[str, Any] | None = None
    variant: str | None = None
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
    def from_json(cls, values: Mapping[str, Any], n_bases: int = 0) -> TrainedRecord:
        """Read what `as_json` gave."""
        if not isinstance(values, Mapping):
            raise TypeError("it is no object")
        for key in _TEXTS:
            if not isinstance(values.get(key), str | None):
                raise TypeError(f"its {key} is no text")
        if values.get("base") is not None:
            if n_bases == _MOST_BASES:
                raise ValueError(f"more than {_MOST_BASES} networks on each other")
            cls.from_json(values["base"], n_bases + 1)
        image = dict(values["preprocessing"])
        image |= {name: tuple(map(float, image[name])) for name in ("mean", "std")}
        preprocessing = Preprocessing(**image, origin="as it was trained")
        if max(preprocessing.crop_px, preprocessing.resize_px) > _MOST_PX:
            raise ValueError(f"images of {preprocessing.crop_px:,} pixels")
        if is_trained(str(values.get("backbone"))) and values.get("base") is None:
            raise ValueError("another file")  # a record is whole: no file leads to others
        names = tuple(str(name) for name in values["class_names"])
        return cls(**{**values, "preprocessing": preprocessing, "class_names": names})


def is_trained(name: str) -> bool:
    """Whether what was typed as a backbone is the file of a trained network."""
    return name.endswith(ENDING)


def save_trained(path: Path, network: nn.Module, record: TrainedRecord) -> None:
    """Write a trained network: whole, or not at all."""
    if path.suffix != ENDING:
        raise UsageError(f"{path}: the file of a trained network must end in {ENDING}")
    if record.backbone is not None and is_trained(record.backbone) and record.base is None:
        record = replace(record, base=read_trained(Path(record.backbone)).as_json())
    # Copies, for tensors may share memory, or lie in channels-last order.
    state = {
        key: value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for key, value in network.state_dict().items()
    }
    write_state(_FILES, path, record.as_json(), state)


def read_trained(path: Path) -> TrainedRecord:
    """Read what is known about a trained network, and none of its tensors."""
    return _read(path)[0]


def _read(path: Path) -> tuple[TrainedRecord, str]:
    """Read the record, checked, and the digest that the tensors must have."""
    values, _ = _FILES.read(path)
    try:
        digest = str(values.pop(TENSORS))
        del values["format"], values["version"]
        return TrainedRecord.from_json(values), digest
    except (ValueError, TypeError, KeyError, UsageError) as error:
        raise _FILES.damage(path, f"it does not say what rebuilds it ({error})") from error


@dataclass(frozen=True)
class Contents:
    """Everything in the file of a trained network."""

    record: TrainedRecord
    state: dict[str, Tensor]
    sha256: str


def read_contents(path: Path) -> Contents:
    """Read a trained network, and check it."""
    record, digest = _read(path)
    return Contents(record, read_state(_FILES, path, digest), digest)


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network, opened."""

    network: nn.Module
    record: TrainedRecord


def open_trained(
    path: str | os.PathLike[str], *, allow_code: Collection[str] = ()
) -> TrainedNetwork:
    """Open a trained network with its classifier."""
    contents, parts = _open(Path(path), allow_code)
    return TrainedNetwork(parts.network, contents.record)


def load(
    name: str, weights: str | None, overrides: Mapping[str, Any], allow_code: Collection[str]
) -> LoadedNetwork:
    """Open a trained network as a backbone; `weights` is a copy, where it lies elsewhere now.

    By default it is tapped at the last feature map, a fine-tuned backbone where its top began. At
    another input size, a network whose classifier is made for one size is tapped before it.
    """
    if weights is not None and weights != OUTLINE and not is_trained(weights):
        raise UsageError(
            f"{name} has its own weights: leave --weights out, or give the path of a copy"
        )
    path = Path(name if weights in (None, OUTLINE) else str(weights)).expanduser()
    contents, parts = _open(path, allow_code)
    preprocessing = contents.record.preprocessing.override(**overrides)
    return LoadedNetwork(
        name=os.path.normpath(name),
        network=parts.at_size(preprocessing.crop_px),
        weights=Weights(path.stem, contents.sha256, str(path), True, stored(path).sha256),
        preprocessing=preprocessing,
        tap=parts.tap,
        unfilled=parts.unfilled,
        source_sha256=parts.source_sha256,
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


def _open(path: Path, allow_code: Collection[str]) -> tuple[Contents, _Parts]:
    contents = read_contents(path)
    with named_by(path):
        parts = _rebuilt(contents.record, allow_code)
    load_into(parts.network, contents.state, str(path))
    parts.network.eval()
    return contents, parts


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
    if record.base is not None:
        return _rebuilt(TrainedRecord.from_json(record.base), allow_code)
    name = str(record.backbone)
    weights = None if is_factory(name) else "random"
    overrides = {"input_size": record.input_px}
    if weights is not None:
        require_memory(name, load_from_library(name, OUTLINE, overrides, SILENT).network)
    loaded = load_from_library(name, weights, overrides, SILENT, allow_code)
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
