"""The file of an unfinished training: tensors, and everything else as JSON that seals itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from featx.errors import WeightsError
from featx.records import SealedFiles
from featx.weights.sealed_state import TENSORS, read_state, write_state

__all__ = ["put_together", "read_checkpoint", "take_apart", "write_checkpoint"]

_FILES = SealedFiles(
    format="featx checkpoint",
    version=1,
    noun="checkpoint",
    error=WeightsError,
    missing="a training writes it after each epoch",
    unknown="is no checkpoint: it has tensors, and nothing about them",
    damaged="it is not taken up",
)


def write_checkpoint(path: Path, key: str, plain: Any, tensors: dict[str, Tensor]) -> None:
    """Write what `take_apart` gave, of the training that the key names."""
    write_state(_FILES, path, {"key": key, "state": plain}, tensors)


def read_checkpoint(path: Path, key: str) -> Any:
    """Read the state of a training, if every byte is as it was written, and the key is its."""
    record, _ = _FILES.read(path)
    if record.get("key") != key:
        raise WeightsError(f"{path} is of another training")
    return put_together(record["state"], read_state(_FILES, path, record[TENSORS]))


def take_apart(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Put copies of all tensors into `tensors`; give the rest as JSON has it."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        # Keys need not be text: optimisers number their parameters.
        return {"mapping": [[key, take_apart(one, tensors)] for key, one in value.items()]}
    if isinstance(value, list | tuple):
        items = [take_apart(one, tensors) for one in value]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def put_together(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo `take_apart`."""
    if isinstance(value, list):
        return [put_together(one, tensors) for one in value]
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind == "tensor":
        return tensors[inside]
    if kind == "float":
        return float(inside)
    if kind == "tuple":
        return tuple(put_together(inside, tensors))
    return {key: put_together(one, tensors) for key, one in inside}
