"""Images inside an archive, read in place: the layouts of folders, or WebDataset.

Members of zip archives are listed by `zipfile`.
"""

from __future__ import annotations

import bz2
import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from featx.errors import ImageError, SourceError
from featx.progress import SILENT, Reporter
from featx.sources.archives.members import (
    TAR_ENDINGS,
    ArchiveFile,
    ArchiveSource,
    Index,
    archive_stem,
    read_range,
)
from featx.sources.archives.tar import TarSource, index_tar, is_header
from featx.sources.archives.unpacked import is_compressed, plain_tar
from featx.sources.archives.webdataset import looks_like_webdataset, open_indexed
from featx.sources.base import Source
from featx.sources.beside import is_metadata
from featx.sources.chosen import LayoutChoice
from featx.sources.folder import MOST_IMAGE_BYTES
from featx.sources.layout import ENDINGS, ending, is_shown, list_images, others, some
from featx.sources.recognise import wrapper
from featx.sources.tree import MemberTree, View

__all__ = [
    "ARCHIVE_ENDINGS",
    "ZipSource",
    "index_zip",
    "is_archive",
    "open_archive",
    "open_unlabelled",
]


_LOCAL = struct.Struct("<4s22xHH")  # signature, length of the name, of the extra field
_MOST_DIRECTORY_BYTES = 1 << 30  # of the list of members: some ten million
_MOST_RATIO = 200  # of members above 16 MiB; images hardly reach 10
_RATIO_FROM_BYTES = 16 << 20
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_UTF8 = 0x800
_SYSTEM_UNIX = 3
_UNICODE_PATH = 0x7075  # extra field of Info-ZIP, WinRAR and 7-Zip (APPNOTE.TXT, 4.6.9)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ZipSource(ArchiveSource):
    """Images in zip archives: `members` have what the archive's list says of each.

    Each read starts at the member's own header, unpacks no more than the bytes that
    the list declares, and compares their checksum.
    """

    fields = np.dtype(
        [
            ("file", "<i4"),
            ("offset", "<i8"),  # of the member's own header
            ("packed", "<i8"),
            ("size", "<i8"),
            ("crc", "<u4"),
            ("method", "<u2"),
            ("flags", "<u2"),
        ]
    )

    def _read(self, stream: BinaryIO, member: Any) -> bytes:
        _check_sizes(member)
        head = read_range(stream, int(member["offset"]), _LOCAL.size)
        if len(head) < _LOCAL.size or head[:4] != b"PK\3\4":
            raise ImageError("the archive is damaged: no image where its list says")
        skipped = _LOCAL.size + sum(_LOCAL.unpack(head)[1:])
        packed = read_range(stream, int(member["offset"]) + skipped, int(member["packed"]))
        if len(packed) < member["packed"]:
            raise ImageError("cannot be read: the archive ends before it does")
        data = _unpack(packed, int(member["method"]), int(member["size"]))
        if zlib.crc32(data) != member["crc"]:
            raise ImageError("damaged in the archive: its checksum (CRC-32) is wrong")
        return data


def _check_sizes(member: Any) -> None:
    if member["flags"] & _ENCRYPTED:
        raise ImageError("encrypted in the archive: unpack it with the password")
    size, packed = int(member["size"]), int(member["packed"])
    if max(size, packed) > MOST_IMAGE_BYTES:
        raise ImageError(
            f"{max(size, packed):,} bytes, more than {MOST_IMAGE_BYTES:,}: a zip bomb?"
        )
    if size > max(_RATIO_FROM_BYTES, _MOST_RATIO * packed):
        raise ImageError(f"{packed:,} bytes that unpack to {size:,}: a zip bomb?")


def _unpack(packed: bytes, method: int, size: int) -> bytes:
    """Unpack at most one byte more than `size`; so a size that lies costs nothing."""
    try:
        if method == zipfile.ZIP_STORED:
            data = packed
        elif method == zipfile.ZIP_DEFLATED:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1)
        elif method == zipfile.ZIP_BZIP2:
            data = bz2.BZ2Decompressor().decompress(packed, size + 1)
        else:
            raise ImageError(
                f"packed by zip's method {method}, which featx does not read: pack it with deflate"
            )
    except (zlib.error, OSError) as error:
        raise ImageError(f"damaged in the archive ({error})") from error
    if len(data) > size:
        raise ImageError(f"unpacks to more than the {size:,} bytes that the archive declares")
    if len(data) < size:
        raise ImageError(f"damaged in the archive: unpacks to {len(data):,} of {size:,} bytes")
    return data


def index_zip(path: Path) -> Index:
    """List the members of a zip archive.

    Files are listed; links, devices and pipes are left out and counted.
    """
    index = Index(ArchiveFile.of(path))
    with index.archive.open() as stream:
        _check_directory(stream, index.archive)
        try:
            with io.BufferedReader(stream) as whole, zipfile.ZipFile(whole) as archive:
                members, end = archive.infolist(), archive.start_dir
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            raise SourceError(
                f"{index.archive.path!r} is damaged ({error}): copy or download it again"
            ) from error
    _check_apart(members, end, index.archive)
    for member in members:
        _add(index, member)
    return index


def _add(index: Index, member: zipfile.ZipInfo) -> None:
    name = _name(member)
    mode = member.external_attr >> 16 if member.create_system == _SYSTEM_UNIX else 0
    if name.endswith("/"):
        index.add_folder(name)
    elif stat.S_ISLNK(mode):
        index.leave_out("symbolic links", name)
    elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        index.leave_out("devices or pipes", name)
    else:
        index.add_file(name, _row(member))


def _row(member: zipfile.ZipInfo) -> tuple[int, ...]:
    return (
        *(0, member.header_offset, member.compress_size, min(member.file_size, 1 << 62)),
        *(member.CRC, member.compress_type, member.flag_bits),
    )


def _name(member: zipfile.ZipInfo) -> str:
    """Give the name as stored, also behind a NUL, where `zipfile` cuts it; folders end with /.

    macOS writes UTF-8 without saying so; what is no UTF-8 is code page 437, as the format has it.
    Some programs of Windows write backslashes, which `clean_name` then judges as slashes.
    """
    name = member.orig_filename
    if not member.flag_bits & _UTF8:
        raw = name.encode("cp437")
        with suppress(UnicodeError):
            name = _unicode_path(member.extra, raw) or raw.decode()
    return name.replace("\\", "/")


def _unicode_path(extra: bytes, raw: bytes) -> str:
    """Give the name in the Unicode-path field, if it is about this name; else nothing."""
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        value, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and value[:5] == struct.pack("<BL", 1, zlib.crc32(raw)):
            return value[5:].decode()
    return ""


def _check_directory(stream: BinaryIO, archive: ArchiveFile) -> None:
    """Refuse a file without a list of members, or with one too long to be read into memory."""
    start = max(0, archive.n_bytes - (1 << 16) - 22)
    tail = read_range(stream, start, archive.n_bytes - start)
    at = tail.rfind(b"PK\5\6")
    if at < 0:
        if read_range(stream, 0, 4) != b"PK\3\4":
            raise SourceError(f"{archive.path!r} is no zip archive")
        raise SourceError(
            f"{archive.path!r} is cut short after {archive.n_bytes:,} bytes (the list of its "
            "members is missing): copy or download it again"
        )
    if _directory_bytes(tail, at) > _MOST_DIRECTORY_BYTES:
        raise SourceError(
            f"{archive.path!r} has a list of members of more than {_MOST_DIRECTORY_BYTES:,} "
            "bytes: pack it as several archives"
        )


def _directory_bytes(tail: bytes, at: int) -> int:
    if tail[max(0, at - 20) : at].startswith(b"PK\6\7"):  # zip64: its record lies before that
        return int.from_bytes(tail[max(0, at - 76) : at][40:48], "little")
    return int.from_bytes(tail[at + 12 : at + 16], "little")


def _check_apart(members: list[zipfile.ZipInfo], end: int, archive: ArchiveFile) -> None:
    """Refuse members that share bytes: so few bytes could unpack to very many."""
    last = 0
    for start, size in sorted((m.header_offset, m.compress_size) for m in members):
        if start < last:
            break
        last = start + _LOCAL.size + size
    else:
        if last <= end:
            return
    raise SourceError(
        f"{archive.path!r} has members that overlap, as a zip bomb has, or is damaged"
    )


ARCHIVE_ENDINGS = (".zip", *TAR_ENDINGS)
"""Endings of the files that are taken as archives, in lower case."""


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a path is called like an archive; it need not be there.

    Examples
    --------
    >>> is_archive("photos.tar.gz"), is_archive("photos.csv")
    (True, False)
    """
    return os.fspath(path).lower().endswith(ARCHIVE_ENDINGS)


def open_archive(
    path: str | os.PathLike[str],
    *,
    layout: LayoutChoice | None = None,
    wanted: Collection[str] = (),
    data_dir: Path | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Source]:
    """List the images of an archive.

    The layouts are those of `featx.sources.folder.open_folder`; one folder that holds
    everything (``cifar10/train/...``) is looked through. A tar archive may also be a shard
    of a WebDataset. Nothing is unpacked but a compressed tar, once, to a plain one.
    """
    path = Path(path).expanduser().absolute()
    if _is_zip(path):
        return _open(index_zip(path), path, ZipSource, layout, wanted, reporter)
    index = _index_tar(path, data_dir, reporter)
    if not layout and looks_like_webdataset(index):
        return open_indexed(path, index, reporter=reporter)
    return _open(index, path, TarSource, layout, wanted, reporter)


def open_unlabelled(
    path: str | os.PathLike[str], *, data_dir: Path | None = None, reporter: Reporter = SILENT
) -> Source:
    """List every image of an archive, whatever its folders."""
    path = Path(path).expanduser().absolute()
    kind: type[ArchiveSource] = ZipSource if _is_zip(path) else TarSource
    is_zip = kind is ZipSource
    index = index_zip(path) if is_zip else _index_tar(path, data_dir, reporter)
    index.tell(reporter)
    names = sorted(name for name in index.files if _is_image(name))
    if not names:
        raise SourceError(f"{str(path)!r} has no images among its {len(index.files):,} files")
    if len(names) < len(index.files):
        n_others = len(index.files) - len(names)
        reporter.say(f"{str(path)!r}: {others(n_others)} left out")
    return kind(
        name=archive_stem(path),
        split="all",
        class_names=(),
        labels=np.full(len(names), -1, np.int64),
        paths=tuple(names),
        archives=(index.archive,),
        members=kind.table(index.rows[index.files[name]] for name in names),
    )


def _index_tar(path: Path, data_dir: Path | None, reporter: Reporter) -> Index:
    return index_tar(ArchiveFile.of(plain_tar(path, data_dir, reporter=reporter)))


def _is_image(name: str) -> bool:
    return ending(name) in ENDINGS and all(map(is_shown, name.split("/")))


def _is_zip(path: Path) -> bool:
    """Tell by the first bytes, and by the name where these are of no archive at all."""
    with ArchiveFile.of(path).open() as stream:
        start = stream.read(512)
    is_tar = is_header(start) or is_compressed(start)
    return start[:2] == b"PK" or (path.suffix.lower() == ".zip" and not is_tar)


def _open(
    index: Index,
    path: Path,
    kind: type[ArchiveSource],
    choice: LayoutChoice | None,
    wanted: Collection[str],
    reporter: Reporter,
) -> dict[str, Source]:
    index.tell(reporter)
    tree = MemberTree(archive_stem(path), str(path), index.files, index.folders)
    if not choice and (metadata := [name for name in index.files if is_metadata(name)]):
        reporter.warn(
            f"{str(path)!r}: {some(metadata)} in the archive not read, the classes are the "
            "folders: to take its labels, unpack the archive and give that file after --data"
        )
    top = wrapper(View(tree, ENDINGS))
    return {
        split: kind(
            name=tree.name,
            split=split,
            class_names=found.class_names,
            labels=found.labels,
            paths=tuple(name.removeprefix(top) for name in found.paths),
            archives=(index.archive,),
            members=kind.table(index.rows[index.files[name]] for name in found.paths),
        )
        for split, found in list_images(tree, choice, wanted=wanted, reporter=reporter).items()
    }
