"""The built-in data sets: CIFAR-10, CIFAR-100, STL-10, and scikit-learn's digits.

The first three come from torchvision's addresses with its checksums; the digits need no download.
"""

from __future__ import annotations

import http.client
import socket
import tempfile
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx.errors import SourceError
from featx.progress import SILENT, Reporter
from featx.sources.base import ArraySource, Source
from featx.sources.official.formats import FORMATS
from featx.sources.official.reader import read_official

__all__ = [
    "SETS",
    "TorchvisionSet",
    "open_digits",
    "open_torchvision",
]


def open_digits() -> dict[str, Source]:
    """Open the 1,797 digits of scikit-learn, 8 x 8 pixels, as grey RGB.

    Values 0 to 16 become 0 to 255, rounded. Of each class, in the order of
    the file, every third image is the test split: no seed is involved. The
    same hands wrote both splits.

    References
    ----------
    E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI
    Machine Learning Repository, 1998.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = np.rint(data.images * (255 / 16)).astype(np.uint8)
    pixels = np.repeat(grey[..., np.newaxis], 3, axis=3)
    targets = np.asarray(data.target, dtype=np.int64)
    is_test = _every_third(targets)
    splits: dict[str, Source] = {}
    for split, rows in (("train", np.flatnonzero(~is_test)), ("test", np.flatnonzero(is_test))):
        splits[split] = ArraySource(
            name="digits",
            split=split,
            class_names=tuple(str(name) for name in data.target_names),
            labels=targets[rows],
            paths=tuple(f"{split}/{i:05d}" for i in range(len(rows))),
            pixels=pixels,
            rows=rows,
        )
    return splits


def _every_third(labels: np.ndarray) -> np.ndarray:
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        chosen[np.flatnonzero(labels == label)[2::3]] = True
    return chosen


_SECONDS_TO_ANSWER = 30.0


@dataclass(frozen=True)
class TorchvisionSet:
    """A data set that torchvision downloads."""

    loader: str
    n_bytes: int
    description: str


SETS = {
    "cifar10": TorchvisionSet(
        "CIFAR10", 170_498_071, "60,000 photographs of 32 x 32, 10 classes (170 MB download)"
    ),
    "cifar100": TorchvisionSet(
        "CIFAR100", 169_001_437, "60,000 photographs of 32 x 32, 100 classes (169 MB download)"
    ),
    "stl10": TorchvisionSet(
        "STL10",
        2_640_397_119,
        "13,000 labelled photographs of 96 x 96, 10 classes (2.6 GB download)",
    ),
}
"""The data sets, by the names that people type."""


def open_torchvision(
    name: str, folder: Path, *, download: bool = True, reporter: Reporter = SILENT
) -> dict[str, Source]:
    """Open one of `SETS`, after downloading and checking it where necessary.

    torchvision downloads the files and checks them, at each opening; featx reads them, with
    pickles that cannot run anything (`read_plain_pickle`) and pixels that are mapped from the
    official files: worker processes share one copy.
    """
    import torchvision.datasets

    loader = getattr(torchvision.datasets, SETS[name].loader)
    folder = Path(folder).expanduser().absolute()
    splits = _read_if_whole(name, loader, folder)
    if splits is None:
        _unpack(name, loader, folder, download, reporter)
        splits = _read_unpacked(name, loader, folder)
    return splits


def _read_if_whole(name: str, loader: Any, folder: Path) -> dict[str, Source] | None:
    if not _is_whole(loader, folder):
        return None
    try:
        return _read(name, loader, folder)
    except SourceError:  # the names of the classes of STL-10 have no checksum
        return None


def _read_unpacked(name: str, loader: Any, folder: Path) -> dict[str, Source]:
    if not _is_whole(loader, folder):
        raise SourceError(
            f"{folder / loader.base_folder} is damaged although {loader.filename} was "
            "just unpacked into it: delete both and try again"
        )
    return _read(name, loader, folder)


def _unpack(name: str, loader: Any, folder: Path, download: bool, reporter: Reporter) -> None:
    from torchvision.datasets import utils

    archive = folder / loader.filename
    try:
        if not utils.check_integrity(archive, loader.tgz_md5):
            if not download:
                raise SourceError(_missing(name, loader, folder, "downloading is switched off"))
            _download(name, loader, folder, reporter)
        utils.extract_archive(archive, folder)
    except OSError as error:
        raise SourceError(
            f"cannot unpack {archive} into its folder: {error.strerror or error}"
        ) from error


def _download(name: str, loader: Any, folder: Path, reporter: Reporter) -> None:
    """Download into a folder of its own, so that a half file never has the final name."""
    from torchvision.datasets.utils import download_url

    reporter.say(f"downloading {loader.url} ({SETS[name].n_bytes:,} bytes) to {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".featx-download-", dir=folder) as scratch:
            part = Path(scratch) / loader.filename
            try:
                with _impatient():
                    download_url(loader.url, scratch, loader.filename, loader.tgz_md5)
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                if isinstance(error, urllib.error.HTTPError):
                    error.close()  # it holds the connection
                raise SourceError(
                    _missing(name, loader, folder, _why(error, part, SETS[name].n_bytes))
                ) from error
            part.replace(folder / loader.filename)
    except OSError as error:
        raise SourceError(f"cannot write to {folder}: {error.strerror or error}") from error


def _why(error: Exception, part: Path, n_bytes: int) -> str:
    if isinstance(error, RuntimeError) and part.exists():
        came = part.stat().st_size
        return f"the download has a wrong checksum ({came:,} of {n_bytes:,} bytes came)"
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return f"the download failed: {' '.join(str(reason).split())}"


def _missing(name: str, loader: Any, folder: Path, why: str) -> str:
    archive = folder / loader.filename
    if archive.is_file():
        have = archive.stat().st_size
        why = f"the file there has a wrong checksum ({have:,} bytes) and {why}"
    return (
        f"{name} needs {loader.filename} ({SETS[name].n_bytes:,} bytes, md5 {loader.tgz_md5}), "
        f"but {why}: get it from {loader.url} and put it in {folder}"
    )


@contextmanager
def _impatient() -> Iterator[None]:
    """Let a server that does not answer be an error; torchvision sets no limit."""
    before = socket.getdefaulttimeout()
    if before is None:
        socket.setdefaulttimeout(_SECONDS_TO_ANSWER)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _is_whole(loader: Any, folder: Path) -> bool:
    """Compare all files with torchvision's checksums."""
    from torchvision.datasets import utils

    files = [*loader.train_list, *loader.test_list]
    if hasattr(loader, "meta"):
        files.append((loader.meta["filename"], loader.meta["md5"]))
    base = folder / loader.base_folder
    try:
        return all(utils.check_integrity(base / file, md5) for file, md5 in files)
    except OSError as error:
        raise SourceError(f"cannot read {base}: {error.strerror or error}") from error


def _read(name: str, loader: Any, folder: Path) -> dict[str, Source]:
    [known] = [known for known in FORMATS if known.folder == loader.base_folder]
    return read_official(known, folder / loader.base_folder, name=name)
