"""Trained weights: where they come from, what is in them, and their digest.

Three sources: a torchvision entry (downloaded once, checked, kept under
``TORCH_HOME``), a local file (``.pth`` read with ``weights_only=True``, or
``.safetensors``), and seeded random values. A file that could run code is refused.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch

from featx.errors import UsageError, WeightsError
from featx.fingerprint import sha256_file
from featx.progress import SILENT, Reporter

__all__ = [
    "Weights",
    "WeightsFile",
    "download",
    "load_into",
    "parse_random",
    "read_state_dict",
    "state_sha256",
]

_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
_WRAPPERS = ("state_dict", "model", "model_state_dict")


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights on a server.

    Parameters
    ----------
    url : str
        Where it lies.
    size_bytes : int
        Its size, as far as known; 0 where it is not.
    sha256_prefix : str
        First hexadecimal digits of its SHA-256; may be empty.
    """

    url: str
    size_bytes: int
    sha256_prefix: str

    @property
    def name(self) -> str:
        """File name, the last part of the URL."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Weights:
    """Which weights a network holds.

    Parameters
    ----------
    label : str
        Short name: a torchvision tag, a file's name, or ``random:SEED``.
    sha256 : str
        Digest of the tensors themselves, see `state_sha256`.
    file : str, optional
        Path of the file they were read from.
    is_default : bool, default=False
        Whether this is what the backbone uses when nothing is asked for.
    """

    label: str
    sha256: str
    file: str = ""
    is_default: bool = False


def parse_random(spec: str) -> int | None:
    """Seed of ``random`` or ``random:SEED``; None for any other spec.

    Parameters
    ----------
    spec : str
        As given to ``--weights``.

    Returns
    -------
    int or None
        The seed, 0 where none was given.

    Raises
    ------
    UsageError
        If the seed is not a non-negative integer.
    """
    kind, _, seed = spec.partition(":")
    if kind != "random":
        return None
    if seed and not seed.isdecimal():
        raise UsageError(f"weights {spec!r}: the seed must be an integer, as in random:0")
    return int(seed or 0)


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict without running anything that the file may hold.

    Parameters
    ----------
    path : Path
        A ``.pth``, ``.pt`` or ``.bin`` file made by ``torch.save``, or ``.safetensors``.

    Returns
    -------
    dict of str to Tensor
        On the CPU. Common wrappings (``state_dict``, ``model``, the prefix
        ``module.``) are taken off.

    Raises
    ------
    WeightsError
        If there is no such file, or it is not a plain state dict.
    """
    if not path.is_file():
        raise WeightsError(
            f"weights file {path} does not exist: give a path to {', '.join(_SUFFIXES)}, "
            "the name of a torchvision weights entry such as IMAGENET1K_V1, or random"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is refused: it holds more than tensors and could run code when loaded. "
            "Save it again as torch.save(network.state_dict(), path) or as .safetensors"
        ) from error
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"{path} cannot be read as weights: {reason}") from error
    return _unwrap(found, path)


def _unwrap(found: Any, path: Path) -> dict[str, torch.Tensor]:
    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found:
        raise WeightsError(f"{path} holds no state dict, but a {type(found).__name__}")
    wrong = [str(key) for key, value in found.items() if not isinstance(value, torch.Tensor)]
    if wrong:
        raise WeightsError(f"{path} is no plain state dict: {_few(wrong)} are not tensors")
    state = OrderedDict((str(key).removeprefix("module."), found[key]) for key in found)
    state._metadata = getattr(found, "_metadata", None)  # type: ignore[attr-defined]
    return state


def download(file: WeightsFile, *, reporter: Reporter = SILENT) -> Path:
    """Find a file of weights in torch's own folder, or download it there.

    Parameters
    ----------
    file : WeightsFile
        What to download.
    reporter : Reporter
        A quiet one shows no progress bar.

    Returns
    -------
    Path
        ``TORCH_HOME/hub/checkpoints/NAME``, its digest checked.

    Raises
    ------
    WeightsError
        If it cannot be downloaded, naming file, size, URL and folder, or if its
        digest is wrong.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / file.name
    if not path.is_file():
        reporter.say(f"downloading {file.url} ({_size(file)}) to {folder}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                file.url, str(path), file.sha256_prefix, progress=not reporter.quiet
            )
        except (URLError, OSError, RuntimeError) as error:
            raise WeightsError(
                f"the weights {file.name} ({_size(file)}) could not be downloaded: "
                f"{_reason(error)}. Fetch {file.url} on a machine with internet access and put it "
                f"into {folder}, or give --weights FILE, or --weights random for a dry run"
            ) from error
    digest = sha256_file(path)
    if not digest.startswith(file.sha256_prefix):
        raise WeightsError(
            f"{path} is damaged: its SHA-256 begins with {digest[: len(file.sha256_prefix)]}, not "
            f"{file.sha256_prefix}. Delete it and run the command again"
        )
    return path


def _size(file: WeightsFile) -> str:
    return f"{file.size_bytes / 1e6:,.1f} MB" if file.size_bytes else "size unknown"


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", None) or error
    return str(inner).strip().splitlines()[0] if str(inner).strip() else type(inner).__name__


def load_into(network: torch.nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Load a state dict that must fit the network exactly.

    Parameters
    ----------
    network : torch.nn.Module
        Changed in place.
    state : mapping of str to Tensor
        Every parameter and buffer of the network, and nothing else.
    source : str
        Where `state` comes from, for the error.

    Raises
    ------
    WeightsError
        Naming the keys that are missing, too many, or of another shape.
    """
    wanted = network.state_dict()
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    if shapes:
        missing, unexpected = [], []
    else:
        # Versions of the modules, by which some of them convert the keys of older files.
        versions = getattr(state, "_metadata", None) or getattr(wanted, "_metadata", None)
        given = OrderedDict(state)
        given._metadata = versions  # type: ignore[attr-defined]
        missing, unexpected = network.load_state_dict(given, strict=False)
    # Files saved before PyTorch 0.4.1 lack these counters, which inference never reads.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    problems = [
        f"{len(keys)} {what} ({_few(keys)})"
        for what, keys in (
            ("of another shape", shapes),
            ("missing", missing),
            ("unexpected", unexpected),
        )
        if keys
    ]
    if problems:
        raise WeightsError(
            f"{source} holds the weights of another network than {type(network).__name__}: "
            f"{'; '.join(problems)}. Name the backbone that they were trained in"
        )


def _few(names: list[str], n: int = 3) -> str:
    more = f", and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[:n]) + more


def state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors.

    The same weights have the same digest as ``.pth``, as ``.safetensors`` and in memory.

    Parameters
    ----------
    state : mapping of str to Tensor
        A state dict; counters of batch normalisation (``num_batches_tracked``) do not count.

    Returns
    -------
    str
        64 hexadecimal digits.
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
