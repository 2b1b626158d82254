"""Compressed tar archives: unpacked once to a plain one, which can be read at any place."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from featx.atomic import locked, part_of, replace_text
from featx.errors import SourceError
from featx.progress import SILENT, Reporter
from featx.records import parse_json
from featx.sources.archives.members import ArchiveFile, archive_stem
from featx.sources.archives.tar import is_header
from featx.sources.places import default_data_dir

__all__ = ["is_compressed", "plain_tar"]

_MIB = 1 << 20
_CHUNK = 4 * _MIB
_MOST_RATIO = 100  # a tar of images shrinks by 1 to 10
_SMALL_BYTES = 64 * _MIB  # never too much, whatever the ratio
_MOST_BYTES = 4 << 40
_SPARE_BYTES = 256 * _MIB  # left free for others
_VERSION = 1

_Opener = Callable[[BinaryIO], Any]
_OPENERS: dict[bytes, _Opener] = {
    b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream, mode="rb"),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
_ZSTANDARD = b"\x28\xb5\x2f\xfd"


def plain_tar(path: Path, data_dir: Path | None = None, *, reporter: Reporter = SILENT) -> Path:
    """Give a tar archive that is not compressed, unpacking it the first time.

    What is unpacked is one plain tar file, named by the content of the archive; no
    member is ever written by its name.
    """
    archive = ArchiveFile.of(path)
    opener = _opener(archive)
    if opener is None:
        return path
    folder = _folder(data_dir)
    record_file = folder / f"{_sha256(os.fsencode(archive.path))[:16]}.json"
    target = _recorded(record_file, archive)
    if target is not None:
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target = _unpack_once(archive, opener, folder, reporter)
        _write_record(record_file, archive, target)
    except OSError as error:
        raise SourceError(
            f"cannot unpack {archive.path!r} into {str(folder)!r}: {error.strerror or error}: "
            "make room, or set FEATX_DATA to a folder on another disk"
        ) from error
    return target


def is_compressed(start: bytes) -> bool:
    """Whether the first bytes of a file are those of a compressed one."""
    return start.startswith((*_OPENERS, _ZSTANDARD))


def _folder(data_dir: Path | None) -> Path:
    return (
        default_data_dir() if data_dir is None else data_dir
    ).expanduser().absolute() / "unpacked"


def _opener(archive: ArchiveFile) -> _Opener | None:
    with archive.open() as stream:
        start = stream.read(8)
    if start.startswith(_ZSTANDARD):
        raise SourceError(
            f"{archive.path!r} is compressed by Zstandard, which featx does not read: "
            f"unpack it to a plain tar with  zstd -d"
        )
    return next((_OPENERS[mark] for mark in _OPENERS if start.startswith(mark)), None)


def _unpack_once(archive: ArchiveFile, opener: _Opener, folder: Path, reporter: Reporter) -> Path:
    with archive.open() as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    stem = archive_stem(Path(archive.path))[:60]
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in stem)
    target = folder / f"{safe}-{digest[:16]}.tar"
    with locked(target.with_suffix(".lock"), reporter.warn):
        if not target.is_file():  # else it is the same archive under another name, or touched
            _unpack_to(target, archive, opener, reporter)
    return target


def _unpack_to(target: Path, archive: ArchiveFile, opener: _Opener, reporter: Reporter) -> None:
    with part_of(target) as part:
        n_bytes = _unpack(archive, opener, part, reporter)
    reporter.say(f"unpacked {n_bytes / 1e6:,.0f} MB to {target}; it may be deleted at any time")


def _unpack(archive: ArchiveFile, opener: _Opener, part: Path, reporter: Reporter) -> int:
    name = Path(archive.path).name
    most = min(_MOST_BYTES, max(_SMALL_BYTES, _MOST_RATIO * archive.n_bytes))
    _check_space(part.parent, archive.n_bytes)
    reporter.say(f"{name}: a compressed tar has no random access, so it is unpacked once")
    bar = reporter.bar(archive.n_bytes // _MIB + 1, f"unpacking {name}", "MiB")
    with archive.open() as packed, part.open("wb") as out, bar:
        for chunk in _chunks(opener(packed), archive):
            if out.tell() == 0 and not is_header(chunk[:512]):
                raise SourceError(f"{archive.path!r} is compressed, but no tar archive inside")
            if out.tell() + len(chunk) > most:
                raise SourceError(
                    f"{archive.path!r} unpacks to more than {most:,} bytes from "
                    f"{archive.n_bytes:,}: a decompression bomb?"
                )
            _check_space(part.parent, len(chunk))
            out.write(chunk)
            bar.update(packed.tell() // _MIB - bar.done)
        bar.update(bar.total - bar.done)
        return out.tell()


def _chunks(stream: Any, archive: ArchiveFile) -> Iterator[bytes]:
    try:
        while chunk := stream.read(_CHUNK):
            yield chunk
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise SourceError(
            f"{archive.path!r} is damaged or cut short ({error}): copy or download it again"
        ) from error


def _check_space(folder: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < n_bytes + _SPARE_BYTES:
        raise OSError(f"only {free / 1e6:,.0f} MB are free")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_record(record_file: Path, archive: ArchiveFile, target: Path) -> None:
    """Note what was unpacked to what; so the archive is not hashed again each time."""
    record = _record(archive) | {"target": target.name, "target_bytes": target.stat().st_size}
    replace_text(record_file, json.dumps(record))


def _record(archive: ArchiveFile) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "archive": archive.path,
        "archive_bytes": archive.n_bytes,
        "archive_changed_ns": archive.changed_ns,
    }


def _recorded(record_file: Path, archive: ArchiveFile) -> Path | None:
    """Give what was unpacked before, if the archive is the same; delete it if it is not whole."""
    try:
        record = parse_json(record_file.read_text(encoding="utf-8"))
        target, n_bytes = record_file.with_name(record.pop("target")), record.pop("target_bytes")
        if record != _record(archive):
            return None
        if target.stat().st_size != n_bytes:
            target.unlink()
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return target
