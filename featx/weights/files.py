"""Files of weights: where they are looked for, and how they are downloaded.

In this order: the folder ``FEATX_WEIGHTS``, torch's own folder below ``TORCH_HOME``, the server.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch

from featx.errors import WeightsError
from featx.fingerprint import sha256_file
from featx.progress import SILENT, Reporter

__all__ = ["StoredFile", "WeightsFile", "download", "own_folder", "stored"]

_SECONDS_TO_ANSWER = 30.0
_CHUNK = 1 << 20
_ROUNDED = 2048  # torchvision notes sizes in MiB with three digits


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights on a server."""

    url: str
    size_bytes: int
    sha256_prefix: str

    @classmethod
    def at(cls, url: str, size_bytes: int = 0) -> WeightsFile:
        """Read the beginning of the SHA-256 off a URL, where its name has it."""
        prefix = re.search(r"-([0-9a-f]{8,})\.", url)
        return cls(url, size_bytes, prefix.group(1) if prefix else "")

    @property
    def name(self) -> str:
        """File name, the last part of the URL."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class StoredFile:
    """A file of weights on this machine."""

    path: Path
    sha256: str


def stored(path: Path) -> StoredFile:
    """Digest a file."""
    return StoredFile(path, sha256_file(path))


def own_folder(names: Sequence[str]) -> Path | None:
    """Find a file in the folder that the environment variable ``FEATX_WEIGHTS`` names."""
    folder = os.environ.get("FEATX_WEIGHTS")
    if not folder:
        return None
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise WeightsError(
            f"FEATX_WEIGHTS names {root}, which is no folder: make it, or unset the variable"
        )
    return next((root / name for name in names if (root / name).is_file()), None)


def download(file: WeightsFile, *, reporter: Reporter = SILENT) -> StoredFile:
    """Find a file of weights on this machine, or download it to torch's own folder."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = own_folder([file.name]) or folder / file.name
    if not path.is_file():
        _fetch(file, path, reporter)
    found = stored(path)
    if wrong := _what_is_wrong(file, path, found.sha256):
        raise WeightsError(f"{path} is damaged: {wrong}. Delete it and run the command again")
    return found


def _fetch(file: WeightsFile, path: Path, reporter: Reporter) -> None:
    reporter.say(f"downloading {file.url} ({_size(file)}) to {path.parent}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".featx-download-", dir=path.parent) as scratch:
            part = Path(scratch) / path.name
            n_bytes = _copy(file, part, reporter)
            n_came = part.stat().st_size
            if n_bytes is not None and n_came < n_bytes:
                raise ConnectionError(f"it was cut off: {n_came:,} of {n_bytes:,} bytes came")
            if wrong := _what_is_wrong(file, part, sha256_file(part), is_new=True):
                raise ConnectionError(f"the server gave something else: {wrong}")
            part.replace(path)
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection
        raise WeightsError(
            f"the weights {file.name} ({_size(file)}) could not be downloaded: "
            f"{_reason(error)}. Fetch {file.url} on a machine with internet access and put it "
            f"into {path.parent} (or the folder that FEATX_WEIGHTS names), or give "
            "--weights FILE, or --weights random for a dry run"
        ) from error


def _copy(file: WeightsFile, part: Path, reporter: Reporter) -> int | None:
    """Write what the server sends; return how many bytes it has announced."""
    request = Request(file.url, headers={"User-Agent": "featx"})  # noqa: S310 - torchvision's URLs
    with (
        urlopen(request, timeout=_SECONDS_TO_ANSWER) as response,  # noqa: S310
        part.open("wb") as stream,
    ):
        length = response.headers.get("Content-Length", "")
        n_bytes = int(length) if length.isdecimal() else None
        with reporter.bar((n_bytes or file.size_bytes) // 1000, file.name, "kB") as bar:
            while chunk := response.read(_CHUNK):
                stream.write(chunk)
                bar.update(len(chunk) // 1000)
    return n_bytes


def _what_is_wrong(file: WeightsFile, path: Path, sha256: str, *, is_new: bool = False) -> str:
    """Say why a file is not the one that is meant; empty where it may be."""
    wanted, n_bytes = file.sha256_prefix, path.stat().st_size
    if not sha256.startswith(wanted):
        begin = f"its SHA-256 begins with {sha256[: len(wanted)]}, not {wanted}"
        return f"{begin} ({n_bytes:,} bytes)" if is_new else begin
    with path.open("rb") as stream:
        if not wanted and stream.read(_CHUNK).lstrip()[:1] == b"<":
            return f"it is a web page ({n_bytes:,} bytes)"
    # A file in a folder of the user's may be saved again, with other bytes around the tensors.
    if is_new and not wanted and file.size_bytes and abs(n_bytes - file.size_bytes) > _ROUNDED:
        return f"it has {n_bytes:,} bytes, not about {file.size_bytes:,}"
    return ""


def _size(file: WeightsFile) -> str:
    return f"{file.size_bytes / 1e6:,.1f} MB" if file.size_bytes else "size unknown"


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", None) or error
    return str(inner).strip().splitlines()[0] if str(inner).strip() else type(inner).__name__
