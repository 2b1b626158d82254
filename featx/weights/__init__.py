"""Trained weights: where they come from, what is in them, and their digest.

Sources: a torchvision entry (found or downloaded once, checked, kept under ``TORCH_HOME``), timm's
repositories on the Hugging Face hub, a local file (``.pth`` read with ``weights_only=True``, or
``.safetensors``), and seeded random values. A file that could run code is refused.
"""

from __future__ import annotations

from featx.weights.base import Weights, state_sha256
from featx.weights.entries import few
from featx.weights.files import StoredFile, WeightsFile, download, own_folder, stored
from featx.weights.fitting import fill_from_file, load_into
from featx.weights.reading import program_error, read_state_dict

__all__ = [
    "StoredFile",
    "Weights",
    "WeightsFile",
    "download",
    "few",
    "fill_from_file",
    "load_into",
    "own_folder",
    "program_error",
    "read_state_dict",
    "state_sha256",
    "stored",
]
