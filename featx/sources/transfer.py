"""Whole files between URLs and this machine: fetched once and checked, published once."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from featx.atomic import part_of, replace_text
from featx.errors import CacheError, ReadError, SourceError, UsageError, reason_of
from featx.fingerprint import sha256_file
from featx.progress import SILENT, Reporter
from featx.records import parse_json
from featx.sources.places import default_data_dir, digest_file
from featx.text import size_text
from featx.urls import (
    Stat,
    check_url,
    create,
    download,
    is_url,
    join,
    local_path,
    name_of,
    parent,
    read_url,
    shown,
    stat_url,
    walk,
    write_text,
)

__all__ = ["fetch_file", "fetch_folder", "here", "publish"]

_SUM, _RECORD = ".sha256", ".fetched"
_MOST_SUM_BYTES = 1 << 12
_HEX = re.compile(r"[0-9a-f]{64}")


def here(spec: str, reporter: Reporter = SILENT) -> str:
    """Give the path on this machine of a cache file, or a folder of some, that may be at a URL."""
    check_url(spec)
    if not is_url(spec):
        return spec
    if (path := local_path(spec)) is not None:
        return str(path)
    is_file = Path(name_of(spec)).suffix in (".h5", ".hdf5")
    return str((fetch_file if is_file else fetch_folder)(spec, reporter=reporter))


def fetch_file(url: str, data_dir: Path | None = None, *, reporter: Reporter = SILENT) -> Path:
    """Fetch a file, unless it is here and the server's is still the same.

    Where ``NAME.sha256`` lies beside it, what came is compared with that.
    """
    stat = stat_url(url)
    if stat is None:
        raise ReadError(f"cannot read {shown(url)!r}: the server has no such file")
    return _fetch(url, _place(parent(url), data_dir) / _safe(name_of(url), url), stat, reporter)


def fetch_folder(url: str, data_dir: Path | None = None, *, reporter: Reporter = SILENT) -> Path:
    """Fetch the files below a folder of caches, each as `fetch_file` does."""
    place = _place(url, data_dir)
    files = {name: stat for name, stat in walk(url) if not name.endswith(_SUM)}
    if not files:
        raise ReadError(f"{shown(url)!r} has no files: give the URL of a cache, or of their folder")
    for name, stat in sorted(files.items()):
        parts = [_safe(part, url) for part in name.split("/")]
        _fetch(join(url, name), place.joinpath(*parts), stat, reporter)
    return place


def _place(folder: str, data_dir: Path | None) -> Path:
    root = default_data_dir() if data_dir is None else data_dir
    address = shown(folder).rstrip("/")
    number = hashlib.sha256(address.encode()).hexdigest()[:16]
    return root / "fetched" / number / _safe(name_of(address), address)


def _safe(name: str, url: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise UsageError(
            f"{shown(url)}: {name!r} cannot be the name of a file: give that of a file"
        )
    return name


def _fetch(url: str, target: Path, stat: Stat, reporter: Reporter) -> Path:
    record = target.with_name(target.name + _RECORD)
    known = _recorded(record)
    is_same = stat.tag is not None and known.get("tag") == stat.tag and "sha256" in known
    if is_same and digest_file(target) == known["sha256"]:
        return target
    size = "" if stat.n_bytes is None else f" ({size_text(stat.n_bytes)})"
    reporter.say(f"fetching {shown(url)}{size}")
    wanted = _sum_beside(url)
    try:
        with part_of(target) as part:
            download(url, part)
            digest = _checked(url, part, stat, wanted)
        entry = {"url": shown(url), "tag": stat.tag, "sha256": digest}
        replace_text(record, json.dumps(entry) + "\n")
    except OSError as error:
        raise SourceError(f"{shown(url)} cannot be kept as {target}: {reason_of(error)}") from error
    return target


def _checked(url: str, part: Path, stat: Stat, wanted: str | None) -> str:
    n_bytes = part.stat().st_size
    if stat.n_bytes not in (None, n_bytes):
        raise ReadError(
            f"{shown(url)!r} has {stat.n_bytes:,} bytes, and {n_bytes:,} came: run the same again"
        )
    digest = sha256_file(part)
    if wanted not in (None, digest):
        raise ReadError(
            f"{shown(url)!r} does not fit the checksum beside it ({name_of(url)}{_SUM}): it was "
            "damaged, or only one of the two was replaced. Publish it again under another name"
        )
    return digest


def _recorded(file: Path) -> dict[str, Any]:
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _sum_beside(url: str) -> str | None:
    """Read ``NAME.sha256`` as sha256sum writes it; None where it is not there or not for us."""
    if shown(url) != url:  # what is signed is signed for one file
        return None
    beside = url + _SUM
    if stat_url(beside) is None:
        return None
    text = read_url(beside, _MOST_SUM_BYTES).decode("utf-8", "replace")
    word = text.split(" ")[0].strip()
    if not _HEX.fullmatch(word):
        raise ReadError(f"{beside!r} is no checksum of SHA-256: write it with  sha256sum")
    return word


def publish(path: Path, url: str, reporter: Reporter = SILENT) -> str:
    """Write a finished file whole to a URL, with its checksum as ``URL.sha256`` beside it.

    The name is taken only if nothing has it. The same file again is no error; a file that has the
    name and another content is one, and stays as it is.

    Parameters
    ----------
    path : Path
        A file that nothing changes any more.
    url : str
        ``s3://`` or ``gs://``: a name, or a folder where it ends with ``/``.
    reporter : Reporter, optional
        Is told what is written.

    Returns
    -------
    str
        SHA-256 of the file, 64 hexadecimal digits.

    Raises
    ------
    CacheError
        If there is no such file, or something else has the name.
    ReadError
        If the server cannot be reached, or does not allow it.
    UsageError
        If featx does not write to such URLs.
    """
    if not path.is_file():
        raise CacheError(f"there is no file {path} to publish")
    check_url(url)
    target = join(url, path.name) if url.endswith("/") else url
    digest = sha256_file(path)
    reporter.say(f"{path}: writing {size_text(path.stat().st_size)} to {shown(target)}")
    if not create(path, target):
        _require_same(path, target, digest)
    write_text(target + _SUM, f"{digest}  {name_of(target)}\n")
    return digest


def _require_same(path: Path, url: str, digest: str) -> None:
    """Refuse a name that something else has; where no checksum says what, the file is fetched."""
    stat = stat_url(url)
    found = _sum_beside(url)
    if found is None and stat is not None and stat.n_bytes == path.stat().st_size:
        with part_of(default_data_dir() / "fetched" / "compared") as part:
            download(url, part)
            found = sha256_file(part)
    if stat is None or stat.n_bytes != path.stat().st_size or found != digest:
        raise CacheError(
            f"{shown(url)} is there with another content, and is never replaced: publish {path} "
            "under another name, or remove that file first"
        )
