"""Files of weights: where they are looked for, and how they are downloaded.

In this order: the folder ``FEATX_WEIGHTS``, torch's own folder below ``TORCH_HOME``, the server.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import torch

from featx.errors import WeightsError
from featx.fingerprint import sha256_file
from featx.progress import SILENT, Reporter

__all__ = ["StoredFile", "WeightsFile", "download", "own_folder", "stored"]


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights on a server."""

    url: str
    size_bytes: int
    sha256_prefix: str

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
    if not found.sha256.startswith(file.sha256_prefix):
        raise WeightsError(
            f"{path} is damaged: its SHA-256 begins with "
            f"{found.sha256[: len(file.sha256_prefix)]}, not {file.sha256_prefix}. "
            "Delete it and run the command again"
        )
    return found


def _fetch(file: WeightsFile, path: Path, reporter: Reporter) -> None:
    reporter.say(f"downloading {file.url} ({_size(file)}) to {path.parent}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            file.url, str(path), file.sha256_prefix, progress=not reporter.quiet
        )
    except (URLError, OSError, RuntimeError) as error:
        raise WeightsError(
            f"the weights {file.name} ({_size(file)}) could not be downloaded: "
            f"{_reason(error)}. Fetch {file.url} on a machine with internet access and put it "
            f"into {path.parent} (or the folder that FEATX_WEIGHTS names), or give "
            "--weights FILE, or --weights random for a dry run"
        ) from error


def _size(file: WeightsFile) -> str:
    return f"{file.size_bytes / 1e6:,.1f} MB" if file.size_bytes else "size unknown"


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", None) or error
    return str(inner).strip().splitlines()[0] if str(inner).strip() else type(inner).__name__
