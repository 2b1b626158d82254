"""CIFAR-10, CIFAR-100 and STL-10 from their official files, read where they lie."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from featx.errors import SourceError
from featx.progress import SILENT, Reporter
from featx.sources.base import Source
from featx.sources.official.formats import FORMATS, Format
from featx.sources.official.reader import read_official

__all__ = ["is_official", "open_official"]


def is_official(path: str | os.PathLike[str]) -> bool:
    """Tell whether a folder holds official files, itself or in one of the official folders."""
    return bool(_found(Path(path)))


def open_official(
    path: str | os.PathLike[str], *, reporter: Reporter = SILENT
) -> dict[str, Source]:
    """Open official files that lie in a folder.

    Pixels are mapped from the files. Pickles are read without the means to run
    anything (`read_plain_pickle`). Files that differ from the official ones are read too,
    with a warning, and the data set is then called by the name of its folder.
    """
    found = _found(Path(os.path.abspath(path)))  # noqa: PTH100 - resolve() would follow the links
    if not found:
        raise SourceError(
            f"{str(path)!r} holds no official files of CIFAR-10, CIFAR-100 or STL-10 "
            f"({', '.join(known.folder for known in FORMATS)})"
        )
    if len(found) > 1:
        names = " and ".join(str(folder) for _, folder in found)
        raise SourceError(f"{str(path)!r} holds more than one data set: give {names} alone")
    [(known, folder)] = found
    _check_files(known, folder)
    differing = _differing(known, folder, reporter)
    if differing:
        reporter.warn(
            f"{folder} does not hold the official files ({', '.join(differing)}: another "
            f"digest): figures on it cannot be quoted as {known.title}"
        )
    else:
        reporter.say(f"{folder}: the official files of {known.title}")
    return read_official(known, folder, name=folder.name if differing else known.name)


def _found(path: Path) -> list[tuple[Format, Path]]:
    itself = [(known, path) for known in FORMATS if _holds(path, known)]
    below = [(known, path / known.folder) for known in FORMATS]
    return itself or [(known, folder) for known, folder in below if _holds(folder, known)]


def _holds(folder: Path, known: Format) -> bool:
    are_there = [(folder / file).is_file() for file in known.files]
    return all(are_there) or (folder.name == known.folder and any(are_there))


def _check_files(known: Format, folder: Path) -> None:
    missing = [file for file in known.files if not (folder / file).is_file()]
    if missing:
        raise SourceError(
            f"{folder} lacks {', '.join(missing)}: unpack the archive of {known.title} again"
        )


def _differing(known: Format, folder: Path, reporter: Reporter) -> list[str]:
    """List the files whose digest is not the official one."""
    present = [file for file in known.digests if (folder / file).is_file()]
    differing = []
    with reporter.bar(len(present), f"checking {folder.name}", "file") as bar:
        for file in present:
            if _digest(folder / file, len(known.digests[file])) != known.digests[file]:
                differing.append(file)
            bar.update()
    return differing


def _digest(path: Path, n_digits: int) -> str:
    kind = {32: "md5", 40: "sha1", 64: "sha256"}[n_digits]
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(
                stream, lambda: hashlib.new(kind, usedforsecurity=False)
            ).hexdigest()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from error
