"""Which weights a network holds, and the digest that identifies them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Weights", "state_sha256"]


@dataclass(frozen=True)
class Weights:
    """Which weights a network holds."""

    label: str
    sha256: str
    file: str = ""
    is_default: bool = False
    file_sha256: str = ""
    key: str = ""

    @classmethod
    def of_file(
        cls, path: Path, sha256: str, file_sha256: str, key: str | None, default: str = ""
    ) -> Weights:
        """Weights that a user's file, or an entry of it, holds."""
        label = f"{path.stem}-{key}" if key else path.stem
        return cls(label, sha256, str(path), label == default, file_sha256, key or "")


def state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors.

    The same weights have the same digest as ``.pth``, as ``.safetensors`` and in memory.
    """
    digest = hashlib.sha256()
    for key in sorted(state):
        if key.endswith("num_batches_tracked"):
            continue
        tensor = state[key].detach().cpu().contiguous()
        header = json.dumps([key, str(tensor.dtype), list(tensor.shape)])
        digest.update(header.encode("utf-8"))
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
