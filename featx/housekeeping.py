"""What lies in a cache folder, and what of it may go.

Only files that featx made are ever listed or removed: they are known by their
names and by their first bytes. Nothing that a running process writes is removed,
and no link is followed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from featx.atomic import is_flocked
from featx.errors import CacheBusyError, CacheError, UsageError, nearest
from featx.store import disk, read_summary
from featx.store.lock import Lock
from featx.store.new_file import PROJECTOR_FILES, TEMPORARY
from featx.store.partial import discard
from featx.store.recognise import (
    LOCK,
    PARTIAL,
    PLACE_MANIFEST,
    age_of,
    files_below,
    first_bytes,
    is_journal,
    is_lock,
    is_partial,
    is_removable,
    size_of,
    target_of,
)
from featx.store.shards import INDEX, PLACE_LOCK, Manifest, is_place

__all__ = ["Entry", "Garbage", "find_garbage", "list_entries", "plan_removal", "remove"]

_MADE_BY: Final = ("backbone", "data", "split", "layer", "pool")
_DAY_SECONDS: Final = 86_400.0


@dataclass(frozen=True)
class Entry:
    """A cache, a partial file or an archive in a cache folder."""

    path: Path
    state: str
    n_bytes: int
    age_seconds: float
    made_by: str


@dataclass(frozen=True)
class Garbage:
    """Something that nobody needs any more."""

    path: Path
    reason: str
    n_bytes: int
    age_seconds: float


def list_entries(folder: str | os.PathLike[str]) -> list[Entry]:
    """Describe every cache, partial file and archive in a folder and below it.

    The shards of a place are one cache.
    """
    paths = files_below(_root(folder))
    places = {path.parent for path in paths if path.name == PLACE_MANIFEST}
    alone = [p for p in paths if is_removable(p) and places.isdisjoint(p.parents)]
    return sorted(map(_entry, [*places, *alone]), key=lambda entry: entry.path)


def _root(folder: str | os.PathLike[str]) -> Path:
    root = Path(folder)
    if not root.is_dir():
        raise CacheError(f"there is no cache folder {root}: name it with --cache DIR")
    return root


def _entry(path: Path) -> Entry:
    if path.is_dir():
        return _place_entry(path)
    state, made_by = "packed", "an archive:  featx unpack  gives the cache back"
    if not first_bytes(path).startswith(b"featx-pack "):
        try:
            summary = read_summary(path)
        except CacheError as error:
            state, made_by = "damaged", str(error).removeprefix(f"{path}: ")
        else:
            state, made_by = _state(summary), _made_by(summary["meta"])
    return Entry(path, state, size_of(path), age_of(path), made_by)


def _place_entry(place: Path) -> Entry:
    files = [path for path in files_below(place) if path.is_file()]
    try:
        manifest = Manifest.read(place)
        n_missing = len(manifest.missing(place))
    except CacheError as error:
        state, made_by = "damaged", str(error).removeprefix(f"{place / PLACE_MANIFEST}: ")
    else:
        n = manifest.n_shards
        state = f"{n - n_missing:,} of {n:,} shards" if n_missing else "complete"
        made_by = _made_by(dict(manifest.meta))
    n_bytes = sum(path.lstat().st_size for path in files)
    return Entry(place, state, n_bytes, min(map(age_of, files)), made_by)


def _state(summary: dict[str, Any]) -> str:
    if summary["complete"]:
        return "complete"
    n_done = summary["n_done"] + summary["n_failed"]
    return f"partial {100 * n_done // summary['n_rows']} %"


def _made_by(meta: dict[str, Any]) -> str:
    values = [str(meta[name]) for name in _MADE_BY if meta.get(name) not in (None, "none")]
    return " ".join(values) or "unknown"


def plan_removal(folder: str | os.PathLike[str], names: Iterable[str]) -> list[Path]:
    """Find the files to remove, and refuse what must stay."""
    root = _root(folder)
    found: dict[Path, None] = {}
    for name in names:
        path = _inside(root, name)
        if is_place(path) and not path.is_symlink():
            found.update(dict.fromkeys(_files_of(path)))
            continue
        partials = sorted(
            p for p in path.parent.glob("*") if is_partial(p) and target_of(p) == path
        )
        if not os.path.lexists(path) and not partials:
            raise _absent(root, name)
        if os.path.lexists(path):
            if path.is_symlink() or not is_removable(path):
                raise CacheError(f"{path} is not a cache of featx, and is left alone")
            found[path] = None
        found.update(dict.fromkeys(partials))
    for path in found:
        with _unused(path):
            pass
    return list(found)


def _files_of(place: Path) -> list[Path]:
    """Files of a place, its manifest last: what is left of it stays a place until then."""
    files = [path for path in files_below(place) if is_removable(path)]
    names = (INDEX, PLACE_LOCK, PLACE_MANIFEST)
    return [*files, *(place / name for name in names if (place / name).is_file())]


def _inside(root: Path, name: str) -> Path:
    for path in (root / name, Path(name)):
        folder = path.parent.resolve()
        if (
            folder.is_relative_to(root.resolve())
            and path.name not in ("", "..")
            and folder.is_dir()
        ):
            return root / folder.relative_to(root.resolve()) / path.name
    raise UsageError(f"{name!r} lies outside the cache folder {root}: name a file in it")


def _absent(root: Path, name: str) -> UsageError:
    names = [str(entry.path.relative_to(root)) for entry in list_entries(root)]
    close = nearest(name, names)
    hint = f"did you mean {', '.join(close)}?" if close else "see  featx cache list"
    return UsageError(f"no file {name!r} in {root}: {hint}")


@contextmanager
def _unused(path: Path) -> Iterator[None]:
    """Hold the locks of a file, so that nobody starts to write it meanwhile."""
    with disk.translated(f"cannot lock {path}"):
        lock = Lock(target_of(path))
        lock.acquire()
        try:
            if PARTIAL.fullmatch(path.name):
                _refuse_written(path, lock)
            yield
        finally:
            lock.release()


def _refuse_written(partial: Path, lock: Lock) -> None:
    if not lock.is_supported:
        raise CacheBusyError(f"{partial}: its folder has no locks, so it may be in use: delete it")
    # It stays locked by its writer also where the other lock was lost.
    if is_flocked(partial):
        raise CacheBusyError(f"{partial} is being written by another process")


def remove(paths: Iterable[Path]) -> int:
    """Remove files found by `plan_removal` or `find_garbage`."""
    n_bytes = 0
    for path in paths:
        with disk.translated(f"cannot remove {path}"):
            n_bytes += size_of(path) if os.path.lexists(path) else 0
            _remove(path)
        if path.name == PLACE_MANIFEST:
            _remove_empty(path.parent)
    return n_bytes


def _remove_empty(place: Path) -> None:
    for folder in [*filter(Path.is_dir, files_below(place)), place]:
        with suppress(OSError):  # something of the user's is in it
            folder.rmdir()


def _remove(path: Path) -> None:
    if TEMPORARY.fullmatch(path.name):
        if is_flocked(path):
            raise CacheBusyError(f"{path} is being written by another process")
        shutil.rmtree(path) if path.is_dir() else disk.unlink(path)
    elif LOCK.fullmatch(path.name):
        lock = Lock(path.with_name(path.name.removesuffix(".lock")))
        lock.acquire()
        lock.release()  # which removes it
    else:
        with _unused(path):
            discard(path) if PARTIAL.fullmatch(path.name) else disk.unlink(path)


def find_garbage(
    folder: str | os.PathLike[str], older_than_days: float = 7.0
) -> tuple[list[Garbage], list[str]]:
    """Find what stopped runs left behind and nobody uses."""
    garbage, notices = [], []
    for path in files_below(_root(folder)):
        try:
            reason = _garbage(path)
            age = age_of(path) if reason else 0.0
            if not reason or age < older_than_days * _DAY_SECONDS:
                continue
            if _is_in_use(path):
                notices.append(f"left alone: {path} is in use")
            else:
                garbage.append(Garbage(path, reason, size_of(path), age))
        except FileNotFoundError:  # finished or removed meanwhile
            continue
    return garbage, notices


def _garbage(path: Path) -> str:
    if TEMPORARY.fullmatch(path.name):
        is_ours = path.is_file() or {p.name for p in path.iterdir()} <= set(PROJECTOR_FILES)
        return "left by a stopped pack or export" if is_ours else ""
    if not path.is_file():
        return ""
    if is_partial(path):
        state = _entry(path).state
        return "partial without its journal" if state == "damaged" else f"{state}, resumable"
    partial = path.name.removesuffix(".new").removesuffix(".journal")
    if is_journal(path) and not path.with_name(partial).exists():
        return "journal without its file"
    return "lock of no process" if is_lock(path) else ""


def _is_in_use(path: Path) -> bool:
    if TEMPORARY.fullmatch(path.name):
        return is_flocked(path)
    name = path.name if LOCK.fullmatch(path.name) else f"{target_of(path).name}.lock"
    return any(is_flocked(p) for p in (path, path.with_name(name)))
