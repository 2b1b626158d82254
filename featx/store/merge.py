"""One file of all shards of a place, in one pass over them."""

from __future__ import annotations

import os
from pathlib import Path

from featx.errors import CacheError
from featx.progress import SILENT, Reporter
from featx.store.pack import copy_missing
from featx.store.sharded import ShardedCache
from featx.store.shards import is_place
from featx.store.writer import CacheWriter

__all__ = ["merge_shards"]


def merge_shards(
    place: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> tuple[Path, bool]:
    """Write one cache file of a place of shards; every row is compared with its digest.

    It is written as any cache is: an interrupted merge goes on where it stopped, and the shards
    stay. Gives the file, and whether it is new.
    """
    source = Path(place)
    if not is_place(source):
        raise CacheError(
            f"{source} is no place of shards: name a folder that  featx extract --shard  filled"
        )
    out = source.with_suffix(".h5") if target is None else Path(target)
    with ShardedCache.open(source) as cache:
        spec = cache.spec
        with CacheWriter.open(out, spec, overwrite=overwrite, reporter=reporter) as writer:
            is_new = not writer.is_complete
            if is_new:
                copy_missing(cache, writer, "merge", reporter)
                writer.finish()
    return out, is_new
