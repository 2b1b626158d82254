"""The file of a saved model: tensors as safetensors, everything else as JSON in its metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from featx.errors import ModelError
from featx.replacing import replace_file

__all__ = ["ENDING", "VERSION", "read_arrays", "read_record", "write_file"]

ENDING = ".safetensors"
VERSION = 1
_KEY, _FORMAT = "featx", "featx model"
_DIGEST, _TENSORS = "sha256", "tensors"


def write_file(path: Path, record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a model: whole, or not at all.

    Parameters
    ----------
    path : Path
        The file; its folder is made. A file that is there is replaced.
    record : mapping
        Plain values.
    arrays : mapping of str to ndarray
        C-contiguous.

    Raises
    ------
    ModelError
        If it cannot be written.
    """
    whole: dict[str, Any] = {"format": _FORMAT, "version": VERSION, **record}
    whole[_TENSORS] = {name: _digest(array) for name, array in arrays.items()}
    whole[_DIGEST] = _digest_of_text(whole)
    metadata = {_KEY: json.dumps(whole, allow_nan=False)}
    try:
        replace_file(path, lambda part: save_file(dict(arrays), part, metadata))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"the model {path} cannot be written: {error}") from error


def _digest_of_text(record: Mapping[str, Any]) -> str:
    # ASCII: names of classes and files may be no text, and still have a digest.
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _digest(array: NDArray[Any]) -> str:
    state = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
    state.update(array.reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def read_record(path: Path) -> dict[str, Any]:
    """Read what is known about a model, and none of its arrays.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    dict
        As it was given to `write_file`.

    Raises
    ------
    ModelError
        If the file is missing, damaged, or no model of this version of featx.
    """
    if not path.is_file():
        raise ModelError(f"there is no model {path}: make one with  featx fit --save-models")
    try:
        with safe_open(path, framework="numpy") as stream:
            metadata = stream.metadata() or {}
            names = set(stream.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path} is no model, or is damaged: it cannot be read as safetensors ({error})"
        ) from error
    if _KEY not in metadata:
        raise ModelError(f"{path} is no model of featx: it has tensors, and nothing about them")
    record = _parse(path, metadata[_KEY])
    if names != set(record[_TENSORS]):
        raise _damaged(path, "its tensors are not those that were written")
    return record


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
        is_model = isinstance(record, dict) and record.get("format") == _FORMAT
        if is_model and record.get("version") != VERSION:
            raise ModelError(
                f"{path} was written by featx {record.get('featx_version')} in version "
                f"{record.get('version')} of the format, and this featx reads version {VERSION}: "
                "update featx"
            )
        digest = record.pop(_DIGEST, "") if is_model else ""
        is_whole = is_model and _digest_of_text(record) == digest
    except (ValueError, TypeError, RecursionError) as error:
        raise _damaged(path, f"what it says about itself is no JSON ({error})") from error
    if not is_whole or not isinstance(record.get(_TENSORS), dict):
        raise _damaged(path, "what it says about itself does not fit its digest")
    return dict(record)


def _damaged(path: Path, why: str) -> ModelError:
    return ModelError(
        f"{path} is damaged, or was changed since it was written: {why}; fit it again with  "
        "featx fit --save-models"
    )


def read_arrays(path: Path, record: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Read the arrays of a model, and compare them with their digests.

    Parameters
    ----------
    path : Path
        The file.
    record : mapping
        What `read_record` gave.

    Returns
    -------
    dict of str to ndarray
        In memory; never more than the file has bytes.

    Raises
    ------
    ModelError
        If a byte is not as it was written.
    """
    try:
        with safe_open(path, framework="numpy") as stream:
            arrays = {name: stream.get_tensor(name) for name in record[_TENSORS]}
    except (OSError, SafetensorError, TypeError, KeyError) as error:
        raise _damaged(path, f"its tensors cannot be read ({error})") from error
    for name, array in arrays.items():
        if _digest(array) != record[_TENSORS][name]:
            raise _damaged(path, f"the tensor {name} does not fit its digest")
    return arrays
