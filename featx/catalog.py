"""The cache files of a folder, found again by what made them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from featx.errors import CacheError, UsageError, nearest
from featx.sources.splits import read_split
from featx.sources.transfer import here
from featx.store import Cache, distinct, find_caches, open_any

__all__ = ["DEFAULT_FOLDER", "fingerprints", "load", "open_complete"]

DEFAULT_FOLDER = "cache"
_SUFFIXES = (".h5", ".hdf5", ".shards")
_USUAL_SPLIT = "train"


def open_complete(folder: str | os.PathLike[str]) -> tuple[list[Cache], list[str]]:
    """Open every finished cache file of a folder."""
    path = Path(here(os.fspath(folder)))
    if not path.is_dir():
        raise CacheError(
            f"there is no cache folder {path}: run  featx extract --backbone NAME  first, "
            "or name the folder with --cache DIR"
        )
    caches, notices = [], []
    for file in find_caches(path):
        try:
            caches.append(open_any(file))
        except CacheError as error:
            notices.append(f"left out: {error}")
    return caches, notices


def fingerprints(folder: str | os.PathLike[str]) -> set[str]:
    """Give the fingerprints of the finished cache files of a folder; none without the folder."""
    if not Path(folder).is_dir():
        return set()
    caches, _ = open_complete(folder)
    try:
        return {cache.fingerprint for cache in caches}
    finally:
        for cache in caches:
            cache.close()


def load(  # noqa: PLR0913
    spec: str | os.PathLike[str],
    *,
    data: str | None = None,
    split: str | None = None,
    layer: str | None = None,
    pool: str | None = None,
    input_size: int | None = None,
    folder: str | os.PathLike[str] = DEFAULT_FOLDER,
    dtype: Any = "float32",
) -> Cache:
    """Open a cache file, by its path or by what made it.

    Parameters
    ----------
    spec : str or path-like
        Path of a file, also of a packed one, or of a place of shards; or the URL of one (``s3://``,
        ``gs://``, ``https://``: fetched once, and checked); or the name of a backbone.
    data : str, optional
        Name of the data set; may be left out where the folder holds only one.
    split : str, optional
        ``train``, ``val`` (also called ``validation``, ``valid`` or ``dev``), ``test`` or ``all``;
        by default ``train``, or the only one that there is.
    layer, pool : str, optional
        Needed where the folder holds several of this backbone.
    input_size : int, optional
        Likewise, in pixels.
    folder : path-like, default="cache"
        Where caches lie: a folder, or the URL of one, whose files are fetched once.
    dtype : dtype, default="float32"
        Type of the features that are read: float32, float64, or ``"float16"`` where the file
        holds that, which takes half the memory and overflows in sums.

    Returns
    -------
    Cache
        Open for reading; nothing of the features is read yet.

    Raises
    ------
    CacheError
        If there is no such file, or it is incomplete or damaged.
    UsageError
        If several files fit, `split` is none, or the features would lose digits as `dtype`.

    Examples
    --------
    >>> cache = load("vgg16", data="cifar10", split="train")  # doctest: +SKIP
    >>> cache.X[:2].shape  # doctest: +SKIP
    (2, 25088)
    """
    spec = here(os.fspath(spec))
    path = Path(spec)
    if path.suffix in _SUFFIXES or path.is_file():
        return open_any(path, dtype=dtype)
    wanted = {
        "backbone": str(spec),
        "data": data,
        "split": None if split is None else read_split(split),
        "layer": layer,
        "pool": pool,
        "input_size": input_size,
    }
    wanted = {name: value for name, value in wanted.items() if value is not None}
    caches, notices = open_complete(folder)
    found = [cache for cache in caches if _fits(cache.meta, wanted)]
    if split is None and len({cache.meta.get("split") for cache in found}) > 1:
        found = [cache for cache in found if cache.meta.get("split") == _USUAL_SPLIT] or found
    found = distinct(found)
    if len(found) == 1:
        found[0].X = found[0].X.astype(dtype)
        return found[0]
    if found:
        raise UsageError(_ambiguous(found, wanted))
    raise CacheError(_absent(caches, wanted, notices, Path(folder)))


def _fits(meta: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(meta.get(name) == value for name, value in wanted.items())


def _ambiguous(found: Iterable[Cache], wanted: Mapping[str, Any]) -> str:
    found = list(found)
    differing = [
        f"{name} ({', '.join(sorted(values))})"
        for name in ("data", "split", "layer", "pool", "input_size")
        if len(values := {str(cache.meta.get(name)) for cache in found}) > 1
    ]
    by = f"add {' or '.join(differing)}, or " if differing else ""
    return f"{len(found)} caches are {_words(wanted)}: {by}give the path of one of " + ", ".join(
        str(cache.path) for cache in found
    )


def _absent(
    caches: Iterable[Cache], wanted: Mapping[str, Any], notices: list[str], folder: Path
) -> str:
    present = {" ".join(str(c.meta.get(k)) for k in ("backbone", "data", "split")) for c in caches}
    close = nearest(" ".join(str(value) for value in wanted.values()), present)
    has = "; ".join(close or sorted(present)[:8]) or "no finished cache"
    left_out = f" ({'; '.join(notices)})" if notices else ""
    return (
        f"no cache in {folder} is {_words(wanted)}: it holds {has}{left_out}. "
        f"Run  featx extract --backbone {wanted['backbone']}  first"
    )


def _words(wanted: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in wanted.items())
