"""The user block: a readable text that digests all of the file but the features.

HDF5 skips a file's first 4,096 bytes if asked to when the file is made. featx
keeps a text there with the SHA-256 (the seal) of every byte that is neither in
this block nor in the features. It is checked before HDF5 parses anything.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from featx.errors import CacheError
from featx.store import disk
from featx.store.layout import USERBLOCK_BYTES

__all__ = [
    "PARTIAL_BLOCK",
    "HeaderBlock",
    "hash_bytes",
    "hash_file",
    "is_archive",
    "is_featx",
    "is_readable_version",
    "read_block",
    "with_check",
]

_MAGIC: Final = b"featx-cache "
_PARTIAL: Final = b"featx-partial "
_ARCHIVE: Final = b"featx-pack "
_OTHERS: Final = {
    _PARTIAL: "incomplete",
    _ARCHIVE: "a packed archive: get the cache back with  featx unpack FILE",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, but not a featx cache",
}
PARTIAL_BLOCK: Final = (_PARTIAL + b"1\n").ljust(USERBLOCK_BYTES, b"\0")
_TEXT = re.compile(
    rb"([^\n]{13})\nfile_bytes (\d{1,18})\nfeatures_offset (\d{1,18})\n"
    rb"features_bytes (\d{1,18})\nseal ([0-9a-f]{64})\ncheck ([0-9a-f]{64})\n"
)


@dataclass(frozen=True)
class HeaderBlock:
    """What the first 4,096 bytes of a file say."""

    file_bytes: int
    features_offset: int
    features_bytes: int
    digest: str

    @property
    def features_end(self) -> int:
        """The first byte after the features."""
        return self.features_offset + self.features_bytes

    def render(self) -> bytes:
        """Write the user block: text with its own checksum, zeros up to 4,096 bytes."""
        return with_check(
            f"featx-cache 1\nfile_bytes {self.file_bytes}\n"
            f"features_offset {self.features_offset}\nfeatures_bytes {self.features_bytes}\n"
            f"seal {self.digest}\n"
        )

    @classmethod
    def parse(cls, block: bytes) -> HeaderBlock:
        """Read a user block in which every byte is as `render` writes it."""
        match = _TEXT.match(block)
        if match is None or _newer_version(block):
            raise CacheError(_reason(block))
        found = cls(int(match[2]), int(match[3]), int(match[4]), match[5].decode())
        if found.render() != block:
            raise CacheError("damaged: the checksum of its first 4,096 bytes is wrong")
        if not USERBLOCK_BYTES <= found.features_offset < found.features_end <= found.file_bytes:
            raise CacheError("damaged: its features lie outside the file")
        return found

    def check_size(self, fd: int, mend: str) -> None:
        """Refuse a file that is shorter or longer than it was; `mend` says what to do."""
        n_bytes = os.fstat(fd).st_size
        if n_bytes != self.file_bytes:
            raise CacheError(
                f"damaged: it has {n_bytes:,} bytes in place of {self.file_bytes:,}: {mend}"
            )

    def check_seal(self, fd: int, mend: str) -> None:
        """Refuse a file of which anything but the features changed."""
        if hash_file(fd, self) != self.digest:
            what = "labels, names, paths, status or structure" if self.features_bytes else "it"
            raise CacheError(
                f"damaged: {what} changed since it was written (its seal does not match): {mend}"
            )


def with_check(text: str) -> bytes:
    """Give the bytes of a user block: a text with its own checksum, then zeros."""
    check = hashlib.sha256(text.encode()).hexdigest()
    return f"{text}check {check}\n".encode().ljust(USERBLOCK_BYTES, b"\0")


def _reason(block: bytes) -> str:
    newer = _newer_version(block)
    if newer:
        return f"made by a newer featx (encoding version {newer}, this one reads 1): update featx"
    if block.startswith(_MAGIC) or _TEXT.match(block):
        return "damaged: its first 4,096 bytes cannot be read"
    for start, reason in _OTHERS.items():
        if block.startswith(start):
            return reason
    return "not a featx cache" if block else "empty"


def _newer_version(block: bytes) -> int:
    version, text = re.match(rb"featx-cache (\d{1,9})\n", block), _TEXT.match(block)
    if version is None or int(version[1]) < 2:
        return 0
    if text is None:
        return int(version[1])
    # A text like ours with a checksum that is wrong: the version is what was damaged.
    check = hashlib.sha256(block[: text.start(6) - len(b"check ")]).hexdigest()
    return int(version[1]) if check.encode() == text[6] else 0


def is_featx(block: bytes) -> bool:
    """Whether a file that starts so is a cache or a partial file, whatever its state."""
    return block.startswith((_MAGIC, _PARTIAL)) or _TEXT.match(block) is not None


def is_archive(block: bytes) -> bool:
    """Whether a file that starts so was written by ``featx pack``."""
    return block.startswith(_ARCHIVE)


def is_readable_version(block: bytes) -> bool:
    """Whether a file that starts so is no partial file, and of no newer version."""
    return not block.startswith(_PARTIAL) and not _newer_version(block)


def read_block(fd: int) -> bytes:
    """Read the first 4,096 bytes of an open file, or what there is of them."""
    return os.pread(fd, USERBLOCK_BYTES, 0)


def hash_bytes(parts: Iterable[bytes | bytearray | memoryview]) -> str:
    """SHA-256 of some pieces of memory one after the other."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    return state.hexdigest()


def hash_file(fd: int, block: HeaderBlock) -> str:
    """SHA-256 of all bytes that are neither in the user block nor in the features."""
    before = disk.read_pieces(fd, USERBLOCK_BYTES, block.features_offset - USERBLOCK_BYTES)
    behind = disk.read_pieces(fd, block.features_end, block.file_bytes - block.features_end)
    return hash_bytes(itertools.chain(before, behind))
