"""The same photographs in every form that people keep them in: same rows, labels and features."""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from packing import files_of, pack, pack_folder
from PIL import Image

from featx.backbones import open_backbone
from featx.engines import LocalEngine
from featx.errors import SourceError
from featx.sources import Source, from_arrays, open_data

CLASSES = sorted(
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
)


def manifest(root: Path, to: Path) -> str:
    names = [name for name in files_of(root) if name.endswith(".jpg")]
    with (root.parent / "table.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "split"])
        for name in names:
            split, label, _ = name.split("/")
            writer.writerow([f"{root.name}/{name}", label, split])
    return str(root.parent / "table.csv")


def shards(root: Path, to: Path) -> str:
    for split in ("train", "test"):
        members: dict[str, bytes] = {}
        for i, (name, data) in enumerate(files_of(root / split).items()):
            members |= {f"{i:05d}.jpg": data, f"{i:05d}.cls": name.split("/")[0].encode()}
        names = list(members)
        half = len(names) // 4 * 2
        for number, part in enumerate((names[:half], names[half:])):
            pack(to / f"{split}-{number:06d}.tar", {name: members[name] for name in part})
    return str(to)


def parquet(root: Path, to: Path) -> str:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    to.mkdir()
    for split in ("train", "test"):
        files = files_of(root / split)
        images = [{"bytes": data, "path": name} for name, data in files.items()]
        table = pa.table({"image": images, "label": [name.split("/")[0] for name in files]})
        pyarrow.parquet.write_table(table, to / f"{split}-00000-of-00001.parquet")
    return str(to)


def official(root: Path, to: Path) -> str:
    """The python batches of CIFAR-10, with the pixels of the JPEG files."""
    to.mkdir()
    for split in ("train", "test"):
        pixels, labels = pixels_of(root / split)
        flat = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
        n_batches = 5 if split == "train" else 1
        for i, rows in enumerate(np.array_split(np.arange(len(flat)), n_batches), start=1):
            batch = {b"data": flat[rows], b"labels": labels[rows].tolist()}
            name = f"data_batch_{i}" if split == "train" else "test_batch"
            (to / name).write_bytes(pickle.dumps(batch, protocol=2))
    (to / "batches.meta").write_bytes(pickle.dumps({b"label_names": [n.encode() for n in CLASSES]}))
    return str(to)


def pixels_of(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    files = files_of(folder)
    pixels = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in files.values()]
    return np.stack(pixels), np.array([CLASSES.index(name.split("/")[0]) for name in files])


FORMS: dict[str, Callable[[Path, Path], str]] = {
    "folder": lambda root, to: str(root),
    "zip": lambda root, to: str(pack_folder(to.with_suffix(".zip"), root, "cifar10/")),
    "tar": lambda root, to: str(pack_folder(to.with_suffix(".tar"), root)),
    "tar.gz": lambda root, to: str(pack_folder(to.with_suffix(".tar.gz"), root)),
    "webdataset": shards,
    "manifest": manifest,
    "parquet": parquet,
    "official": official,
}


@pytest.fixture(scope="module")
def reference(cifar_slice: Path) -> dict[str, tuple[np.ndarray, np.ndarray, str]]:
    splits = open_data(cifar_slice)
    return {
        name: (features(source), source.labels, source.content_id())
        for name, source in splits.items()
    }


def features(source: Source) -> np.ndarray:
    backbone = open_backbone("squeezenet1_1", weights="random:1", overrides={"input_size": 64})
    engine = LocalEngine(torch.device("cpu"), images_per_batch=50, workers=0)
    batches = range(-(-len(source) // 50))
    return np.concatenate([b.features for b in engine.run(backbone, source, list(batches))])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same(
    form: str,
    cifar_slice: Path,
    tmp_path: Path,
    reference: dict[str, tuple[np.ndarray, np.ndarray, str]],
) -> None:
    splits = open_data(FORMS[form](cifar_slice, tmp_path / form))
    assert list(splits) == ["train", "test"]
    for name, source in splits.items():
        wanted, labels, content = reference[name]
        assert list(source.class_names) == CLASSES
        np.testing.assert_array_equal(source.labels, labels)
        np.testing.assert_array_equal(features(source), wanted)
        # Official files hold pixels, the others the same encoded files.
        assert (source.content_id() == content) == (form != "official")


def test_arrays_in_memory_give_the_same(
    cifar_slice: Path, reference: dict[str, tuple[np.ndarray, np.ndarray, str]]
) -> None:
    pixels, labels = pixels_of(cifar_slice / "test")
    wanted, expected, content = reference["test"]
    of_pixels = from_arrays(pixels, labels, class_names=CLASSES)
    np.testing.assert_array_equal(of_pixels.labels, expected)
    np.testing.assert_array_equal(features(of_pixels), wanted)
    of_files = from_arrays(
        list(files_of(cifar_slice / "test").values()), [CLASSES[i] for i in labels]
    )
    np.testing.assert_array_equal(features(of_files), wanted)
    assert of_files.content_id() == content


def test_a_file_that_is_no_data_says_what_would_be(tmp_path: Path) -> None:
    (tmp_path / "photos.rar").write_bytes(b"Rar!")
    with pytest.raises(SourceError, match=r"\.csv, \.tsv, \.jsonl, \.parquet, an archive in \.zip"):
        open_data(tmp_path / "photos.rar")
    with pytest.raises(SourceError, match="no file"):
        open_data(tmp_path / "missing.zip")
