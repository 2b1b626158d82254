"""The file of a network that featx trained: tensors, and a record of what rebuilds it.

A ``.safetensors`` file holds the tensors of the network, and in its metadata, as JSON, what
rebuilds it: a network of `featx.networks`, or a backbone with its layer and custom top; classes,
preprocessing, and how it was trained. Both have digests. Nothing in it can run code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featx.errors import UsageError, WeightsError
from featx.preprocess import Preprocessing
from featx.records import ENDING, SealedFiles
from featx.weights.sealed_state import TENSORS, read_state, write_state

__all__ = [
    "Contents",
    "TrainedRecord",
    "is_trained",
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
