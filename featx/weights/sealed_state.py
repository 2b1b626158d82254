"""Tensors of PyTorch in a file that seals itself, under one digest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from torch import Tensor

from featx.records import SealedFiles
from featx.weights.base import state_sha256

__all__ = ["TENSORS", "read_state", "write_state"]

TENSORS: Final = "tensors_sha256"
"""Where a record has the digest of the tensors."""


def write_state(
    files: SealedFiles, path: Path, record: Mapping[str, Any], state: dict[str, Tensor]
) -> None:
    """Write a record and tensors, which lie on the CPU, contiguous, and share no memory."""
    from safetensors.torch import save_file

    files.write(
        path,
        {**record, TENSORS: state_sha256(state)},
        lambda part, metadata: save_file(state, part, metadata),
    )


def read_state(files: SealedFiles, path: Path, digest: str) -> dict[str, Tensor]:
    """Read the tensors, which must have the digest that the record has."""
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise files.damage(path, f"its tensors cannot be read ({error})") from error
    if state_sha256(state) != digest:
        raise files.damage(path, "its tensors do not fit their digest")
    return state
