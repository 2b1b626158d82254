"""What already lies where a cache shall be written, and whether it may be replaced."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from featx.errors import CacheError, CacheMismatchError
from featx.fingerprint import differences
from featx.progress import Reporter
from featx.store.header import is_featx
from featx.store.reader import Cache
from featx.store.recognise import first_bytes
from featx.store.reuse import SOURCE, without_source
from featx.store.spec import CacheSpec

__all__ = ["has_rows", "is_finished", "is_intact", "is_reusable"]

_N_NAMES: Final = 5


def is_finished(target: Path, spec: CacheSpec, *, overwrite: bool) -> bool:
    """Whether a complete cache of just these features is there."""
    if not os.path.lexists(target):
        return False
    try:
        cache = Cache.open(target)
    except CacheError as error:
        was_ours = is_featx(first_bytes(target.resolve()))
        if overwrite and was_ours:
            return False
        mend = "delete it or pass --overwrite" if was_ours else "choose another name"
        raise CacheError(f"{error}; it is not replaced: {mend}") from error
    with cache:
        lines = _differences(cache, spec)
    if not lines or overwrite:
        return not lines
    raise CacheMismatchError(
        f"{target} holds other features than those asked for: ask for the same, "
        "choose another file, or replace it (--overwrite)",
        lines,
    )


def is_intact(target: Path, spec: CacheSpec, reporter: Reporter) -> bool:
    """Whether just this cache is there, with no failed row and every byte as written."""
    try:
        with Cache.open(target) as cache:
            is_same = not cache.errors and not _differences(cache, spec)
            return is_same and not cache.verify(reporter)
    except CacheError:
        return False


def is_reusable(target: Path, spec: CacheSpec, *, overwrite: bool) -> bool:
    """Whether the images that are there are those asked for, in another order or under other names.

    With `overwrite`, also where rows failed: they are tried again.
    """
    try:
        with Cache.open(target) as cache:
            if not _has_same_content(cache.meta["identity"], spec.identity):
                return False
            return (overwrite and bool(cache.errors)) or bool(_differences(cache, spec))
    except CacheError:
        return False


def has_rows(
    cache: Cache, paths: Sequence[str], labels: np.ndarray, image_digests: np.ndarray
) -> bool:
    """Whether each row of a cache is the image of this name, with this label and these bytes."""
    return (
        cache.paths == list(paths)
        and np.array_equal(cache.labels, labels)
        and np.array_equal(cache.image_digests, image_digests)
    )


def _has_same_content(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether two identities are about the same images in the same classes."""
    own, other = found.get(SOURCE), wanted.get(SOURCE)
    if not isinstance(own, Mapping) or not isinstance(other, Mapping) or "content" not in own:
        return False
    is_same = own["content"] == other.get("content")
    return is_same and not differences(without_source(wanted), without_source(found))


def _differences(cache: Cache, spec: CacheSpec) -> list[str]:
    lines = []
    if cache.fingerprint != spec.fingerprint:
        lines += differences(spec.identity, cache.meta["identity"])
    shape, dtype = (spec.n_rows, spec.n_features), spec.dtype
    found = (cache.X.shape, cache.X.stored_dtype.name)
    if found != (shape, dtype):
        lines.append(f"features: asked for {shape} {dtype}, the file has {found[0]} {found[1]}")
    lines += _list_difference("paths", list(spec.paths), cache.paths)
    lines += _list_difference("class_names", list(spec.class_names), cache.class_names)
    if not np.array_equal(spec.labels, cache.labels) and len(cache) == spec.n_rows:
        n_other = int(np.count_nonzero(spec.labels != cache.labels))
        lines.append(f"labels: {n_other:,} of {spec.n_rows:,} are others")
    return lines + _image_differences(cache, spec)


def _image_differences(cache: Cache, spec: CacheSpec) -> list[str]:
    if np.array_equal(cache.image_digests, spec.image_digests) and cache.paths == list(spec.paths):
        return []
    wanted = dict(zip(spec.paths, map(bytes, spec.image_digests), strict=True))
    found = dict(zip(cache.paths, map(bytes, cache.image_digests), strict=True))
    changed = [path for path in wanted if path in found and wanted[path] != found[path]]
    added = [path for path in wanted if path not in found]
    removed = [path for path in found if path not in wanted]
    lines = [
        _named(paths, what)
        for paths, what in ((changed, "changed"), (added, "added"), (removed, "removed"))
        if paths
    ]
    return lines or ["images: the same ones in another order"]


def _named(paths: Sequence[str], what: str) -> str:
    more = ", ..." if len(paths) > _N_NAMES else ""
    noun = "image" if len(paths) == 1 else "images"
    return f"{len(paths):,} {noun} {what}: {', '.join(paths[:_N_NAMES])}{more}"


def _list_difference(name: str, wanted: list[str], found: list[str]) -> list[str]:
    if wanted == found:
        return []
    if len(wanted) != len(found):
        return [f"{name}: asked for {len(wanted):,}, the file has {len(found):,}"]
    first = next(i for i, pair in enumerate(zip(wanted, found, strict=True)) if pair[0] != pair[1])
    n_other = sum(a != b for a, b in zip(wanted, found, strict=True))
    return [
        f"{name}: {n_other:,} of {len(wanted):,} are others, the first at {first}: "
        f"asked for {wanted[first]!r}, the file has {found[first]!r}"
    ]
