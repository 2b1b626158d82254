"""The file of a saved model: tensors as safetensors, everything else as JSON in its metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from featx.errors import ModelError
from featx.fingerprint import fingerprint
from featx.heads.base import Model
from featx.heads.saving import n_features_of, unpack_model
from featx.records import SealedFiles

__all__ = [
    "ModelFile",
    "check_record",
    "features_identity",
    "read_arrays",
    "read_model",
    "read_record",
    "write_file",
]

_FILES = SealedFiles(
    format="featx model",
    version=1,
    noun="model",
    error=ModelError,
    missing="make one with  featx fit --save-models",
    unknown="is no model of featx: it has tensors, and no record of what they are",
    damaged="fit it again with  featx fit --save-models",
)
_TENSORS = "tensors"
_NOT_OF_FEATURES = ("schema", "source")


def features_identity(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that changes features, except the images."""
    return {k: v for k, v in meta["identity"].items() if k not in _NOT_OF_FEATURES}


@dataclass(frozen=True, repr=False)
class ModelFile:
    """What is in a file: the fitted head, and the record of how it was fitted."""

    path: Path
    meta: dict[str, Any]
    model: Model

    @property
    def classes_(self) -> NDArray[np.int64]:
        """Labels, ascending, shape (n_classes,)."""
        return self.model.classes_

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label."""
        return tuple(self.meta["class_names"])

    @property
    def n_features(self) -> int:
        """Length of the rows that it takes."""
        return n_features_of(self.model)

    @property
    def has_probabilities(self) -> bool:
        """Whether the head gives probabilities."""
        return bool(getattr(self.model, "link", ""))


def write_file(path: Path, record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a model: the whole file, or nothing."""
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


def read_model(path: Path) -> tuple[dict[str, Any], Model]:
    """Read a model and check that its parts fit each other; nothing in the file is run."""
    record = read_record(path)
    arrays = read_arrays(path, record)
    try:
        model = unpack_model(record.get("model"), arrays)
        check_record(record)
        _check_model(record, model)
    except ModelError as error:
        raise ModelError(
            f"{path} cannot be used: {error} (written by featx {record.get('featx_version')})"
        ) from error
    return record, model


def read_record(path: Path) -> dict[str, Any]:
    """Read the record of a model, and none of its arrays."""
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


def check_record(record: Mapping[str, Any]) -> None:
    """Refuse a record whose parts are missing or have the wrong type."""
    for part in ("features", "weights", "train", "test"):
        if not isinstance(record.get(part), dict):
            raise ModelError(f"it says nothing about {part}")
    names = record.get("class_names")
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ModelError("its class names are not texts")
    if not isinstance(record.get("head"), str):
        raise ModelError("it does not name its head")
    if not isinstance(record["features"].get("point", {}), dict):
        raise ModelError("it does not name the layer of its features")
    accuracy, n_test = (record["test"].get(name) for name in ("accuracy", "n_test"))
    if not (isinstance(accuracy, float) and 0 <= accuracy <= 1):
        raise ModelError("its test accuracy is not a number between 0 and 1")
    if not (isinstance(n_test, int) and n_test > 0):
        raise ModelError("it does not say how many images its test accuracy was measured on")


def _check_model(record: Mapping[str, Any], model: Model) -> None:
    if int(model.classes_[-1]) >= len(record["class_names"]):
        raise ModelError("its class names do not fit its labels")
    if record.get("fingerprint") != fingerprint(record["features"]):
        raise ModelError("the description of its features does not fit their fingerprint")
    if record.get("n_features") != n_features_of(model):
        raise ModelError(f"its head does not take {record.get('n_features')!r} features")
