"""Where featx keeps what it downloads, and which image files it has hashed.

Digests are remembered by size and times, so that unchanged files are not read again: a file whose
size, time of modification and time of change are as they were has the bytes that it had (as Git
and make assume). Files that were changed less than two seconds before they were hashed are not
remembered: on a coarse clock, a later change might not show.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from featx.fingerprint import sha256_file

__all__ = [
    "Remembered",
    "Stamp",
    "default_data_dir",
    "digest_file",
    "stamp_file",
]


Stamp = tuple[int, int, int]
"""Size in bytes, time of modification and time of change in nanoseconds."""

_ENTRY: Final = np.dtype([("name", "u1", 16), ("stamp", "<i8", 3), ("sha256", "u1", 32)])
_MAGIC: Final = b"featx digests 1\n"
_COARSEST_CLOCK_NS: Final = 2_000_000_000


def stamp_file(path: str | os.PathLike[str]) -> Stamp | None:
    """Stamp a file, or what a link leads to; None where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - 60,000 Path objects are slow
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def digest_file(path: Path) -> str | None:
    """Digest a file, unless it is as it was when it was last digested; None where there is none."""
    stamp = stamp_file(path)
    if stamp is None:
        return None
    memory = Remembered(str(path.parent.absolute()) + "#weights")
    known = memory.find(path.name, stamp)
    if known is None:
        known = bytes.fromhex(sha256_file(path))
        memory.add(path.name, stamp, known)
        memory.save()
    return known.hex()


class Remembered:
    """Hashes of the images of one place.

    They lie in a file of their own under the data folder; without a place, or where that
    folder cannot be read or written, nothing is remembered and everything works as before.
    """

    def __init__(self, place: str | None) -> None:
        self._file: Path | None = None
        self._known: dict[bytes, tuple[Stamp, bytes]] = {}
        self._is_changed = False
        if place is not None:
            key = hashlib.sha256(os.fsencode(place)).hexdigest()[:32]
            self._file = default_data_dir() / "digests" / key
            self._known = _read(self._file)

    def find(self, name: str, stamp: Stamp | None) -> bytes | None:
        """Give the SHA-256 of an image, 32 bytes, if it is known."""
        found = self._known.get(_short(name))
        return found[1] if found is not None and found[0] == stamp else None

    def add(self, name: str, stamp: Stamp | None, sha256: bytes) -> None:
        """Remember an image, whose stamp was taken before it was read."""
        if self._file is None or stamp is None:
            return
        if max(stamp[1:]) < time.time_ns() - _COARSEST_CLOCK_NS:
            self._known[_short(name)] = stamp, sha256
            self._is_changed = True

    def forget(self, names: Iterable[str]) -> None:
        """Forget images whose bytes changed although their stamps did not."""
        for name in names:
            self._is_changed |= self._known.pop(_short(name), None) is not None

    def save(self) -> None:
        """Write what is remembered, in one step; a disk that refuses is no error."""
        if self._file is None or not self._is_changed:
            return
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            fd, draft = tempfile.mkstemp(dir=self._file.parent, prefix=".")
            try:
                with os.fdopen(fd, "wb") as stream:
                    stream.write(_encode(self._known.items()))
                Path(draft).replace(self._file)
            except BaseException:
                Path(draft).unlink(missing_ok=True)
                raise
        self._is_changed = False


def _short(name: str) -> bytes:
    encoded = name.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(encoded, digest_size=_ENTRY["name"].itemsize).digest()


def _encode(known: Iterable[tuple[bytes, tuple[Stamp, bytes]]]) -> bytes:
    known = list(known)
    entries = np.empty(len(known), _ENTRY)
    for i, (name, (stamp, sha256)) in enumerate(known):
        entries[i] = np.frombuffer(name, "u1"), stamp, np.frombuffer(sha256, "u1")
    body = entries.tobytes()
    return _MAGIC + hashlib.sha256(body).digest() + body


def _read(file: Path) -> dict[bytes, tuple[Stamp, bytes]]:
    """Read a file; one that is missing, damaged or of another version counts as empty."""
    try:
        stream = io.BytesIO(file.read_bytes())
    except OSError:
        return {}
    is_ours = stream.read(len(_MAGIC)) == _MAGIC
    check, body = stream.read(32), stream.read()
    if not is_ours or hashlib.sha256(body).digest() != check:
        return {}
    entries = np.frombuffer(body, _ENTRY)
    names, hashes = (entries[key].tobytes() for key in ("name", "sha256"))
    stamps = entries["stamp"].tolist()
    return {
        names[16 * i : 16 * i + 16]: ((size, modified, changed), hashes[32 * i : 32 * i + 32])
        for i, (size, modified, changed) in enumerate(stamps)
    }


def default_data_dir() -> Path:
    """Give the folder that data sets are downloaded to."""
    chosen = os.environ.get("FEATX_DATA")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "featx" / "data"
