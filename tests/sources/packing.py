"""Pack files into archives, well and badly."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODES = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}
KINDS = (".zip", *MODES)


def files_of(root: Path) -> dict[str, bytes]:
    """All files below a folder, by name, in the order of a walk through sorted folders."""
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def pack(path: Path, files: Mapping[str, bytes], **options: Any) -> Path:
    """Write an archive of the kind of `path`; names that end in / are folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", options.pop("method", zipfile.ZIP_DEFLATED)) as archive:
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(name) if name.endswith("/") else name, data)
        return path
    mode = next(mode for end, mode in MODES.items() if path.name.endswith(end))
    with tarfile.open(path, mode, **options) as tar:
        for name, data in files.items():
            tar.addfile(*member(name, data))
    return path


def pack_folder(path: Path, root: Path, below: str = "", **options: Any) -> Path:
    """Write all files below a folder, under the prefix `below`."""
    files = {f"{below}{name}": data for name, data in files_of(root).items()}
    return pack(path, files, **options)


def member(name: str, data: bytes = b"", kind: bytes = b"", **fields: Any) -> tuple[Any, Any]:
    info = tarfile.TarInfo(name.rstrip("/") or name)
    info.size = len(data)
    info.type = kind or (tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, io.BytesIO(data)


def pack_members(path: Path, *members: tuple[Any, Any], **options: Any) -> Path:
    with tarfile.open(path, "w", **options) as tar:
        for info, data in members:
            tar.addfile(info, data)
    return path


def named(*names: str) -> dict[str, bytes]:
    """Files that hold their own names."""
    return {name: b"" if name.endswith("/") else raw(name) for name in names}


def raw(name: str) -> bytes:
    """The bytes of a name, also of one that is not UTF-8."""
    return name.encode("utf-8", "surrogateescape")
