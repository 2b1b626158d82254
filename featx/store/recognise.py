"""Whose a file is, by its name and first bytes, and whether somebody writes it."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from featx.records import parse_json
from featx.store.header import is_archive, is_featx
from featx.store.layout import USERBLOCK_BYTES

__all__ = [
    "JOURNAL",
    "LOCK",
    "PARTIAL",
    "PLACE_MANIFEST",
    "age_of",
    "files_below",
    "find_caches",
    "first_bytes",
    "is_archive_file",
    "is_journal",
    "is_lock",
    "is_partial",
    "is_removable",
    "name_cache",
    "size_of",
    "target_of",
    "why_unchecked",
]

PARTIAL: Final = re.compile(r"(?P<target>.+)\.[0-9a-f]{12}-[0-9a-f]{8}\.partial", re.DOTALL)
JOURNAL: Final = re.compile(PARTIAL.pattern + r"\.journal(\.new)?", re.DOTALL)
_JOURNAL_START: Final = re.compile(rb"[0-9a-f]{16} \{")
LOCK: Final = re.compile(r".+\.(h5|hdf5)\.lock", re.DOTALL)
_SUFFIXES: Final = (".h5", ".hdf5")
PLACE_MANIFEST: Final = "featx-shards.json"
_MOST_NAME_BYTES: Final = 200  # of 255, since partial files and their journals add to it


def name_cache(folder: str | os.PathLike[str], words: Iterable[str]) -> Path:
    """Name a cache file by words; what is too long ends with a hash of all of it."""
    stem = "-".join(re.sub(r"[^\w.+-]+", "_", word) for word in words)
    path, data = Path(folder) / f"{stem}.h5", stem.encode()
    if len(data) <= _MOST_NAME_BYTES or os.path.lexists(path):  # an older featx wrote longer ones
        return path
    start = data[: _MOST_NAME_BYTES - 17].decode(errors="ignore")
    return path.with_name(f"{start}-{hashlib.sha256(data).hexdigest()[:16]}.h5")


def files_below(root: Path) -> list[Path]:
    """Files and folders below a folder, sorted; no link is followed or named."""
    # Links are left alone: what they mean may lie anywhere.
    found = (Path(top, n) for top, dirs, names in os.walk(root) for n in [*dirs, *names])
    return sorted(path for path in found if not path.is_symlink())


def find_caches(folder: str | os.PathLike[str]) -> list[Path]:
    """Finished caches in a folder and below it; shards count as the place that they are of."""
    found = []
    for top, dirs, names in os.walk(folder):
        if PLACE_MANIFEST in names:
            dirs.clear()
            found.append(Path(top))
            continue
        paths = (Path(top, name) for name in names if name.endswith(_SUFFIXES))
        found += [path for path in paths if is_featx(first_bytes(path.resolve()))]
    return sorted(found)


def first_bytes(path: Path, n_bytes: int = USERBLOCK_BYTES) -> bytes:
    """Read how a file begins; something else for what is no file."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return b"not a file"
        with path.open("rb") as stream:
            return stream.read(n_bytes)
    except OSError:
        return b"unreadable"


def is_archive_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file, or what a link leads to, begins as an archive of featx does."""
    return is_archive(first_bytes(Path(path).resolve()))


def is_removable(path: Path) -> bool:
    """Whether a file is a cache, a partial file or an archive of featx."""
    return is_partial(path) or (path.suffix in _SUFFIXES and _is_ours(first_bytes(path)))


def why_unchecked(path: Path) -> str:
    """Say why a file is nothing to check; empty for a cache and an archive, damaged ones too."""
    if path.is_dir():
        return "" if (path / PLACE_MANIFEST).is_file() else "a folder"
    start = first_bytes(path.resolve())
    if is_partial(path) or is_journal(path) or start.startswith(b"featx-partial "):
        return "unfinished, the same featx extract goes on with it"
    is_other = start.startswith(b"\x89HDF") if path.suffix in _SUFFIXES else not _is_ours(start)
    return "not a cache" if is_other and not is_archive_file(path) else ""


def _is_ours(start: bytes) -> bool:
    return is_featx(start) or is_archive(start)


def is_partial(path: Path) -> bool:
    """Whether a file is a partial file of featx."""
    if not PARTIAL.fullmatch(path.name):
        return False
    start = first_bytes(path)
    return _is_ours(start) or not start.strip(b"\0")  # stopped before its first byte


def _journals(partial: Path) -> list[Path]:
    names = (f"{partial.name}.journal", f"{partial.name}.journal.new")
    return [path for name in names if (path := partial.with_name(name)).is_file()]


def size_of(path: Path) -> int:
    """Bytes of a file with its journal, or of all that a folder holds."""
    if path.is_dir():
        return sum(size_of(child) for child in path.iterdir())
    return sum(file.lstat().st_size for file in [path, *_journals(path)])


def age_of(path: Path) -> float:
    """Seconds since a file or its journal, or anything in a folder, was written."""
    children = list(path.iterdir()) if path.is_dir() else _journals(path)
    return max(0.0, time.time() - max(file.lstat().st_mtime for file in [path, *children]))


def target_of(path: Path) -> Path:
    """Name the cache file that a partial file or a journal is about."""
    match = PARTIAL.fullmatch(path.name) or JOURNAL.fullmatch(path.name)
    return path if match is None else path.with_name(match["target"])


def is_journal(path: Path) -> bool:
    """Whether a file is a journal of featx."""
    start = first_bytes(path, 18)
    is_named = JOURNAL.fullmatch(path.name) is not None
    return is_named and (not start or _JOURNAL_START.match(start) is not None)


def is_lock(path: Path) -> bool:
    """Whether a file is a lock as featx signs it."""
    if not LOCK.fullmatch(path.name):
        return False
    text = first_bytes(path)
    try:
        return not text or {"pid", "host", "since"} <= set(parse_json(text))
    except (ValueError, TypeError):
        return False
