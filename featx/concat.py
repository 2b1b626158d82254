"""Features of the same images side by side, as one cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featx.catalog import DEFAULT_FOLDER
from featx.errors import UsageError
from featx.own_features import (
    BLOCK_BYTES,
    SCHEMA,
    Block,
    cache_file,
    check_names,
    fill_cache,
    plain_record,
)
from featx.progress import SILENT, Reporter
from featx.store import Cache, CacheSpec

__all__ = ["concat_caches"]


def concat_caches(
    caches: Sequence[Cache],
    *,
    backbone: str | None = None,
    folder: str | Path = DEFAULT_FOLDER,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> Cache:
    """Put the features of the same images side by side: a cache of D1 + D2 + ... features.

    Images are found by the SHA-256 of their bytes, in whatever order the caches have them.

    Parameters
    ----------
    caches : sequence of Cache
        Two or more; rows, labels and paths are those of the first one.
    backbone : str, optional
        What the features are called; the names of the caches' backbones joined by ``+`` by
        default.
    folder : path-like, default="cache"
        Where the file is written, as ``DATA-SPLIT-BACKBONE.h5``.
    overwrite : bool, default=False
        Replace a cache of other features.
    reporter : Reporter, optional
        Shows the progress.

    Returns
    -------
    Cache
        The finished file, open. A row failed where it failed in one of them. float32 where one
        of them is.

    Raises
    ------
    UsageError
        If there are fewer than two, or they are of other images, classes or splits.
    CacheError
        If there is another cache of that name, or the disk fails.
    """
    if len(caches) < 2:
        raise UsageError("give at least two caches, whose features are put side by side")
    first = caches[0]
    places = [_places(first, cache) for cache in caches]
    parts = [_point(cache) for cache in caches]
    name = backbone or "+".join(part["name"] for part in parts)
    check_names(backbone=name)
    dtype = np.result_type(*(cache.X.stored_dtype for cache in caches)).name
    data, split = str(first.meta["data"]), str(first.meta["split"])
    n_features = sum(cache.n_features for cache in caches)
    source = first.meta["identity"].get("source", {})
    of = {key: source[key] for key in ("content", "n_images", "class_names") if key in source}
    identity = {
        "schema": SCHEMA,
        "source": {**of, "fingerprints": [cache.fingerprint for cache in caches]},
        "side_by_side": [part["identity"] for part in parts],
        "store_dtype": dtype,
    }
    meta = plain_record(data, split, name, n_features, dtype) | {
        "layer": "side by side",
        "sample": first.meta.get("sample"),
        "parts": [f"{part['name']} {part['layer']}".strip() for part in parts],
    }
    spec = CacheSpec(
        identity,
        meta,
        first.labels,
        first.class_names,
        first.paths,
        n_features,
        dtype,
        first.image_digests,
    )
    blocks = _joined(caches, places, max(1, BLOCK_BYTES // (4 * n_features)))
    target = cache_file(folder, data, split, name)
    return fill_cache(target, spec, blocks, overwrite=overwrite, reporter=reporter)


def _joined(caches: Sequence[Cache], places: Sequence[np.ndarray], height: int) -> Iterator[Block]:
    n = len(caches[0])
    for start in range(0, n, height):
        stop = min(start + height, n)
        failed: dict[int, str] = {}
        for cache, place in zip(caches, places, strict=True):
            for row in range(start, stop):
                if reason := cache.errors.get(int(place[row])):
                    failed.setdefault(row, reason)
        parts = [
            np.asarray(cache.X.stored[place[start:stop]])
            for cache, place in zip(caches, places, strict=True)
        ]
        yield start, np.concatenate(parts, axis=1), failed


def _places(first: Cache, other: Cache) -> np.ndarray:
    """Row of `other` for each row of `first`: of equal images the k-th for the k-th."""
    where = f"{first.path.name} and {other.path.name}"
    if first.meta["split"] != other.meta["split"]:
        raise UsageError(f"{where} are the splits {first.meta['split']} and {other.meta['split']}")
    for cache in (first, other):
        if not cache.image_digests.any(axis=1).all():
            raise UsageError(
                f"{cache.path} does not know its images, and equal paths may be other images: "
                "import it again with --images FOLDER (images=), which hashes the files"
            )
    orders = [np.lexsort((np.arange(len(c)), *c.image_digests.T[::-1])) for c in (first, other)]
    mine, theirs = (c.image_digests[o] for c, o in zip((first, other), orders, strict=True))
    if mine.shape != theirs.shape or not np.array_equal(mine, theirs):
        both = {*map(bytes, mine)} & {*map(bytes, theirs)}
        raise UsageError(
            f"{where} are not of the same images: they have {len(first):,} and {len(other):,} "
            f"rows, and {len(both):,} different images in common. Extract the same data, with the "
            "same --cache-per-class and --seed, with both backbones"
        )
    place = np.empty(len(first), np.int64)
    place[orders[0]] = orders[1]
    names = [np.array([*cache.class_names, ""], object) for cache in (first, other)]
    if not np.array_equal(names[0][first.labels], names[1][other.labels[place]]):
        raise UsageError(f"{where} have the same images with other classes: label them alike")
    return place


def _point(cache: Cache) -> dict[str, Any]:
    meta = cache.meta
    identity = {k: v for k, v in meta["identity"].items() if k != "source"}
    layer = str(meta.get("layer", ""))
    return {"name": str(meta["backbone"]), "layer": layer, "identity": identity}
