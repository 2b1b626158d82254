"""Questions whose answers are complete already, known without loading a network.

A finished file records what was asked, the versions of the packages that computed it, and the
weights. Where the same is asked again, of the same images, with the same weights and
packages, the network would only be opened to find that there is nothing to do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from featx.errors import FeatxError
from featx.extract.plan import Plan, open_sources
from featx.extract.report import ExtractReport
from featx.extract.settings import images_identity
from featx.network_names import GROUP
from featx.plugins import is_plugin
from featx.progress import Reporter
from featx.sources import Source
from featx.sources.places import digest_file
from featx.store import Cache, distinct, find_caches, has_leftovers, open_any
from featx.store.existing import has_rows

__all__ = ["find_known"]

_OPEN = "auto"


def find_known(
    plan: Plan, reporter: Reporter, sources: Callable[[], Sequence[Source]] | None = None
) -> list[ExtractReport] | None:
    """Find the files that answer a plan, if all of them are complete."""
    folder = Path(plan.cache_dir)
    sources = sources or partial(open_sources, plan, reporter)
    if not _is_closed(plan) or not folder.is_dir():
        return None
    caches = list(_open_all(folder))
    try:
        asked = {name: _plain(plan.request(name)) for name in plan.backbone}
        candidates = {
            name: [c for c in caches if _plain(c.meta.get("request")) == request and _is_as_made(c)]
            for name, request in asked.items()
        }
        if not all(candidates.values()):
            return None
        opened = sources()
        found: list[ExtractReport] = []
        for name in plan.backbone:
            for source in opened:
                files = _matching(candidates[name], source, reporter)
                if len(files) != len(plan.layer or (None,)):
                    return None
                order = {layer: i for i, layer in enumerate(plan.layer)}
                files.sort(key=lambda cache: order.get(cache.meta["layer"], len(order)))
                found += [_report(cache, folder / cache.path.name) for cache in files]
        return found
    finally:
        for cache in caches:
            cache.close()


def _is_closed(plan: Plan) -> bool:
    """Whether nothing is left to the machine, nothing is forced, and nothing is user's code."""
    is_forced = plan.append or plan.overwrite
    is_open = _OPEN in (plan.precision, plan.runtime)
    is_own = any(is_plugin(name, GROUP) or Path(name).exists() for name in plan.backbone)
    return not (is_forced or is_open or is_own)


def _open_all(folder: Path) -> Iterable[Cache]:
    for path in find_caches(folder):
        if path.parent != folder:
            continue
        try:
            yield open_any(path)
        except FeatxError:
            continue  # the usual way says what is wrong with it


def _plain(request: Any) -> Any:
    return json.loads(json.dumps(request))


def _is_as_made(cache: Cache) -> bool:
    """Whether the packages and the weights are those that made the file."""
    recorded = {**cache.meta.get("versions", {})}
    recorded.pop("python", None)
    try:
        if any(version(name) != number for name, number in recorded.items()):
            return False
    except PackageNotFoundError:
        return False
    weights: Mapping[str, str] = cache.meta.get("weights", {})
    file = weights.get("file")
    if not file:
        return "sha256" in weights
    if "key" not in weights and "weights" in cache.meta["request"]:
        return False  # of a file with several networks, another one is taken today
    own = os.environ.get("FEATX_WEIGHTS")
    if own and _may_be_found(Path(own).expanduser(), Path(file), cache.meta["backbone"]):
        return False  # another file of that name lies there now
    return digest_file(Path(file)) == weights.get("file_sha256")


def _may_be_found(own: Path, file: Path, backbone: str) -> bool:
    """Whether a folder of weights has another file that may be meant."""
    if own.resolve() in file.resolve().parents:
        return False
    starts = (file.name, backbone.rpartition("/")[2].partition(".")[0])
    return not own.is_dir() or any(path.name.startswith(starts) for path in own.iterdir())


def _matching(caches: Iterable[Cache], source: Source, reporter: Reporter) -> list[Cache]:
    """Files of one split, one a layer, made of the very images."""
    of_split = [cache for cache in caches if cache.meta.get("split") == source.split]
    if not of_split:
        return []
    digests = source.image_digests(reporter=reporter)
    images = images_identity(source, source.content_id(digests))
    of_images = [cache for cache in of_split if cache.meta["identity"].get("source") == images]
    of_images = distinct(of_images)
    if any(has_leftovers(cache.path) for cache in of_images):
        return []  # a writer tidies up
    # The content does not depend on names and order; the rows of a file do.
    if not all(has_rows(cache, source.paths, source.labels, digests) for cache in of_images):
        return []
    by_layer = {(cache.meta["layer"], cache.meta["pool"]): cache for cache in of_images}
    return list(by_layer.values()) if len(by_layer) == len(of_images) else []


def _report(cache: Cache, path: Path) -> ExtractReport:
    n_images, n_features = cache.X.shape
    return ExtractReport(
        path=path,
        n_images=n_images,
        n_features=n_features,
        dtype=str(cache.X.stored_dtype),
        n_computed=0,
        n_failed=len(cache.errors),
        seconds=0.0,
        n_bytes=cache.n_bytes,
    )
