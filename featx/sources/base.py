"""What every source of images gives: rows with labels and names, and their content's hash."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from featx.errors import ImageError, ReadError, SourceError, UnreachableError
from featx.images import decode
from featx.progress import SILENT, Reporter
from featx.sources.places import Remembered, Stamp

__all__ = ["ArraySource", "Source", "content_of"]

_ROWS_PER_TASK = 128
_ROWS_PER_PIECE = 1 << 16
_MOST_THREADS = 8
_MOST_NAMED = 5
_MOST_UNREAD = 1000  # then hashing stops: a disk that is gone may answer slowly


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Source(ABC):
    """One split of a data set: N labelled images, read lazily by row.

    A source can be pickled to worker processes; that sends names and labels, not images.

    Parameters
    ----------
    name : str
        ``"cifar10"``, or the folder's name.
    split : str
        ``"train"``, ``"val"``, ``"test"`` or ``"all"``.
    class_names : tuple of str
        In the order of the labels.
    labels : ndarray of int64, shape (N,)
        Index into `class_names`; -1 is unknown.
    paths : tuple of str
        N unique names, relative to the root, with ``/``; ``"test/00017"`` where there is no file.

    Raises
    ------
    ValueError
        If the parts do not fit together.
    """

    per_row: ClassVar[tuple[str, ...]] = ("labels", "paths")
    """Fields that have an entry for each image: arrays and tuples, which `take` restricts."""

    name: str
    split: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    paths: tuple[str, ...]
    part: str = ""
    """Names a part of the place whose hashes are remembered apart, so that a part is cheap."""

    def __post_init__(self) -> None:
        if self.labels.dtype != np.int64 or self.labels.shape != (len(self.paths),):
            raise ValueError("labels must be int64, one for each path")
        if len(self.labels) and not -1 <= self.labels.min() <= self.labels.max() < len(
            self.class_names
        ):
            raise ValueError("labels must index class_names")
        if len(set(self.paths)) != len(self.paths):
            raise ValueError("paths must be unique")

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.name!r}, split {self.split!r}: "
            f"{len(self):,} images, {len(self.class_names)} classes>"
        )

    @abstractmethod
    def read(self, row: int) -> bytes | np.ndarray:
        """Read one image without decoding it.

        Parameters
        ----------
        row : int
            From 0 to N - 1.

        Returns
        -------
        bytes or ndarray of uint8, shape (H, W, 3)
            An encoded file, or pixels.

        Raises
        ------
        ImageError
            If there is no image, whatever the machine does.
        ReadError
            If the machine cannot read it.
        """

    def fetch(self, row: int) -> tuple[bytes | np.ndarray | ImageError, bytes]:
        """Read one image, and hash just what was read; an `ImageError` where there is none."""
        try:
            data = self.read(row)
        except ImageError as error:
            return error, self._none(row)
        if isinstance(data, np.ndarray):
            content = f"{data.dtype} {data.shape}\n".encode() + data.tobytes()
            return data, hashlib.sha256(content).digest()
        return data, hashlib.sha256(data).digest()

    @property
    def place(self) -> str | None:
        """Absolute path of the folder, archive or table of the images; None in memory."""
        return None

    def stamp(self, row: int) -> Stamp | None:
        """Tell a changed image from an unchanged one, without reading it.

        Parameters
        ----------
        row : int
            From 0 to N - 1.

        Returns
        -------
        tuple of 3 int, or None
            Size in bytes, time of modification and time of change in nanoseconds; None
            where there is no such file.
        """
        del row
        return None

    def image(self, row: int, bits: int | None = None) -> Image.Image:
        """Read and decode one image.

        Parameters
        ----------
        row : int
            From 0 to N - 1.
        bits : int, optional
            Bits in use of values that are stored in 16.

        Returns
        -------
        PIL.Image.Image
            Mode RGB, upright; see `featx.images.decode`.

        Raises
        ------
        ImageError
            If the image cannot be decoded.
        ReadError
            If the machine cannot read it.
        SourceError
            If there is too little memory for it.
        """
        return self.decoded(row, self.read(row), bits)

    def decoded(self, row: int, data: bytes | np.ndarray, bits: int | None = None) -> Image.Image:
        """Decode what was read of a row; where the memory is too small, the error names it."""
        try:
            return decode(data, bits)
        except MemoryError as error:
            why = f" ({error})" if str(error) else ""
            raise SourceError(
                f"too little memory to decode {self.paths[row]}{why}: close other programs, use "
                "fewer --workers, or make the image smaller"
            ) from error

    def take(self, rows: np.ndarray) -> Self:
        """Restrict the source to some rows; all class names stay.

        Parameters
        ----------
        rows : ndarray of integers, shape (M,)
            Different rows of this source, in the order wanted.

        Returns
        -------
        Source
            With M rows.

        Raises
        ------
        ValueError
            If `rows` are not different row numbers of this source.
        """
        rows = self._checked(rows)
        taken: dict[str, Any] = {name: _pick(getattr(self, name), rows) for name in self.per_row}
        return replace(self, **taken)

    def _checked(self, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows)
        if rows.ndim != 1 or not (np.issubdtype(rows.dtype, np.integer) or rows.size == 0):
            raise ValueError("rows must be a one-dimensional array of integers")
        rows = rows.astype(np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise ValueError(f"rows must lie within 0 to {len(self) - 1}")
        if len(np.unique(rows)) != len(rows):
            raise ValueError("rows must be different")
        return rows

    def image_digests(self, *, reporter: Reporter = SILENT) -> np.ndarray:
        """Hash every image as it is stored, in a few threads.

        Files that were hashed before and have not changed since (by size and times, see
        `featx.sources.places`) are not read again.

        Parameters
        ----------
        reporter : Reporter, optional
            Shows the progress.

        Returns
        -------
        ndarray of uint8, shape (N, 32)
            SHA-256 of each image's bytes (or shape and pixels); of its path where there is
            no image.

        Raises
        ------
        ReadError
            If the machine cannot read an image; what was hashed before is remembered.
        """
        remembered = self._remembered()
        stamps = [self.stamp(row) for row in range(len(self))]
        found = [remembered.find(*item) for item in zip(self.paths, stamps, strict=True)]
        # Older versions remembered what could not be read as well.
        unknown = [row for row, digest in enumerate(found) if digest in (None, self._none(row))]
        unread: list[ReadError] = []
        try:
            for row, digest in zip(unknown, self._hash_all(unknown, reporter), strict=True):
                if isinstance(digest, ReadError):
                    unread.append(digest)
                    if len(unread) == _MOST_UNREAD:
                        break
                    continue
                found[row] = digest
                if digest != self._none(row):
                    remembered.add(self.paths[row], stamps[row], digest)
        finally:
            remembered.save()
        if unread:
            raise _together(unread)
        joined = b"".join(digest for digest in found if digest is not None)
        return np.frombuffer(joined, np.uint8).reshape(len(self), 32).copy()

    def _hash_all(self, rows: list[int], reporter: Reporter) -> Iterator[bytes | ReadError]:
        parts = [rows[i : i + _ROWS_PER_TASK] for i in range(0, len(rows), _ROWS_PER_TASK)]
        threads = min(_MOST_THREADS, os.cpu_count() or 1)
        if not rows:
            return
        with (
            reporter.bar(len(rows), f"hashing {self.name} {self.split}") as bar,
            ThreadPoolExecutor(threads) as pool,
        ):
            for part in pool.map(lambda part: [self._hash(row) for row in part], parts):
                yield from part
                bar.update(len(part))

    def _hash(self, row: int) -> bytes | ReadError:
        try:
            return self.fetch(row)[1]
        except UnreachableError:  # each row would wait as long again
            raise
        except ReadError as error:
            return error

    def content_id(self, digests: np.ndarray | None = None, *, reporter: Reporter = SILENT) -> str:
        """Hash the images and the names of their classes.

        It depends on each image's bytes (or shape and pixels) and the name of its
        class, and not on the root, the files' names or the order of the rows. What is no
        image file counts by its path.

        Parameters
        ----------
        digests : ndarray of uint8, shape (N, 32), optional
            What `image_digests` gave, where it was called before.
        reporter : Reporter, optional
            Shows the progress.

        Returns
        -------
        str
            SHA-256, 64 hexadecimal digits.
        """
        if digests is None:
            digests = self.image_digests(reporter=reporter)
        return content_of(digests, self.labels, self.class_names)

    def names_id(self) -> str:
        """Hash the paths of the images and the names of their classes; nothing is read."""
        names = (_encode(self._class_name(row)) for row in range(len(self)))
        state = hashlib.sha256(b"featx names 1\n")
        for path, class_name in sorted(zip(map(_encode, self.paths), names, strict=True)):
            state.update(b"%d %b %d %b " % (len(path), path, len(class_name), class_name))
        return state.hexdigest()

    def require_unchanged(self, start: int, found: np.ndarray, wanted: np.ndarray) -> None:
        """Refuse what was read from row `start` on, if its digests are not those of before."""
        changed = (found != wanted[start : start + len(found)]).any(axis=1)
        paths = [self.paths[start + i] for i in np.flatnonzero(changed)]
        if not paths:
            return
        remembered = self._remembered()
        remembered.forget(paths)
        remembered.save()
        more = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
        raise ReadError(
            f"{paths[0]!r}{more} of {self.name} {self.split} changed while this ran: the bytes are "
            "others than those that were hashed at the start. No row was made of them. Run the "
            "same again when nothing changes the images any more"
        )

    def _remembered(self) -> Remembered:
        return Remembered(None if self.place is None else self.place + self.part)

    def _none(self, row: int) -> bytes:
        """Give the digest of a row where there is no image file."""
        return hashlib.sha256(b"unreadable\0" + _encode(self.paths[row])).digest()

    def _class_name(self, row: int) -> str:
        label = int(self.labels[row])
        return self.class_names[label] if label >= 0 else ""


def content_of(digests: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> str:
    """Hash images and the names of their classes, in any order; see `Source.content_id`."""
    names = [_encode(name) for name in (*class_names, "")]  # label -1 has the last
    rank = np.empty(len(names), np.int64)
    rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    words = np.ascontiguousarray(digests).view(">u8").T  # big-endian numbers sort as bytes do
    order = np.lexsort((rank[labels], *words[::-1]))
    tails = [len(name).to_bytes(4, "little") + name for name in names]
    state = hashlib.sha256(b"featx content 1\n")
    for start in range(0, len(order), _ROWS_PER_PIECE):
        rows = order[start : start + _ROWS_PER_PIECE]
        heads, of = digests[rows].tobytes(), labels[rows].tolist()
        state.update(b"".join(heads[32 * i : 32 * i + 32] + tails[k] for i, k in enumerate(of)))
    return state.hexdigest()


def _together(unread: list[ReadError]) -> ReadError:
    """Give the first of the errors, with a note about the others."""
    _, *others = dict.fromkeys(str(error).partition(". ")[0] for error in unread)
    if others:
        unread[0].add_note(f"{len(others):,} more cannot be read:")
    for line in others[:_MOST_NAMED]:
        unread[0].add_note(line)
    return unread[0]


def _pick(values: np.ndarray | tuple[Any, ...], rows: np.ndarray) -> np.ndarray | tuple[Any, ...]:
    if isinstance(values, np.ndarray):
        return np.asarray(values[rows])
    return tuple(values[row] for row in rows)


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")  # also names that are not UTF-8 on the disk


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ArraySource(Source):
    """A source of pixels in one array, in memory or mapped from a ``.npy`` file.

    Pickling a mapped source sends the file's name, so that all worker processes
    share one copy of the pixels; from memory, the pixels of the source's own rows are sent.
    """

    per_row = (*Source.per_row, "rows")

    pixels: np.ndarray
    rows: np.ndarray
    file: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 4 or self.pixels.shape[3] != 3:
            raise ValueError("pixels must be uint8 (images, height, width, 3)")
        if self.rows.shape != self.labels.shape:
            raise ValueError("rows must give one image for each label")

    def read(self, row: int) -> np.ndarray:
        """Copy the pixels of one image; see `Source.read`."""
        return np.array(self.pixels[self.rows[row]])

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.file is not None:
            state["pixels"] = None
        elif len(self.rows) < len(self.pixels):
            state["pixels"], state["rows"] = self.pixels[self.rows], np.arange(len(self.rows))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["file"] is not None:
            state = state | {"pixels": _map(state["file"])}
        self.__dict__.update(state)


def _map(file: str) -> np.ndarray:
    try:
        pixels = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise SourceError(
            f"the pixels in {Path(file).name} cannot be read: open the data set again ({file})"
        ) from error
    return np.asarray(pixels)
