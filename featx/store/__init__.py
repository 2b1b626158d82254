"""Caches of features: one crash-safe, checked HDF5 file each.

In: a `CacheSpec` and rows of features, a few at a time. Out: a finished file, read as a `Cache`.
The way: `writer` fills a partial file beside a journal, so that a crash loses nothing that was
committed; `reader` checks what it reads against digests; `verify` reads every byte. The layout is
docs/cache-format.md. The room must not know images, networks, heads or commands.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from featx.errors import CacheError
from featx.progress import SILENT, Reporter
from featx.store.features import FeatureArray
from featx.store.packed import PackedCache, distinct, open_any
from featx.store.partial import find_begun, find_partials, has_leftovers, summarize_partial
from featx.store.reader import Cache, Damage
from featx.store.recognise import find_caches
from featx.store.seconds import note_seconds, seconds_of
from featx.store.sharded import ShardedCache
from featx.store.shards import Manifest, is_place
from featx.store.spec import CacheSpec
from featx.store.writer import CacheWriter

__all__ = [
    "Cache",
    "CacheSpec",
    "CacheWriter",
    "Damage",
    "FeatureArray",
    "ShardedCache",
    "distinct",
    "find_begun",
    "find_caches",
    "find_partials",
    "has_leftovers",
    "note_seconds",
    "open_any",
    "read_summary",
    "seconds_of",
    "verify_file",
]


def verify_file(path: str | os.PathLike[str], reporter: Reporter = SILENT) -> list[Damage]:
    """Check every byte of a cache or an archive, also of one too damaged to open."""
    try:
        if is_place(path):
            return ShardedCache(Path(path), Manifest.read(Path(path))).verify(reporter)
        with open_any(path) as cache:
            return cache.verify(reporter)
    except CacheError as error:
        return [Damage("file", 0, 0, str(error))]


def read_summary(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe a cache, a partial or a packed file, or a place, without its features."""
    path = Path(path)
    if path.suffix == ".partial" and path.is_file():
        return summarize_partial(path)
    with open_any(path) as cache:
        more: dict[str, Any] = {}
        if isinstance(cache, PackedCache):
            more = {"codec": cache.codec, "unpacked_bytes": cache.unpacked_bytes}
        elif isinstance(cache, ShardedCache):
            more = {"n_shards": cache.n_shards, "shard_rows": cache.manifest.shard_rows}
        n_failed = len(cache.errors)
        return {
            "path": str(path),
            "complete": True,
            "n_rows": len(cache),
            "n_features": cache.n_features,
            "dtype": cache.X.stored_dtype.name,
            "n_done": len(cache) - n_failed,
            "n_failed": n_failed,
            "n_classes": len(cache.class_names),
            "file_bytes": cache.n_bytes,
            "fingerprint": cache.fingerprint,
            "meta": cache.meta,
            "failed": [(row, cache.paths[row], why) for row, why in sorted(cache.errors.items())],
            **more,
        }
