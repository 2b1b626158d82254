"""Weights of timm's networks: pinned tags, and files on the Hugging Face hub."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from featx.errors import WeightsError
from featx.progress import Reporter
from featx.weights import StoredFile, WeightsFile, download, own_folder, stored

__all__ = ["find_weights", "pinned_tags"]

_FILES = ("model.safetensors", "pytorch_model.bin")


@cache
def pinned_tags() -> Mapping[str, str]:
    """Tag of the weights of a bare name, for every architecture that had one in timm 1.0.31.

    timm's own default is the first tag that it lists, which has changed between its versions.
    """
    text = (files("featx.backbones") / "timm_tags.tsv").read_text(encoding="ascii")
    rows = (line.split("\t") for line in text.splitlines() if not line.startswith("#"))
    return {row[0]: row[1] for row in rows}


def find_weights(cfg: Mapping[str, Any], reporter: Reporter) -> StoredFile:
    """Find the file of a ``pretrained_cfg`` on this machine, or download it."""
    name, repository = f"{cfg['architecture']}.{cfg['tag']}", cfg.get("hf_hub_id")
    wanted = [f"{name}{suffix}" for suffix in (".safetensors", ".bin", ".pth")]
    if repository:
        wanted += [f"{base}/{file}" for base in (repository, name) for file in _FILES]
    own = own_folder(wanted)
    if own is not None:
        return stored(own)
    if repository:
        return _from_hub(name, repository, cfg.get("hf_hub_filename"), reporter)
    return download(WeightsFile.at(str(cfg["url"])), reporter=reporter)


def _from_hub(name: str, repository: str, file: str | None, reporter: Reporter) -> StoredFile:
    """Fetch into the usual cache of Hugging Face; safetensors before pickles."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    wanted = [file] if file else list(_FILES)
    for filename in wanted:
        if isinstance(path := try_to_load_from_cache(repository, filename), str):
            return _checked(Path(path))
    reporter.say(f"downloading {wanted[0]} of huggingface.co/{repository}")
    try:
        _look_up_server()
        try:
            path = hf_hub_download(repository, wanted[0])
        except EntryNotFoundError as error:
            if file or "offline" in str(error).lower() or not _is_absent(error):
                raise
            path = hf_hub_download(repository, wanted[1])
    except Exception as error:
        raise WeightsError(
            f"the weights of timm/{name} could not be downloaded: {_reason(error)}. Fetch "
            f"https://huggingface.co/{repository}/resolve/main/{wanted[0]} on a machine with "
            f"internet access and put it as {name}{Path(wanted[0]).suffix} into the folder that "
            "FEATX_WEIGHTS names, or give --weights FILE, or --weights random for a dry run"
        ) from error
    return _checked(Path(path))


def _look_up_server() -> None:
    """Fail at once where there is no internet: the hub's own client tries for half a minute."""
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname
    if host and not getproxies() and not constants.HF_HUB_OFFLINE:
        try:
            socket.getaddrinfo(host, 443)
        except OSError as error:
            raise ConnectionError(f"{host}: {error.strerror or error}") from error


def _is_absent(error: Exception) -> bool:
    """Whether the server said that there is no such file, and not that there is no server."""
    return getattr(error, "response", None) is not None


def _checked(path: Path) -> StoredFile:
    """Digest a file of the hub's cache, whose large files are named by their SHA-256."""
    found, blob = stored(path), path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", blob) and blob != found.sha256:
        raise WeightsError(
            f"{path.resolve()} is damaged: its SHA-256 is not its name. Delete it and run the "
            "command again"
        )
    return found


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
