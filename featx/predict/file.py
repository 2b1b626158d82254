"""The file of a saved model: tensors as safetensors, everything else as JSON in its metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from featx.errors import ModelError
from featx.records import SealedFiles

__all__ = ["read_arrays", "read_record", "write_file"]

_FILES = SealedFiles(
    format="featx model",
    version=1,
    noun="model",
    error=ModelError,
    missing="make one with  featx fit --save-models",
    unknown="is no model of featx: it has tensors, and nothing about them",
    damaged="fit it again with  featx fit --save-models",
)
_TENSORS = "tensors"


def write_file(path: Path, record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a model: whole, or not at all."""
    digests = {name: _digest(array) for name, array in arrays.items()}
    _FILES.write(
        path,
        {**record, _TENSORS: digests},
        lambda part, metadata: save_file(dict(arrays), part, metadata),
    )


def _digest(array: NDArray[Any]) -> str:
    state = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
    state.update(array.reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def read_record(path: Path) -> dict[str, Any]:
    """Read what is known about a model, and none of its arrays."""
    record, names = _FILES.read(path)
    digests = record.get(_TENSORS)
    if not isinstance(digests, dict) or names != set(digests):
        raise _FILES.damage(path, "its tensors are not those that were written")
    return record


def read_arrays(path: Path, record: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Read the arrays of a model, and compare them with their digests."""
    try:
        with safe_open(path, framework="numpy") as stream:
            arrays = {name: stream.get_tensor(name) for name in record[_TENSORS]}
    except (OSError, SafetensorError, TypeError, KeyError) as error:
        raise _FILES.damage(path, f"its tensors cannot be read ({error})") from error
    for name, array in arrays.items():
        if _digest(array) != record[_TENSORS][name]:
            raise _FILES.damage(path, f"the tensor {name} does not fit its digest")
    return arrays
