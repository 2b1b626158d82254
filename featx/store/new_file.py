"""New files and folders that appear whole or not at all, and replace nothing unasked."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from featx.atomic import try_flock, unlock
from featx.errors import CacheError
from featx.store import disk
from featx.store.header import is_featx
from featx.store.layout import USERBLOCK_BYTES

__all__ = ["PROJECTOR_FILES", "TEMPORARY", "file_beside", "folder_beside"]

TEMPORARY: Final = re.compile(r".+\.[0-9a-f]{8}\.featx-tmp", re.DOTALL)
PROJECTOR_FILES: Final = ("tensors.tsv", "metadata.tsv", "projector_config.pbtxt")
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


@contextmanager
def file_beside(target: Path, *, overwrite: bool) -> Iterator[tuple[Path, int]]:
    """Write a file under another name in the same folder, then give it its own."""
    with disk.translated(f"cannot write {target}"):
        _refuse(target, overwrite=overwrite)
        target.parent.mkdir(parents=True, exist_ok=True)
        path = _temporary(target)
        with _part(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
            yield path, fd
            disk.fsync(fd)
            unlock(fd)  # HDF5 locks what it reads
            _publish(path, target, overwrite=overwrite)
            disk.fsync_folder(target.parent)


@contextmanager
def folder_beside(target: Path, names: tuple[str, ...], *, overwrite: bool) -> Iterator[Path]:
    """Fill a folder under another name, then give it its own."""
    with disk.translated(f"cannot write {target}"):
        _refuse_folder(target, names, overwrite=overwrite)
        target.parent.mkdir(parents=True, exist_ok=True)
        path = _temporary(target)
        path.mkdir()
        with _part(path, os.O_RDONLY):
            yield path
            _sync_files(path)
            _exchange(path, target, names, overwrite=overwrite)
            disk.fsync_folder(target.parent)


@contextmanager
def _part(path: Path, flags: int) -> Iterator[int]:
    """Hold a new file or folder locked; remove it where anything fails."""
    fd = os.open(path, flags, 0o666)
    try:
        try_flock(fd)
        yield fd
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else disk.unlink(path)
        raise
    finally:
        os.close(fd)


def _temporary(target: Path) -> Path:
    return target.with_name(f"{target.name}.{secrets.token_hex(4)}.featx-tmp")


def _refuse(target: Path, *, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_file():
        raise CacheError(f"{target} is not a file: choose another name (-o)")
    with target.open("rb") as stream:
        is_cache = is_featx(stream.read(USERBLOCK_BYTES))
    if is_cache:
        raise CacheError(f"{target} is a cache, and is not replaced: choose another name (-o)")
    if not overwrite:
        raise _exists(target)


def _exists(target: Path) -> CacheError:
    return CacheError(
        f"{target} is there already: choose another name (-o), or pass --overwrite to replace it"
    )


def _publish(path: Path, target: Path, *, overwrite: bool) -> None:
    if overwrite:
        disk.replace(path, target)
        return
    try:  # unlike a rename, a link never replaces what came meanwhile
        os.link(path, target)
    except FileExistsError as error:
        raise _exists(target) from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _refuse(target, overwrite=False)
        disk.replace(path, target)
    else:
        disk.unlink(path)


def _refuse_folder(target: Path, names: tuple[str, ...], *, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise CacheError(f"{target} is not a folder: choose another name (-o)")
    others = sorted(path.name for path in target.iterdir() if path.name not in names)
    if others:
        raise CacheError(
            f"{target} holds other files too ({', '.join(others[:3])}): choose another name (-o)"
        )
    if not overwrite:
        raise _exists(target)


def _sync_files(folder: Path) -> None:
    for path in folder.iterdir():
        fd = os.open(path, os.O_RDONLY)
        try:
            disk.fsync(fd)
        finally:
            os.close(fd)
    disk.fsync_folder(folder)


def _exchange(path: Path, target: Path, names: tuple[str, ...], *, overwrite: bool) -> None:
    _refuse_folder(target, names, overwrite=overwrite)
    if not target.exists():
        disk.replace(path, target)
        return
    # A full folder cannot be replaced in one step: the old one makes room first.
    old = _temporary(target)
    disk.replace(target, old)
    try:
        disk.replace(path, target)
    except BaseException:
        disk.replace(old, target)
        raise
    shutil.rmtree(old)
