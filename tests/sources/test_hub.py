from __future__ import annotations

import builtins
import io
import json
import multiprocessing
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from test_source_contract import SourceContract

from featx.errors import ImageError, MissingExtraError, ReadError, SourceError
from featx.progress import Reporter
from featx.sources import FolderSource, Source, open_data, tables
from featx.sources.hub.dataset import HubSource, is_hub_dataset, open_hub
from featx.sources.hub.shards import Recent

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Give the package `datasets`, offline, with a cache of its own."""
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setenv("HF_DATASETS_OFFLINE", "1")
    module = pytest.importorskip("datasets")
    module.disable_progress_bars()
    yield module
    patch.undo()


@pytest.fixture
def folder(photo_tree: Path) -> FolderSource:
    source = open_data(photo_tree)["all"]
    assert isinstance(source, FolderSource)
    return source


def dataset_of(datasets: Any, source: Source, **names: str) -> Any:
    """Put the stored bytes of a source into a Dataset."""
    image, label = names.get("image", "image"), names.get("label", "label")
    features = datasets.Features(
        {
            "id": datasets.Value("int32"),
            image: datasets.Image(),
            label: datasets.ClassLabel(names=list(source.class_names)),
        }
    )
    images = [{"bytes": source.read(row), "path": source.paths[row]} for row in range(len(source))]
    columns = {"id": range(len(source)), image: images, label: source.labels.tolist()}
    return datasets.Dataset.from_dict(columns, features=features)


def assert_same(ours: Source, theirs: Any, image: str = "image", label: str = "label") -> None:
    """Compare with what the package `datasets` reads from the same files."""
    assert len(ours) == len(theirs)
    assert list(ours.class_names) == theirs.features[label].names
    assert ours.labels.tolist() == list(theirs[label])
    for row, example in enumerate(theirs):
        np.testing.assert_array_equal(ours.image(row), example[image].convert("RGB"))


def test_a_saved_dataset(datasets: Any, folder: FolderSource, tmp_path: Path) -> None:
    dataset_of(datasets, folder).shuffle(seed=3).save_to_disk(tmp_path / "set", num_shards=4)
    assert is_hub_dataset(tmp_path / "set")
    splits = open_hub(tmp_path / "set")
    assert list(splits) == ["all"]
    source = splits["all"]
    assert isinstance(source, HubSource)
    assert (source.name, source.paths[3]) == ("set", "all/00003")
    assert len(source.files) == 4
    assert_same(source, datasets.load_from_disk(tmp_path / "set"))
    assert source.content_id() == folder.content_id()


def test_a_saved_dict_with_several_batches(
    datasets: Any, cifar_slice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.DEFAULT_MAX_BATCH_SIZE", 64)
    folders = open_data(cifar_slice)
    names = {"train": "train", "test": "validation"}
    whole = datasets.DatasetDict(
        {new: dataset_of(datasets, folders[old]) for old, new in names.items()}
    )
    whole.save_to_disk(tmp_path / "set")
    splits = open_hub(tmp_path / "set")
    assert list(splits) == ["train", "val"]
    for old, new in names.items():
        ours = splits["val" if new == "validation" else new]
        np.testing.assert_array_equal(ours.image_digests(), folders[old].image_digests())
        assert ours.content_id() == folders[old].content_id()
        assert_same(ours, datasets.load_from_disk(tmp_path / "set")[new])


@pytest.mark.parametrize("rows_per_group", [1, 7, 64, 1000])
def test_parquet_shards(
    datasets: Any, cifar_slice: Path, tmp_path: Path, rows_per_group: int
) -> None:
    folders = open_data(cifar_slice)
    (tmp_path / "set" / "data").mkdir(parents=True)
    (tmp_path / "set" / "README.md").write_text("# A data set")
    for split, source in folders.items():
        data = dataset_of(datasets, source, image="img", label="fine")
        for i in range(3):
            file = tmp_path / "set" / "data" / f"{split}-0000{i}-of-00003.parquet"
            data.shard(3, i, contiguous=True).to_parquet(file, batch_size=rows_per_group)
    assert is_hub_dataset(tmp_path / "set")
    splits = open_hub(tmp_path / "set")
    assert list(splits) == ["train", "test"]
    for split, source in splits.items():
        files = sorted(str(path) for path in (tmp_path / "set" / "data").glob(f"{split}-*"))
        cache = str(tmp_path / "cache")
        theirs = datasets.Dataset.from_parquet(files, cache_dir=cache)
        assert_same(source, theirs, "img", "fine")
        np.testing.assert_array_equal(source.image_digests(), folders[split].image_digests())
        assert source.content_id() == folders[split].content_id()


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["train.parquet", "test.parquet"], ["train", "test"]),
        (["train/0000.parquet", "train/0001.parquet", "validation/0000.parquet"], ["train", "val"]),
        (["data/train_1.parquet", "data/train_2.parquet"], ["train"]),
        (["data/TEST-00000-of-00001-0a1b2c3d4e5f6071.parquet"], ["test"]),
        (["a-train-00000-of-00001.parquet", "a_test.parquet"], ["train", "test"]),
        (["x.parquet", "y.parquet"], ["all"]),
        (["data/data-00000-of-00001.parquet"], ["all"]),
    ],
)
def test_which_file_is_which_split(
    datasets: Any, folder: FolderSource, tmp_path: Path, files: list[str], splits: list[str]
) -> None:
    for file in files:
        (tmp_path / "set" / file).parent.mkdir(parents=True, exist_ok=True)
        dataset_of(datasets, folder).to_parquet(tmp_path / "set" / file)
    found = open_hub(tmp_path / "set")
    assert list(found) == splits
    assert sum(map(len, found.values())) == len(folder) * len(files)
    alone = open_hub(tmp_path / "set" / files[-1])
    assert list(alone) == splits[-1:]


def test_parts_that_are_no_splits_are_told(
    datasets: Any, folder: FolderSource, tmp_path: Path
) -> None:
    data = dataset_of(datasets, folder)
    datasets.DatasetDict({"train": data, "extra": data}).save_to_disk(tmp_path / "saved")
    (tmp_path / "files").mkdir()
    for word in ("train", "extra", "train_extra"):
        data.to_parquet(tmp_path / "files" / f"{word}-00000-of-00001.parquet")
    for name, left_out in (("saved", "extra"), ("files", "extra, train_extra")):
        stream = io.StringIO()
        assert list(open_hub(tmp_path / name, reporter=Reporter(stream=stream))) == ["train"]
        assert stream.getvalue() == f"warning: '{name}': only train read, {left_out} left out\n"
    datasets.DatasetDict({"a": data, "b": data}).save_to_disk(tmp_path / "none")
    with pytest.raises(SourceError, match="has the splits a, b: rename them to train, val, test"):
        open_hub(tmp_path / "none")
    datasets.DatasetDict({"val": data, "validation": data}).save_to_disk(tmp_path / "two")
    with pytest.raises(SourceError, match="has two parts for the split val .validation.: keep one"):
        open_hub(tmp_path / "two")


def test_a_split_that_was_saved_alone(datasets: Any, folder: FolderSource, tmp_path: Path) -> None:
    data = dataset_of(datasets, folder)
    data._split = datasets.Split("test")
    data.save_to_disk(tmp_path / "set")
    assert list(open_hub(tmp_path / "set")) == ["test"]


def test_what_is_no_hub_dataset(photo_tree: Path, tmp_path: Path) -> None:
    table = pa.table({"path": ["a", "b"], "label": ["x", "y"]})
    pq.write_table(table, tmp_path / "list.parquet")
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.parquet").write_text("no")
    for path in ("list.parquet", "no.parquet", "empty", "nowhere", "photos"):
        assert not is_hub_dataset(tmp_path / path)
    assert not is_hub_dataset(photo_tree)
    with pytest.raises(SourceError, match="is no data set of Hugging Face: featx reads what save"):
        open_hub(tmp_path / "empty")


def features(**columns: Any) -> dict[bytes, bytes]:
    return {b"huggingface": json.dumps({"info": {"features": columns}}).encode()}


IMAGE, LABEL = {"_type": "Image"}, {"_type": "ClassLabel", "names": ["a", "b"]}
STRUCTS = [{"bytes": bytes([i]) * 3, "path": None} for i in range(4)]


def write(folder: Path, metadata: dict[bytes, bytes] | None = None, **columns: Any) -> Path:
    table = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(table, folder / "set.parquet")
    return folder / "set.parquet"


def test_without_features(tmp_path: Path) -> None:
    file = write(tmp_path, photo=[b"0", b"1", b"2", b"3"], label=["x", "y", None, "x"])
    source = open_hub(file)["all"]
    assert source.class_names == ("x", "y")
    assert source.labels.tolist() == [0, 1, -1, 0]
    assert source.read(2) == b"2"
    source = open_hub(write(tmp_path, photo=STRUCTS, label=[10, 9, None, 9]))["all"]
    assert source.class_names == ("9", "10")
    assert source.labels.tolist() == [1, 0, -1, 0]
    assert source.read(2) == b"\2\2\2"


def test_unknown_labels_and_missing_images(tmp_path: Path) -> None:
    images = [*STRUCTS[:2], {"bytes": None, "path": "/etc/hostname"}, None]
    metadata = features(image=IMAGE, label=LABEL)
    file = write(tmp_path, metadata, image=images, label=[0, -1, None, 1])
    source = open_hub(file)["all"]
    assert source.labels.tolist() == [0, -1, -1, 1]
    for row in (2, 3):
        with pytest.raises(ImageError, match="the data set has no bytes of this image"):
            source.read(row)
    assert len(source.content_id()) == 64


@pytest.mark.parametrize("saved", [False, True])
def test_paths_beside_the_data_in_place_of_bytes(
    tmp_path: Path, saved: bool, datasets: Any
) -> None:
    images = [{"bytes": None, "path": path} for path in ("x/1.jpg", "2.jpg", "../x", "/2.jpg")]
    metadata = features(image=IMAGE, label=LABEL)
    file = write(tmp_path, metadata, image=images, label=[0, 1, 0, 1])
    if saved:
        datasets.Dataset.from_parquet(str(file)).save_to_disk(tmp_path / "saved")
        file = tmp_path / "saved"
    folder = file if saved else tmp_path
    (folder / "x").mkdir()
    for name in ("x/1.jpg", "2.jpg"):
        (folder / name).write_bytes(name.encode())
    [source] = open_hub(file).values()
    assert [source.read(row) for row in (0, 1)] == [b"x/1.jpg", b"2.jpg"]
    for row in (2, 3):
        with pytest.raises(ImageError, match="no bytes of this image"):
            source.read(row)


@pytest.mark.parametrize(
    "label",
    [pa.array([0.0, 1.0, None, 1.0]), pa.array([0, 1, None, 1]).dictionary_encode()],
    ids=["floats", "dictionary"],
)
@pytest.mark.parametrize("metadata", [None, features(photo=IMAGE, labels=LABEL)])
def test_labels_in_other_types(tmp_path: Path, label: Any, metadata: Any) -> None:
    source = open_hub(write(tmp_path, metadata, photo=STRUCTS, labels=label))["all"]
    assert source.labels.tolist() == [0, 1, -1, 1]
    assert source.class_names == (("a", "b") if metadata else ("0", "1"))


def test_names_choose_between_columns(tmp_path: Path) -> None:
    other = {"_type": "ClassLabel", "num_classes": 3, "names": None}
    metadata = features(mask=IMAGE, image=IMAGE, label=other, coarse=LABEL)
    columns = {"mask": STRUCTS[::-1], "image": STRUCTS, "label": [0, 1, 2, 0], "coarse": [0] * 4}
    source = open_hub(write(tmp_path, metadata, **columns))["all"]
    assert source.class_names == ("0", "1", "2")
    assert source.read(1) == b"\1\1\1"


@pytest.mark.parametrize(
    ("kinds", "columns", "reason"),
    [
        (
            {"a": IMAGE, "b": IMAGE, "label": LABEL},
            {"a": STRUCTS, "b": STRUCTS, "label": [0, 1, 0, 1]},
            r"2 columns of the feature Image \(a, b\) among a \(struct.*rename_column\('a', 'im",
        ),
        (
            {"image": IMAGE, "fine": LABEL, "coarse": LABEL},
            {"image": STRUCTS, "fine": [0, 1, 0, 1], "coarse": [0, 1, 0, 1]},
            r"2 columns of the feature ClassLabel \(fine, coarse\).*rename_column\('fine', 'label'",
        ),
        (
            {"image": IMAGE},
            {"image": STRUCTS, "target": ["a", "b", "c", "d"]},
            r"no column of the feature ClassLabel among image \(struct.*, target \(string\): cast",
        ),
        ({"label": LABEL}, {"x": ["a", "b"], "label": [0, 1]}, "no column of the feature Image"),
        (
            {"image": IMAGE, "label": LABEL},
            {"image": STRUCTS, "label": [0, 1, 2, 0]},
            r"row 2: the label 2 is none of the 2 classes",
        ),
        (
            {"image": IMAGE, "label": LABEL},
            {"image": STRUCTS, "label": [0, 1, -2, 0]},
            r"row 2: the label -2 is none of the 2 classes",
        ),
        (
            {"image": IMAGE, "label": LABEL},
            {"image": STRUCTS, "label": ["a", "b", "a", "b"]},
            "'label' is string, not whole numbers",
        ),
        (
            {"image": IMAGE, "label": {"_type": "ClassLabel", "names": ["a", "a"]}},
            {"image": STRUCTS, "label": [0, 1, 0, 1]},
            "has a class name twice",
        ),
        (
            {"image": IMAGE, "label": {"_type": "ClassLabel", "names": ["a"]}},
            {"image": STRUCTS, "label": [0, 0, 0, 0]},
            "has 1 classes, and a classifier needs two",
        ),
    ],
)
def test_columns_that_are_not_clear(
    tmp_path: Path, kinds: dict[str, Any], columns: dict[str, Any], reason: str
) -> None:
    file = write(tmp_path, features(**kinds), **columns)
    with pytest.raises(SourceError, match=reason) as caught:
        open_hub(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"info": 3}', b'{"info": {"features": [1]}}'])
def test_damaged_features_count_as_none(tmp_path: Path, metadata: bytes) -> None:
    columns = {"image": STRUCTS, "label": ["x", "y", "x", "y"]}
    file = write(tmp_path, {b"huggingface": metadata}, **columns)
    assert open_hub(file)["all"].class_names == ("x", "y")


def test_files_that_do_not_fit_together(
    datasets: Any, folder: FolderSource, tmp_path: Path
) -> None:
    first, second = tmp_path / "train-00000-of-00002.parquet", tmp_path / "x"
    data = dataset_of(datasets, folder)
    data.to_parquet(first)
    with pytest.raises(SourceError, match="lacks 1 of 2 files, the first is train-00001-of-00002:"):
        open_hub(tmp_path)
    assert len(open_hub(first)["train"]) == len(folder)
    names = data.features | {"label": datasets.ClassLabel(names=["a", "b", "c"])}
    data.cast(datasets.Features(names)).to_parquet(second)
    second.rename(tmp_path / "train-00001-of-00002.parquet")
    with pytest.raises(SourceError, match="has other columns or class names than the files before"):
        open_hub(tmp_path)


def test_a_file_whose_column_names_another_split(tmp_path: Path) -> None:
    for file, cells in (("train", ["train", "test"]), ("test", ["test", "test"])):
        write(tmp_path, image=[b"1", b"2"], label=["a", "b"], split=cells).rename(
            tmp_path / f"{file}.parquet"
        )
    with pytest.raises(SourceError, match="'train', but its column 'split' has rows of 'test'"):
        open_hub(tmp_path)
    write(tmp_path, image=[b"1", b"2"], label=["a", "b"], split=["Train", ""]).rename(
        tmp_path / "train.parquet"
    )
    assert list(open_hub(tmp_path)) == ["train", "test"]


def test_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "train-00000-of-00001.parquet"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert is_hub_dataset(tmp_path)
    with pytest.raises(SourceError, match="it is a Git LFS pointer: run  git lfs pull"):
        open_hub(tmp_path)
    file.write_text("PAR1")
    with pytest.raises(SourceError, match="00001.parquet cannot be read: "):
        open_hub(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("dataset_dict.json", "{", "dataset_dict.json is damaged"),
        ("dataset_dict.json", "[]", "dataset_dict.json is damaged: it holds no object"),
        ("dataset_dict.json", "{}", "dataset_dict.json names no splits"),
        ("dataset_dict.json", '{"splits": ["../train"]}', "has the splits ../train: rename"),
        ("dataset_dict.json", '{"splits": ["test"]}', "cannot read .*test/state.json: No such"),
        ("train/state.json", "{}", "state.json names no files in its folder"),
        (
            "train/state.json",
            '{"_data_files": [{"filename": "../../secret.arrow"}]}',
            "state.json names no files in its folder",
        ),
        (
            "train/state.json",
            '{"_indices_data_files": [{"filename": "x"}]}',
            "was saved with a selection of rows by an old version of datasets",
        ),
        ("train/data-00000-of-00001.arrow", "rubbish", "arrow cannot be read: "),
        ("train/data-00000-of-00001.arrow", "", "arrow cannot be read: "),
    ],
)
def test_damaged_folders(
    datasets: Any, folder: FolderSource, tmp_path: Path, file: str, text: str, reason: str
) -> None:
    data = dataset_of(datasets, folder)
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "set")
    (tmp_path / "set" / file).write_text(text)
    with pytest.raises(SourceError, match=reason):
        open_hub(tmp_path / "set")


def test_a_damaged_offset_reads_nothing_outside(tmp_path: Path) -> None:
    batch = pa.record_batch({"image": [b"0" * 9, b"1" * 9], "label": ["x", "y"]})
    (tmp_path / "set").mkdir()
    file = tmp_path / "set" / "a.arrow"
    with pa.ipc.new_stream(file, batch.schema) as stream:
        stream.write_batch(batch)
    good, bad = (np.array(ends, "<i4").tobytes() for ends in ([0, 9, 18], [0, 9, 1 << 30]))
    assert file.read_bytes().count(good) == 1
    file.write_bytes(file.read_bytes().replace(good, bad))
    (tmp_path / "set" / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    (tmp_path / "set" / "dataset_info.json").write_text("{}")
    source = open_hub(tmp_path / "set")["all"]
    for row in (1, 0):
        with pytest.raises(ImageError, match="cannot be read: "):
            source.read(row)


def test_a_damaged_row_group_is_a_row_that_fails(
    datasets: Any, folder: FolderSource, tmp_path: Path
) -> None:
    file = tmp_path / "train.parquet"
    dataset_of(datasets, folder).to_parquet(file, batch_size=5)
    source = open_hub(file)["train"]
    chunk = pq.ParquetFile(file).metadata.row_group(1).column(1)
    data = bytearray(file.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + 8] = b"\xff" * 8
    file.write_bytes(data)
    assert source.read(0) == folder.read(0)
    with pytest.raises(ImageError, match="cannot be read: "):
        source.read(7)
    assert source.read(12) == folder.read(12)


def test_bytes_that_do_not_come_are_no_damage(
    datasets: Any, folder: FolderSource, tmp_path: Path
) -> None:
    file = tmp_path / "train.parquet"
    dataset_of(datasets, folder).to_parquet(file, batch_size=5)
    source = open_hub(file)["train"]
    assert source.read(0) == folder.read(0)
    os.truncate(file, pq.ParquetFile(file).metadata.row_group(1).column(1).data_page_offset)
    with pytest.raises(ReadError, match="cannot read .*: Input/output error"):
        source.read(7)


def test_a_file_that_vanished(datasets: Any, folder: FolderSource, tmp_path: Path) -> None:
    dataset_of(datasets, folder).to_parquet(tmp_path / "train.parquet")
    stored = pickle.dumps(open_hub(tmp_path)["train"])
    (tmp_path / "train.parquet").unlink()
    with pytest.raises(SourceError, match="cannot read '.*/train.parquet': No such file"):
        pickle.loads(stored).read(0)


def test_row_groups_are_decoded_once(
    datasets: Any, cifar_slice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_of(datasets, open_data(cifar_slice)["test"]).to_parquet(
        tmp_path / "test.parquet", batch_size=20
    )
    source = open_hub(tmp_path)["test"]
    n_decoded = 0
    whole = pq.ParquetFile.iter_batches

    def count(*args: Any, **options: Any) -> Any:
        nonlocal n_decoded
        n_decoded += 1
        return whole(*args, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", count)
    source.image_digests()
    assert n_decoded == 10


@pytest.mark.parametrize("bomb", ["image", "label"])
def test_a_parquet_bomb_is_refused_before_it_fills_the_memory(
    tmp_path: Path, bomb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_MOST_UNPACKED", 16 << 20)
    columns = {"image": pa.array([b"1", b"2"] * 100), "label": pa.array(["a", "b"] * 100)}
    once = pa.array(["x" * (1 << 20)]).cast(columns[bomb].type)
    columns[bomb] = pa.DictionaryArray.from_arrays([0] * 200, once).dictionary_decode()
    file = write(tmp_path, **columns)
    assert file.stat().st_size < 1 << 20
    before = pa.total_allocated_bytes()
    with pytest.raises(SourceError, match="unpack to more than .* a decompression bomb"):
        open_hub(file)["all"].read(0)
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_recent_values_are_kept_up_to_a_size() -> None:
    made: list[int] = []
    recent: Recent[int] = Recent(10)

    def get(key: int, size: int) -> int:
        return recent.get(key, lambda: (made.append(key) or key, size))

    for key in (1, 2, 1, 3, 1, 2):
        assert get(key, 5) == key
    assert made == [1, 2, 3, 2]
    for key in (7, 8, 7, 8):
        get(key, 1000)
    assert made == [1, 2, 3, 2, 7, 8]
    threads = [threading.Thread(target=get, args=(9, 1)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made.count(9) == 1


def test_worker_processes_open_the_files_themselves(
    datasets: Any, folder: FolderSource, tmp_path: Path
) -> None:
    data = dataset_of(datasets, folder)
    data.save_to_disk(tmp_path / "saved")
    data.to_parquet(tmp_path / "set.parquet")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for path in ("saved", "set.parquet"):
            source = open_hub(tmp_path / path)["all"]
            source.read(0)
            assert len(pickle.dumps(source)) < 3000
            assert pool.apply(source.read, (3,)) == folder.read(3)


def test_no_code_of_a_data_set_is_run_and_nothing_is_downloaded(
    datasets: Any, folder: FolderSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_of(datasets, folder).save_to_disk(tmp_path / "set")
    dataset_of(datasets, folder).to_parquet(tmp_path / "hub" / "data" / "train.parquet")
    for name in ("set", "hub"):
        (tmp_path / name / f"{name}.py").write_text("raise SystemExit('run')")
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("a connection"))
    for name in ("set", "hub"):
        assert len(next(iter(open_hub(tmp_path / name).values()))) == len(folder)
    code = (
        "import sys; from featx.sources.hub.dataset import open_hub; "
        f"paths = [{str(tmp_path / 'set')!r}, {str(tmp_path / 'hub')!r}]; "
        "[source.read(0) for path in paths for source in open_hub(path).values()]; "
        "print([m for m in ('datasets', 'torch', 'requests') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, image=STRUCTS, label=["x", "y", "x", "y"])
    whole = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return whole(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert is_hub_dataset(tmp_path)
    with pytest.raises(MissingExtraError, match=r"Hugging Face needs .*pip install 'featx\[hf\]'"):
        open_hub(file)


class TestSaved(SourceContract):
    @pytest.fixture
    def splits(self, datasets: Any, folder: FolderSource, tmp_path: Path) -> dict[str, Source]:
        data = dataset_of(datasets, folder).shuffle(seed=1)
        datasets.DatasetDict({"test": data, "train": data}).save_to_disk(
            tmp_path / "set", num_shards={"test": 1, "train": 3}
        )
        return open_hub(tmp_path / "set")


class TestParquet(SourceContract):
    @pytest.fixture
    def splits(self, datasets: Any, cifar_slice: Path, tmp_path: Path) -> dict[str, Source]:
        for split, source in open_data(cifar_slice).items():
            file = tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet"
            dataset_of(datasets, source).to_parquet(file, batch_size=30)
        return open_hub(tmp_path / "set")


def test_the_classes_of_cifar(datasets: Any, cifar_slice: Path, tmp_path: Path) -> None:
    dataset_of(datasets, open_data(cifar_slice)["test"]).save_to_disk(tmp_path / "set")
    assert list(open_hub(tmp_path / "set")["all"].class_names) == CLASSES
    shutil.rmtree(tmp_path / "set")
