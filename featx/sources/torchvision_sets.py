"""CIFAR-10, CIFAR-100 and STL-10, by torchvision's loaders and checksums."""

from __future__ import annotations

import http.client
import os
import socket
import tempfile
import urllib.error
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx.errors import SourceError
from featx.progress import SILENT, Reporter
from featx.sources.base import ArraySource, Source

__all__ = ["SETS", "TorchvisionSet", "open_torchvision"]

_SECONDS_TO_ANSWER = 30.0


@dataclass(frozen=True)
class TorchvisionSet:
    """A data set that torchvision downloads.

    Parameters
    ----------
    loader : str
        Its class in `torchvision.datasets`.
    n_bytes : int
        Size of the file to download.
    description : str
        One line.
    """

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

    The pixels are kept in ``featx-<name>-<split>.npy`` beside the data, compared at each
    opening with those that torchvision has checked, and mapped from there: worker
    processes then share one copy. In a folder that cannot be written they stay in memory.

    Parameters
    ----------
    name : str
        A key of `SETS`.
    folder : path
        Where the data are, or are put.
    download : bool, default=True
        Whether missing files may be downloaded.
    reporter : Reporter, optional
        Is told about a download.

    Returns
    -------
    dict of str to Source
        ``"train"`` and ``"test"``.

    Raises
    ------
    SourceError
        If the files are missing or have a wrong checksum, with where to get and put them.
    """
    import torchvision.datasets

    loader = getattr(torchvision.datasets, SETS[name].loader)
    folder = Path(folder).expanduser().absolute()
    try:
        return _load_splits(name, loader, folder)
    except RuntimeError:  # missing or damaged, says torchvision
        _unpack(name, loader, folder, download, reporter)
    try:
        return _load_splits(name, loader, folder)
    except RuntimeError as error:
        raise SourceError(
            f"{folder / loader.base_folder} is damaged although {loader.filename} was "
            "just unpacked into it: delete both and try again"
        ) from error


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


def _load_splits(name: str, loader: Any, folder: Path) -> dict[str, Source]:
    try:
        return {split: _load(name, loader, folder, split) for split in ("train", "test")}
    except OSError as error:
        raise SourceError(
            f"cannot read {folder / loader.base_folder}: {error.strerror or error}"
        ) from error


def _load(name: str, loader: Any, folder: Path, split: str) -> Source:
    """Load one split; RuntimeError if a checksum is wrong, before any pickle is opened."""
    options = {"split": split} if name == "stl10" else {"train": split == "train"}
    with warnings.catch_warnings():
        # NumPy 2.4.0 to 2.4.4 warns of how the pickles of 2009 write a dtype (numpy#31177).
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
        data = loader(folder, download=False, **options)
    is_channels_first = data.data.shape[1] == 3
    pixels = data.data.transpose(0, 2, 3, 1) if is_channels_first else data.data
    labels = np.asarray(data.labels if name == "stl10" else data.targets, dtype=np.int64)
    class_names = tuple(getattr(data, "classes", ()))
    if len(class_names) <= labels.max():  # stl10 keeps them in a file without a checksum
        raise RuntimeError("the file with the names of the classes is missing or damaged")
    pixels, file = _on_disk(np.ascontiguousarray(pixels), folder / f"featx-{name}-{split}.npy")
    return ArraySource(
        name=name,
        split=split,
        class_names=class_names,
        labels=labels,
        paths=tuple(f"{split}/{row:05d}" for row in range(len(labels))),
        pixels=pixels,
        rows=np.arange(len(labels)),
        file=file,
    )


def _on_disk(pixels: np.ndarray, file: Path) -> tuple[np.ndarray, str | None]:
    """Give the same pixels mapped from `file`, written first if it does not hold them."""
    part = file.with_name(f".{file.stem}-{os.getpid()}.npy")
    try:
        if not _holds(file, pixels):
            try:
                np.save(part, pixels)
                part.replace(file)
            finally:
                part.unlink(missing_ok=True)
        return np.load(file, mmap_mode="r", allow_pickle=False), str(file)
    except OSError:  # read-only, or full: the pixels are in memory already
        return pixels, None


def _holds(file: Path, pixels: np.ndarray) -> bool:
    try:
        held = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return held.dtype == pixels.dtype and np.array_equal(held, pixels)
