from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import pickle
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sets
from test_source_contract import SourceContract

from featx.errors import SourceError
from featx.progress import Reporter
from featx.sources import ArraySource, Source, open_data
from featx.sources.official import folder as folder_module
from featx.sources.official import is_official, open_official
from featx.sources.official.formats import FORMATS
from featx.sources.official.reader import MappedSource

FOLDERS = [known.folder for known in FORMATS]
NAMES = {
    "cifar10": [f"class {i}" for i in range(10)],
    "cifar100": [f"fine {i}" for i in range(100)],
}


@dataclass(frozen=True)
class Photos:
    """Real photographs: uint8 (n, 32, 32, 3) and labels of ten classes, shuffled."""

    pixels: np.ndarray
    labels: np.ndarray

    @property
    def flat(self) -> np.ndarray:
        return np.ascontiguousarray(self.pixels.transpose(0, 3, 1, 2)).reshape(len(self.pixels), -1)

    @property
    def fine(self) -> np.ndarray:
        return self.labels * 10 + np.arange(len(self.labels)) % 10

    @property
    def large(self) -> np.ndarray:
        return self.pixels.repeat(3, axis=1).repeat(3, axis=2)


@pytest.fixture(scope="session")
def photos(cifar_slice: Path) -> dict[str, Photos]:
    splits = {}
    for split, source in open_data(cifar_slice).items():
        order = np.random.default_rng(5).permutation(len(source))
        pixels = np.stack([np.asarray(source.image(row)) for row in order])
        splits[split] = Photos(pixels, source.labels[order])
    return splits


def write_pickles_10(folder: Path, photos: dict[str, Photos]) -> None:
    batches = {f"data_batch_{i + 1}": ("train", slice(40 * i, 40 * i + 40)) for i in range(5)}
    for file, (split, part) in (batches | {"test_batch": ("test", slice(None))}).items():
        entry = {
            "batch_label": file,
            "labels": photos[split].labels[part].tolist(),
            "data": photos[split].flat[part],
            "filenames": [f"{row}.png" for row in range(40)],
        }
        (folder / file).write_bytes(tiny_sets.old_pickle(entry))
    meta = {"label_names": NAMES["cifar10"], "num_cases_per_batch": 40, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(tiny_sets.old_pickle(meta))


def write_pickles_100(folder: Path, photos: dict[str, Photos]) -> None:
    for split, part in photos.items():
        fine, coarse = part.fine.tolist(), part.labels.tolist()
        entry = {"data": part.flat, "coarse_labels": coarse, "fine_labels": fine}
        (folder / split).write_bytes(tiny_sets.old_pickle(entry))
    meta = {"coarse_label_names": ["coarse"] * 20, "fine_label_names": NAMES["cifar100"]}
    (folder / "meta").write_bytes(tiny_sets.old_pickle(meta))


def records(labels: list[np.ndarray], photos: Photos) -> np.ndarray:
    columns = [label.astype(np.uint8)[:, np.newaxis] for label in labels]
    return np.concatenate([*columns, photos.flat], axis=1)


def write_binary_10(folder: Path, photos: dict[str, Photos]) -> None:
    train = records([photos["train"].labels], photos["train"])
    for i in range(5):
        (folder / f"data_batch_{i + 1}.bin").write_bytes(train[40 * i : 40 * i + 40].tobytes())
    test = records([photos["test"].labels], photos["test"])
    (folder / "test_batch.bin").write_bytes(test.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(NAMES["cifar10"]) + "\n\n")


def write_binary_100(folder: Path, photos: dict[str, Photos]) -> None:
    for split, part in photos.items():
        data = records([part.labels, part.fine], part)
        (folder / f"{split}.bin").write_bytes(data.tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(NAMES["cifar100"]) + "\n")


def write_stl(folder: Path, photos: dict[str, Photos]) -> None:
    for split, part in photos.items():
        (folder / f"{split}_X.bin").write_bytes(part.large.transpose(0, 3, 2, 1).tobytes())
        (folder / f"{split}_y.bin").write_bytes((part.labels + 1).astype(np.uint8).tobytes())
    unlabeled = photos["test"].large[:30][:, ::-1]
    (folder / "unlabeled_X.bin").write_bytes(unlabeled.transpose(0, 3, 2, 1).tobytes())
    (folder / "class_names.txt").write_text("\n".join(NAMES["cifar10"]) + "\n")


WRITERS = dict(
    zip(
        FOLDERS,
        (write_pickles_10, write_binary_10, write_pickles_100, write_binary_100, write_stl),
        strict=True,
    )
)


def write(above: Path, folder: str, photos: dict[str, Photos]) -> Path:
    (above / folder).mkdir(parents=True)
    WRITERS[folder](above / folder, photos)
    return above / folder


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest, tmp_path: Path, photos: dict[str, Photos]) -> Path:
    return write(tmp_path / "above", request.param, photos)


def oracle(root: Path, folder: str, split: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Read the same files with torchvision, told that their checksums are right."""
    import torchvision.datasets as sets

    loader: Any = {
        "cifar-10-batches-py": sets.CIFAR10,
        "cifar-100-python": sets.CIFAR100,
        "stl10_binary": sets.STL10,
    }[folder]
    md5 = {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in (root / folder).iterdir()}
    for attribute in ("train_list", "test_list"):
        listed = [[file, md5[file]] for file, _ in getattr(loader, attribute)]
        monkeypatch.setattr(loader, attribute, listed)
    if hasattr(loader, "meta"):
        meta = loader.meta | {"md5": md5[loader.meta["filename"]]}
        monkeypatch.setattr(loader, "meta", meta)
    options = {"split": split} if loader is sets.STL10 else {"train": split == "train"}
    return loader(root, **options)


@pytest.mark.filterwarnings("ignore:dtype:numpy.exceptions.VisibleDeprecationWarning")
@pytest.mark.parametrize("folder", ["cifar-10-batches-py", "cifar-100-python", "stl10_binary"])
def test_rows_are_those_of_torchvision(
    folder: str, tmp_path: Path, photos: dict[str, Photos], monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = open_official(write(tmp_path, folder, photos))
    wanted = ["train", "test", "unlabeled"] if folder == "stl10_binary" else ["train", "test"]
    assert list(splits) == wanted
    for split, source in splits.items():
        theirs = oracle(tmp_path, folder, split, monkeypatch)
        assert list(source.class_names) == theirs.classes
        assert len(source) == len(theirs)
        for row, (image, label) in enumerate(theirs):
            assert source.labels[row] == label
            np.testing.assert_array_equal(source.read(row), image)
            np.testing.assert_array_equal(source.image(row), image)


@pytest.mark.parametrize(
    ("binary", "pickled"),
    [
        ("cifar-10-batches-bin", "cifar-10-batches-py"),
        ("cifar-100-binary", "cifar-100-python"),
    ],
)
def test_the_binary_files_hold_the_same(
    binary: str, pickled: str, tmp_path: Path, photos: dict[str, Photos]
) -> None:
    ours = open_official(write(tmp_path, binary, photos))
    theirs = open_official(write(tmp_path, pickled, photos))
    for split, source in ours.items():
        other = theirs[split]
        assert (source.class_names, source.paths) == (other.class_names, other.paths)
        np.testing.assert_array_equal(source.labels, other.labels)
        np.testing.assert_array_equal(source.image_digests(), other.image_digests())
        assert source.content_id() == other.content_id()


def test_a_folder_by_any_name_and_the_one_above(folder: Path, tmp_path: Path) -> None:
    wanted = open_official(folder)["train"].content_id()
    assert is_official(folder)
    assert is_official(str(folder.parent))
    assert open_official(folder.parent)["train"].content_id() == wanted
    renamed = folder.rename(tmp_path / "mine")
    assert is_official(renamed)
    splits = open_official(renamed)
    assert splits["train"].content_id() == wanted
    assert splits["train"].name == "mine"
    assert splits["train"].paths[17] == "train/00017"


def test_what_is_not_official(tmp_path: Path, cifar_slice: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "train").mkdir()
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "train", cifar_slice, __file__):
        assert not is_official(path)
    with pytest.raises(SourceError, match="holds no official files .*stl10_binary"):
        open_official(tmp_path)


def test_missing_files_are_named(folder: Path) -> None:
    [known] = [known for known in FORMATS if known.folder == folder.name]
    for file in (known.files[0], known.names_file):
        (folder / file).unlink()
    assert is_official(folder)
    message = f"lacks {known.files[0]}, {known.names_file}: unpack the archive of {known.title}"
    with pytest.raises(SourceError, match=message):
        open_official(folder.parent)


def test_two_sets_in_one_folder(tmp_path: Path, photos: dict[str, Photos]) -> None:
    for folder in FOLDERS[:2]:
        write(tmp_path, folder, photos)
    with pytest.raises(SourceError, match=r"more than one data set: give .*-py and .*-bin alone"):
        open_official(tmp_path)
    assert len(open_official(tmp_path / FOLDERS[0])["train"]) == 200


def said(folder: Path) -> str:
    stream = io.StringIO()
    open_official(folder, reporter=Reporter(stream=stream))
    return stream.getvalue()


def test_files_that_are_not_the_official_ones_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [known] = [known for known in FORMATS if known.folder == folder.name]
    warning = f"cannot be quoted as {known.title}"
    assert warning in said(folder)
    assert f"does not hold the official files ({next(iter(known.digests))}," in said(folder)
    right = {}
    for file, digest in known.digests.items():
        kind = hashlib.md5 if len(digest) == 32 else hashlib.sha1
        right[file] = kind((folder / file).read_bytes()).hexdigest()
    formats = tuple(replace(other, digests=right) if other is known else other for other in FORMATS)
    monkeypatch.setattr(folder_module, "FORMATS", formats)
    assert warning not in said(folder)
    assert f"the official files of {known.title}" in said(folder)
    assert open_official(folder)["train"].name == known.name
    changed = folder / known.files[0]
    data = bytearray(changed.read_bytes())
    data[len(data) // 2] ^= 1  # a pixel
    changed.write_bytes(data)
    assert f"({changed.name}: another digest)" in said(folder)
    assert warning in said(folder)


def test_pixels_stay_in_the_files(folder: Path) -> None:
    for source in open_official(folder).values():
        assert isinstance(source, MappedSource)
        assert len(pickle.dumps(source)) < 20_000 < np.asarray(source.read(0)).nbytes * len(source)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(source.read, (3,)), source.read(3))


def test_the_unlabelled_part_may_be_left_out(tmp_path: Path, photos: dict[str, Photos]) -> None:
    folder = write(tmp_path, "stl10_binary", photos)
    assert open_official(folder)["unlabeled"].labels.tolist() == [-1] * 30
    (folder / "unlabeled_X.bin").write_bytes(b"")
    assert list(open_official(folder)) == ["train", "test"]
    (folder / "unlabeled_X.bin").unlink()
    assert list(open_official(folder)) == ["train", "test"]


@pytest.mark.parametrize("cut", [1, 5000])
def test_files_of_a_wrong_length(folder: Path, cut: int) -> None:
    for split in open_official(folder):
        assert split
    [known] = [known for known in FORMATS if known.folder == folder.name]
    path = folder / known.files[0]
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(SourceError, match=f"{path.name} (has .* no multiple|is no pickle, or dam)"):
        open_official(folder)


@pytest.mark.parametrize("n_names", [0, 3])
def test_labels_without_a_name(folder: Path, n_names: int) -> None:
    [known] = [known for known in FORMATS if known.folder == folder.name]
    names = [f"name {i}" for i in range(n_names)]
    data = "\n".join(names).encode()
    if known.kind == "pickle":
        data = pickle.dumps({"label_names": names}, 2)
    (folder / known.names_file).write_bytes(data)
    with pytest.raises(SourceError, match=f"names {n_names} classes, but train has the label 9"):
        open_official(folder)


def test_labels_of_stl10(tmp_path: Path, photos: dict[str, Photos]) -> None:
    folder = write(tmp_path, "stl10_binary", photos)
    path = folder / "test_y.bin"
    whole = path.read_bytes()
    for wrong in (whole[:-1], b"\0" + whole[1:], b""):
        path.write_bytes(wrong)
        with pytest.raises(SourceError, match=r"test_y\.bin must have a number from 1 for each of"):
            open_official(folder)


ENTRIES: list[Any] = [
    [],
    {},
    {"data": [1], "labels": [1]},
    {"data": np.zeros((2, 3072), np.uint8)},
    {"data": np.zeros((2, 3072), np.uint8), "labels": [1]},
    {"data": np.zeros((2, 3072), np.uint8), "labels": [1, -1]},
    {"data": np.zeros((2, 3072), np.uint8), "labels": [1, "a"]},
    {"data": np.zeros((2, 3071), np.uint8), "labels": [1, 2]},
    {"data": np.zeros((2, 3072), np.int64), "labels": [1, 2]},
]


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_pickle_of_something_else(tmp_path: Path, photos: dict[str, Photos], entry: Any) -> None:
    folder = write(tmp_path, "cifar-10-batches-py", photos)
    (folder / "data_batch_2").write_bytes(pickle.dumps(entry, 4))
    with pytest.raises(SourceError, match="data_batch_2 (is no batch of CIFAR|holds no dict)"):
        open_official(folder)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [1]}, 2))
    with pytest.raises(SourceError, match=r"batches\.meta has no list of the names"):
        open_official(folder)


@pytest.mark.parametrize("protocol", range(6))
def test_batches_written_again(tmp_path: Path, photos: dict[str, Photos], protocol: int) -> None:
    """Who changes labels writes the batches anew, with whatever protocol."""
    folder = write(tmp_path, "cifar-10-batches-py", photos)
    wanted = open_official(folder)["train"]
    digests = wanted.image_digests()  # before the files change
    for i in range(5):
        part = slice(40 * i, 40 * i + 40)
        entry = {"data": photos["train"].flat[part], "labels": photos["train"].labels[part]}
        order: Any = "F" if i == 2 and protocol == 4 else "C"
        entry["data"] = np.asarray(entry["data"], order=order)
        (folder / f"data_batch_{i + 1}").write_bytes(pickle.dumps(entry, protocol))
    source = open_official(folder)["train"]
    assert isinstance(source, MappedSource if protocol in (3, 5) else ArraySource)
    assert source.paths == wanted.paths
    np.testing.assert_array_equal(source.labels, wanted.labels)
    np.testing.assert_array_equal(source.image_digests(), digests)


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("file", ["data_batch_1", "test_batch", "batches.meta"])
def test_no_payload_is_run(tmp_path: Path, photos: dict[str, Photos], file: str) -> None:
    folder, target = write(tmp_path, "cifar-10-batches-py", photos), tmp_path / "sprung"
    (folder / file).write_bytes(pickle.dumps(_Payload(target), 2))
    with pytest.raises(SourceError, match=rf"{file} is a pickle that wants to run 'posix\.mkdir'"):
        open_official(folder)
    assert not target.exists()
    pickle.loads((folder / file).read_bytes())
    assert target.exists()


def test_a_file_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SourceError, match=r"cannot read .*: Permission denied"):
        open_official(folder)
    monkeypatch.undo()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(SourceError, match=r"cannot read .*: Permission denied"):
        open_official(folder)


class OfficialContract(SourceContract):
    folder = ""

    @pytest.fixture
    def splits(self, tmp_path: Path, photos: dict[str, Photos]) -> dict[str, Source]:
        path = write(tmp_path, self.folder, photos)
        (path / "unlabeled_X.bin").unlink(missing_ok=True)
        return open_official(path)


class TestCifar10Pickles(OfficialContract):
    folder = "cifar-10-batches-py"


class TestCifar10Binary(OfficialContract):
    folder = "cifar-10-batches-bin"


class TestCifar100Pickles(OfficialContract):
    folder = "cifar-100-python"


class TestCifar100Binary(OfficialContract):
    folder = "cifar-100-binary"


class TestStl10Binary(OfficialContract):
    folder = "stl10_binary"


def test_a_folder_of_classes_beside_is_no_reason(folder: Path, photos: dict[str, Photos]) -> None:
    shutil.copytree(folder, folder.parent / "copy")
    assert is_official(folder.parent)
    assert photos
