"""Tar archives: the list of their members by headers only, and images read by offset.

The headers are read here and not by `tarfile`, which stops without a word at a damaged header,
takes an archive that is cut off between two members for a whole one, and keeps an object of
a kilobyte for each member.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from featx.errors import ImageError, SourceError
from featx.sources.archives.members import ArchiveFile, ArchiveSource, Index, read_range
from featx.sources.folder import MOST_IMAGE_BYTES

__all__ = ["TarSource", "index_tar", "is_header", "read_tar_member"]

_BLOCK = 512
_LONGEST_EXTENSION = 1 << 20  # bytes of a long name, or of extended headers
_PADDING = 1 << 16  # behind the end mark, where a second archive is looked for

_FILE = frozenset({b"0", b"\0", b"7"})
_FOLDER = frozenset({b"5", b"D"})
_NO_DATA = frozenset({b"1", b"2", b"3", b"4", b"5", b"6", b"V"})
_EXTENSIONS = frozenset({b"x", b"g", b"X", b"L", b"K"})
_SPARSE = frozenset({b"S", b"M"})
_KINDS = {
    b"1": "hard links",
    b"2": "symbolic links",
    b"3": "devices or pipes",
    b"4": "devices or pipes",
    b"6": "devices or pipes",
}


class _Header(NamedTuple):
    """One header; the member's data start at `data`, and the next header at `end`."""

    name: str
    type: bytes
    size: int
    data: int
    end: int


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TarSource(ArchiveSource):
    """Images in plain tar archives: `members` are ranges of bytes of `archives`."""

    fields = np.dtype([("file", "<i4"), ("offset", "<i8"), ("size", "<i8")])

    def _read(self, stream: BinaryIO, member: Any) -> bytes:
        return read_tar_member(stream, int(member["offset"]), int(member["size"]))


def read_tar_member(stream: BinaryIO, offset: int, size: int) -> bytes:
    """Read one file of an open tar archive."""
    if size > MOST_IMAGE_BYTES:
        raise ImageError(f"{size:,} bytes, more than {MOST_IMAGE_BYTES:,}")
    data = read_range(stream, offset, size)
    if len(data) < size:
        raise ImageError("cannot be read: the archive ends before it does")
    return data


def index_tar(archive: ArchiveFile, *, number: int = 0, most: int | None = None) -> Index:
    """List the members of a plain tar archive (V7, ustar, GNU or pax).

    Files are listed; links, devices and pipes are left out and counted.
    """
    index = Index(archive)
    with index.archive.open() as stream:
        for header in islice(_headers(stream, index.archive), most):
            _add(index, header, number)
    return index


def _add(index: Index, header: _Header, number: int) -> None:
    if header.type in _FOLDER or (header.type in _FILE and header.name.endswith("/")):
        index.add_folder(header.name)
    elif header.type in _FILE:
        index.add_file(header.name, (number, header.data, header.size))
    elif header.type != b"V":  # the label of a volume is no member
        kind = _KINDS.get(header.type, "members of an unknown type")
        index.leave_out(kind, header.name)


def _headers(stream: BinaryIO, archive: ArchiveFile) -> Iterator[_Header]:
    """Give the headers of all members, with the names and sizes of the extensions applied."""
    offset, extended = 0, dict[str, str]()
    while True:
        block = read_range(stream, offset, _BLOCK)
        if len(block) < _BLOCK and offset:
            raise SourceError(_cut_short(archive, "its end mark is missing"))
        if len(block) == _BLOCK and not any(block):
            if extended:
                raise SourceError(_damaged(archive, offset))
            _check_end(stream, archive, offset)
            return
        header = _parse(block, offset, archive, extended)
        if header.end > archive.n_bytes:
            raise SourceError(_cut_short(archive, f"{header.name!r} ends behind its end"))
        if header.type in _EXTENSIONS:
            extended |= _extension(stream, header, archive)
        else:
            extended = {}
            yield header
        offset = header.end


def _parse(block: bytes, offset: int, archive: ArchiveFile, extended: dict[str, str]) -> _Header:
    if not is_header(block):
        raise SourceError(_damaged(archive, offset))
    kind = block[156:157]
    if kind in _EXTENSIONS:
        extended = {}  # they are about the next member
    name = extended.get("path") or _name(block)
    if kind in _SPARSE or any(key.startswith("GNU.sparse.") for key in extended):
        raise SourceError(
            f"{archive.path!r} holds {name!r} as a sparse file or a part of one, which featx does "
            "not read: pack it again without --sparse"
        )
    try:
        size = int(extended["size"]) if "size" in extended else _number(block[124:136])
    except ValueError:
        size = -1
    if size < 0:
        raise SourceError(_damaged(archive, offset))
    data = offset + _BLOCK
    n_blocks = 0 if kind in _NO_DATA else -(-size // _BLOCK)
    return _Header(name, kind, size, data, data + n_blocks * _BLOCK)


def _name(block: bytes) -> str:
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:  # GNU's own format has other things there
        return f"{_text(block[345:500])}/{name}"
    return name


def is_header(block: bytes) -> bool:
    """Whether 512 bytes are a header of a tar archive, by its checksum."""
    if len(block) < _BLOCK or not any(block):
        return False
    try:
        wanted = _number(block[148:156])
    except ValueError:
        return False
    total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    # Very old writers summed the bytes as signed ones.
    return wanted == total or wanted == total - 256 * sum(byte > 127 for byte in block)


def _number(digits: bytes) -> int:
    """Read an octal number, or a big-endian one where the first bit is set."""
    if digits[0] & 0x80:
        magnitude = int.from_bytes(digits[1:], "big")
        return magnitude if digits[0] == 0x80 else -1  # 0xFF: below zero; others: beyond all disks
    return int(digits.split(b"\0")[0].strip() or b"0", 8)


def _text(raw: bytes) -> str:
    return _decode(raw.split(b"\0")[0])


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")  # as the names of files on the disk


def _extension(stream: BinaryIO, header: _Header, archive: ArchiveFile) -> dict[str, str]:
    """Read what an extension says about the next member: its path and its size."""
    if header.type in (b"g", b"K"):  # about all members, about the target of a link
        return {}
    if header.size > _LONGEST_EXTENSION:
        raise SourceError(_damaged(archive, header.data - _BLOCK))
    data = read_range(stream, header.data, header.size)
    if header.type == b"L":
        return {"path": _text(data)}
    try:
        return dict(_pax_records(data))
    except ValueError as error:
        raise SourceError(_damaged(archive, header.data - _BLOCK)) from error


def _pax_records(data: bytes) -> Iterator[tuple[str, str]]:
    """Give the records of a pax header that matter: length, space, key, ``=``, value, newline."""
    start = 0
    while start < len(data) and data[start]:
        space = data.index(b" ", start, start + 20)
        stop = start + int(data[start:space])
        key, is_pair, value = data[space + 1 : stop].partition(b"=")
        if not space < stop <= len(data) or not is_pair or value[-1:] != b"\n":
            raise ValueError("a damaged record")
        start, name = stop, _decode(key)
        if name in ("path", "size") or name.startswith("GNU.sparse."):
            yield name, _decode(value[:-1])


def _check_end(stream: BinaryIO, archive: ArchiveFile, offset: int) -> None:
    """Refuse a second archive behind the end mark, whose images would be left out unseen."""
    behind = read_range(stream, offset, _PADDING)
    blocks = (behind[i : i + _BLOCK] for i in range(0, len(behind), _BLOCK))
    if any(is_header(block) for block in blocks):
        raise SourceError(
            f"{archive.path!r} is followed by a second archive in the same file, which featx does "
            "not read: join them with  tar --concatenate  in place of cat"
        )


def _cut_short(archive: ArchiveFile, what: str) -> str:
    return (
        f"{archive.path!r} is cut short after {archive.n_bytes:,} bytes ({what}): "
        "copy or download it again"
    )


def _damaged(archive: ArchiveFile, offset: int) -> str:
    if offset == 0:
        return f"{archive.path!r} is no tar archive"
    return f"{archive.path!r} is damaged at byte {offset:,}: copy or download it again"
