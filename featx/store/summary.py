"""Which caches a folder holds, and how far a partial file is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from featx.errors import CacheError
from featx.store import disk
from featx.store.journal import read_journal
from featx.store.layout import USERBLOCK_BYTES, journal_path
from featx.store.seal import is_featx

__all__ = ["describe_partial", "find_caches", "summarize_partial"]

_SUFFIXES = (".h5", ".hdf5")


def find_caches(folder: str | os.PathLike[str]) -> list[Path]:
    """Finished featx caches in a folder and below it."""
    names = (p for p in Path(folder).rglob("*") if p.suffix in _SUFFIXES)
    return sorted(path for path in names if _begins_as_ours(path))


def _begins_as_ours(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return path.is_file() and is_featx(stream.read(USERBLOCK_BYTES))
    except OSError:
        return False


def summarize_partial(path: Path) -> dict[str, Any]:
    """Describe a partial file by its journal; see `featx.store.read_summary`."""
    try:
        with disk.translated(f"cannot read the journal of {path}"):
            header, ranges, _ = read_journal(journal_path(path))
    except CacheError as error:
        raise CacheError(f"{path}: {error}") from error
    return {
        "path": str(path),
        "complete": False,
        "n_rows": header.n_rows,
        "n_features": header.n_features,
        "dtype": header.dtype,
        "n_done": sum(item.stop - item.start - len(item.failed) for item in ranges),
        "n_failed": sum(len(item.failed) for item in ranges),
        "n_classes": None,
        "file_bytes": path.stat().st_size,
        "fingerprint": header.fingerprint,
        "meta": header.meta,
        "failed": [],
    }


def describe_partial(path: Path) -> str:
    """Say in one line how far a partial file is, and how to go on."""
    mend = "run the same featx extract again to resume it"
    try:
        found = summarize_partial(path)
    except CacheError:
        return f"incomplete, and its journal is missing or damaged ({path.name}): {mend}"
    n_rows = found["n_done"] + found["n_failed"]
    return f"incomplete: {n_rows:,} of {found['n_rows']:,} rows are written ({path.name}): {mend}"
