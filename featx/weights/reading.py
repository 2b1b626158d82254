"""Reading files of weights without running anything that they may hold.

``torch.load(weights_only=True)`` builds tensors and plain containers only, and
``.safetensors`` cannot hold anything else. TorchScript (``torch.jit.save``) and exported
programs (``torch.export.save``) are refused: they are programs, and PyTorch's own
documentation of ``torch.jit.load`` and ``torch.export.load`` says that both can run
arbitrary code while they load.
"""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from featx.errors import WeightsError
from featx.network_names import check_exists
from featx.progress import SILENT, Reporter
from featx.weights.entries import PREFIXES, Entry, few, find_entry

__all__ = [
    "check_size",
    "is_plain",
    "program_error",
    "read_file",
    "read_state_dict",
    "unwrap",
]

_MOST_TIMES = 10
"""Bytes of tensors in memory, by bytes of the file: shared weights count more than once."""


def read_state_dict(
    path: Path, *, key: str | None = None, reporter: Reporter = SILENT
) -> dict[str, torch.Tensor]:
    """Read a state dict without running anything that the file may hold."""
    state, said = unwrap(read_file(path), path, key)
    if said:
        reporter.say(said)
    return state


def read_file(path: Path) -> Any:
    """Read everything in a file of weights; nothing in it is run."""
    check_exists(path)
    members = _members(path)
    kind = _program_kind(path, members)
    if kind:
        raise program_error(path, kind)
    check_size(path, sum(members.values()))
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # The options of a training, which timm and torchvision save beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is refused: it holds more than tensors and could run code when loaded. "
            "Save it again as torch.save(network.state_dict(), path) or as .safetensors"
        ) from error
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"{path} cannot be read as weights: {reason}") from error


def program_error(path: Path, kind: str) -> WeightsError:
    """Error for a file that holds a program instead of weights."""
    return WeightsError(
        f"{path} is refused: it is {kind}, which can run any code while it is loaded. Where you "
        "trust it, load it in a function of your own that returns the network and its "
        "preprocessing, and give --backbone module:function; or save only its weights with "
        "torch.save(network.state_dict(), path) and give --weights FILE"
    )


def _members(path: Path) -> dict[str, int]:
    """Give names and unpacked bytes of what is inside, where the file is an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {member.filename: member.file_size for member in archive.infolist()}
    except (zipfile.BadZipFile, OSError, ValueError):
        return {}


def check_size(path: Path, n_bytes: int) -> None:
    """Refuse a small file that would fill the memory: packed zeros, or one value repeated."""
    n_on_disk = path.stat().st_size
    if n_bytes > _MOST_TIMES * n_on_disk:
        raise WeightsError(
            f"{path} is refused: its {n_on_disk:,} bytes would become {n_bytes:,} in memory, as "
            "those of no network do. Save it again with torch.save(network.state_dict(), path)"
        )


def _program_kind(path: Path, members: Iterable[str]) -> str:
    """Tell TorchScript and exported programs from weights by the names inside the archive."""
    if path.suffix == ".pt2":
        return "an exported program (torch.export)"
    parts = {name.partition("/")[2] or name for name in members}
    if "constants.pkl" in parts or any(part.startswith("code/") for part in parts):
        return "a TorchScript program (torch.jit)"
    if parts & {"archive_format", "serialized_exported_program.json"}:
        return "an exported program (torch.export)"
    return ""


def _as_mapping(found: Any) -> Any:
    """Read a list as a mapping: of pairs of name and tensor, or of its parts by number."""
    if not isinstance(found, list | tuple):
        return found
    if all(isinstance(part, list | tuple) and len(part) == 2 for part in found):
        pairs = [part for part in found if isinstance(part[0], str) and is_plain(part[1])]
        if len(pairs) == len(found):
            return dict(pairs)
    is_named = any(isinstance(part, Mapping) for part in found)
    return {str(i): part for i, part in enumerate(found)} if is_named else found


def unwrap(found: Any, path: Path, key: str | None) -> tuple[dict[str, torch.Tensor], str]:
    """Take the state dict out of what a file holds; with a sentence that says from where."""
    found = _as_mapping(found)
    if not isinstance(found, Mapping) or not found:
        raise WeightsError(
            f"{path} holds a {type(found).__name__} without named tensors: save the weights with  "
            "torch.save(network.state_dict(), path)"
        )
    try:
        entry = find_entry(found, key, str(path))
    except RecursionError as error:
        raise WeightsError(f"{path} is no state dict: its entries are nested too deep") from error
    found = entry.found
    wrong = [str(name) for name, value in found.items() if not is_plain(value)]
    if wrong or not found:
        raise WeightsError(
            f"{path} is no plain state dict: {few(wrong)} are not tensors of real numbers (sparse, "
            "quantised and complex ones are not read)"
        )
    state = OrderedDict((str(name), found[name]) for name in found)
    prefixes = []
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state)), ""):
        state = OrderedDict((name.removeprefix(prefix), state[name]) for name in state)
        prefixes.append(f"the prefix {prefix!r}")
    check_size(path, sum(value.numel() * value.element_size() for value in state.values()))
    state._metadata = _versions(found)  # type: ignore[attr-defined]
    return state, _describe(path, entry, prefixes)


def is_plain(value: Any) -> bool:
    """Whether it is a tensor that can be copied into a parameter as it is."""
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return False
    return not (value.is_quantized or value.is_complex() or value.is_meta)


def _versions(found: Any) -> dict[str, dict[str, int]] | None:
    """Give the versions of modules that PyTorch notes beside a state dict, if they are numbers."""
    noted = getattr(found, "_metadata", None)
    if not isinstance(noted, Mapping):
        return None
    known = {name: one.get("version") for name, one in noted.items() if isinstance(one, Mapping)}
    return {name: {"version": n} for name, n in known.items() if type(n) is int}


def _describe(path: Path, entry: Entry, prefixes: list[str]) -> str:
    taken = [*(f"the wrapping {name!r}" for name in entry.names), *prefixes]
    if not taken:
        return ""
    text = f"{path}: {' and '.join(taken)} taken off"
    if entry.is_averaged:
        text += "; these are averaged weights (EMA), which timm takes too"
    if entry.left:
        text += f"; left: {', '.join(entry.left)} (--weights-key NAME takes another entry)"
    return text
