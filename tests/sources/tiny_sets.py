"""CIFAR and STL-10 archives in the official formats, with a few images."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from typing import Any, ClassVar

import numpy as np
import pytest

from featx.sources.torchvision_sets import SETS

N_TRAIN, N_TEST = 30, 20


class _OldPickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes text, bytes and dtypes as Python 2 did: the official files are of 2009."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_bytes(self, value: bytes) -> None:
        is_short = len(value) < 256
        head = b"U" + bytes([len(value)]) if is_short else b"T" + len(value).to_bytes(4, "little")
        self.write(head + value)
        self.memoize(value)

    def save_text(self, value: str) -> None:
        self.save_bytes(value.encode("latin-1"))

    dispatch[bytes] = save_bytes
    dispatch[str] = save_text

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.dtype):
            return np.dtype, ("u1", 0, 1), (3, "|", None, None, None, -1, -1, 0)
        return NotImplemented


def old_pickle(value: Any) -> bytes:
    stream = io.BytesIO()
    _OldPickler(stream, protocol=2).dump(value)
    return stream.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")


def pixels_of(name: str, split: str) -> np.ndarray:
    """Pixels of all images of a split, as people see them: (N, H, W, 3)."""
    side = 96 if name == "stl10" else 32
    seed = [ord(letter) for letter in name + split]
    n = N_TRAIN if split == "train" else N_TEST
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def labels_of(split: str) -> np.ndarray:
    return (np.arange(N_TRAIN if split == "train" else N_TEST) * 7) % 10


def class_names(name: str) -> list[str]:
    return [f"{name} class {i}" for i in range(100 if name == "cifar100" else 10)]


def cifar_batch(name: str, split: str, part: slice) -> bytes:
    pixels = pixels_of(name, split)[part]
    key = "fine_labels" if name == "cifar100" else "labels"
    flat = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(len(pixels), -1)
    return old_pickle({"data": flat, key: labels_of(split)[part].tolist()})


def files_of(name: str) -> dict[str, bytes]:
    if name == "stl10":
        files = {"unlabeled_X.bin": b""}
        for split in ("train", "test"):
            # The official file is column-major: channel, column, row.
            files[f"{split}_X.bin"] = pixels_of(name, split).transpose(0, 3, 2, 1).tobytes()
            files[f"{split}_y.bin"] = (labels_of(split) + 1).astype(np.uint8).tobytes()
        return files | {"class_names.txt": "\n".join(class_names(name)).encode() + b"\n"}
    if name == "cifar100":
        files = {split: cifar_batch(name, split, slice(None)) for split in ("train", "test")}
        return files | {"meta": old_pickle({"fine_label_names": class_names(name)})}
    files = {
        f"data_batch_{i + 1}": cifar_batch(name, "train", slice(6 * i, 6 * i + 6)) for i in range(5)
    }
    files["test_batch"] = cifar_batch(name, "test", slice(None))
    return files | {"batches.meta": old_pickle({"label_names": class_names(name)})}


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def install(name: str, url: str, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Make torchvision's loader expect the tiny set at `url`; returns the archive."""
    import torchvision.datasets

    loader = getattr(torchvision.datasets, SETS[name].loader)
    files = files_of(name)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for file, data in files.items():
            member = tarfile.TarInfo(f"{loader.base_folder}/{file}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    for attribute in ("train_list", "test_list"):
        listed = [[file, md5(files[file])] for file, _ in getattr(loader, attribute)]
        monkeypatch.setattr(loader, attribute, listed)
    if name != "stl10":
        meta = loader.meta | {"md5": md5(files[loader.meta["filename"]])}
        monkeypatch.setattr(loader, "meta", meta)
    monkeypatch.setattr(loader, "tgz_md5", md5(stream.getvalue()))
    monkeypatch.setattr(loader, "url", f"{url}/{loader.filename}")
    return stream.getvalue()
