from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_source_contract import SourceContract

from featx.errors import ImageError, ReadError, SourceError
from featx.progress import Reporter
from featx.sources import Source, open_data
from featx.sources.manifest import open_manifest


def write(folder: Path, text: str, name: str = "list.csv", *, images: bool = True) -> Path:
    """Write a manifest, and a file for each path in its first column."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    for line in text.splitlines()[1:] if images else ():
        path = line.split(",")[0].strip('"')
        if path and not path.startswith("/"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(path.encode())
    return folder / name


def said(file: Path) -> str:
    stream = io.StringIO()
    open_manifest(file, reporter=Reporter(stream=stream))
    return stream.getvalue()


def test_paths_and_labels(tmp_path: Path) -> None:
    file = write(tmp_path / "x", "path,label\nq/2.jpg,dog\n1.jpg,cat\n3.jpg,\n4.jpg,dog \n")
    splits = open_manifest(file)
    assert list(splits) == ["all"]
    source = splits["all"]
    assert (source.name, source.class_names) == ("list", ("cat", "dog"))
    assert source.paths == ("q/2.jpg", "1.jpg", "3.jpg", "4.jpg")
    assert source.labels.tolist() == [1, 0, -1, 1]
    assert source.read(0) == b"q/2.jpg"
    assert said(file) == ""


def test_splits_share_all_classes(tmp_path: Path) -> None:
    text = "path,label,split\n1,a,TEST\n2,b,training\n3,c,train\n4,,unlabelled\n5,a,validation\n"
    splits = open_manifest(write(tmp_path, text))
    assert list(splits) == ["train", "val", "test", "unlabeled"]
    assert {source.class_names for source in splits.values()} == {("a", "b", "c")}
    assert splits["train"].paths == ("2", "3")
    assert splits["train"].labels.tolist() == [1, 2]
    assert splits["unlabeled"].labels.tolist() == [-1]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "9", "0"], ("0", "9", "10")),
        (["10", "9", "x"], ("9", "10", "x")),
        (["1", "01", ""], ("01", "1")),
        (["1.5", "1", "2"], ("1", "1.5", "2")),
        (["Z", "a", "ä"], ("Z", "a", "ä")),
    ],
)
def test_the_order_of_the_classes(
    tmp_path: Path, labels: list[str], names: tuple[str, ...]
) -> None:
    lines = [f"{i}.jpg,{label}" for i, label in enumerate(labels)]
    source = open_manifest(write(tmp_path, "\n".join(["path,label", *lines])))["all"]
    assert source.class_names == names
    assert [source.class_names[i] if i >= 0 else "" for i in source.labels] == labels


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet"])
def test_other_names_of_columns_are_told(tmp_path: Path, ending: str) -> None:
    table = pd.DataFrame(
        {"id": [7, 8], "Filename": ["1", "2"], "target": [5, 40], "category": ["b", "a"],
         "fold": ["train", "test"]}
    )  # fmt: skip
    file = tmp_path / f"list{ending}"
    if ending == ".parquet":
        table.to_parquet(file)
    else:
        table.to_csv(file, sep="," if ending == ".csv" else "\t", index=False)
    (tmp_path / "1").touch()
    splits = open_manifest(file)
    assert list(splits) == ["train", "test"]
    assert splits["test"].class_names == ("a", "b")
    text = f"list{ending}: path from 'Filename', label from 'category', split from 'fold'\n"
    assert said(file) == text


def test_folders_of_splits_without_a_column_are_told(tmp_path: Path) -> None:
    lines = ("train/cat/1.jpg,cat", "train/dog/1.jpg,dog", "Test/cat/1.jpg,cat")
    text = said(write(tmp_path, "\n".join(["path,label", *lines])))
    assert "no column gives the split, so all images are one set, though they lie in 'Test'" in text
    assert said(write(tmp_path, "\n".join(["path,label", *lines[:2]]))) == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path,label\n", "lists no images"),
        ("1.jpg,cat\n2.jpg,dog\n", "has no column 'path' but '1.jpg', 'cat': the first line must"),
        ("path,x\n1,a\n", "has no column 'label' but 'path', 'x': the first line must name"),
        ("path,label\n1,a\n2,a\n3,\n", "has one class only .'a'., and a classifier needs two"),
        ("path,label\n1,\n2,\n", "has no label at all, and a classifier needs two"),
        ("path,label\n1,a\n,b\n", "line 3: the path is empty"),
        (
            "path,label,split\n1,a,train\n\n2,b,dev\n",
            "'split' looks like a split, but some values are none: 'dev'; w",
        ),
        ("path,label,split\n1,a,train\n2,b,\n", "but some values are none: ''; write train"),
        (
            "path,label,split\n1,a,train\n2,b,all\n",
            "but some values are none: 'all'; write train, val, t",
        ),
        ("path,label\n1,a\n2,b\n1,b\n", "'1' has two labels, 'a' on line 2 and 'b' on line 4"),
        (
            "path,label,split\n1,a,train\n2,b,test\n1,a,test\n",
            "'1' has two splits, 'train' on line 2 and 'test' on line 4: keep one",
        ),
    ],
)
def test_wrong_manifests(tmp_path: Path, text: str, reason: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(SourceError, match=reason) as caught:
        open_manifest(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_of_a_parquet_file_are_counted(tmp_path: Path) -> None:
    table = pd.DataFrame({"path": ["1", "2", "1"], "label": ["a", "b", "b"]})
    table.to_parquet(tmp_path / "list.parquet")
    with pytest.raises(SourceError, match="two labels, 'a' on row 1 and 'b' on row 3"):
        open_manifest(tmp_path / "list.parquet")


def test_a_path_that_comes_again_is_dropped_and_told(tmp_path: Path) -> None:
    text = f"path,label\na/1,x\n2,y\n./a/1,x\na//1,x\n{tmp_path}/a/1,x\na/./1,x\n3,y\n"
    file = write(tmp_path, text)
    source = open_manifest(file)["all"]
    assert source.paths == ("a/1", "2", "3")
    assert source.labels.tolist() == [0, 1, 1]
    assert said(file) == "warning: list.csv: 4 paths that come again left out\n"


def test_absolute_paths(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    file = write(tmp_path / "here", f"path,label\n{tmp_path}/far/1.jpg,a\n../far/1.jpg,b\n")
    (tmp_path / "far" / "1.jpg").write_bytes(b"far")
    source = open_manifest(file)["all"]
    assert source.paths[0] == f"{tmp_path}/far/1.jpg"
    assert source.read(0) == source.read(1) == b"far"


def test_backslashes(tmp_path: Path) -> None:
    file = write(tmp_path, "path,label\na/b/1.jpg,x\na/2.jpg,y\n")
    file.write_text("path,label\na\\b\\1.jpg,x\na\\2.jpg,y\n")
    source = open_manifest(file)["all"]
    assert source.paths == ("a/b/1.jpg", "a/2.jpg")
    assert source.read(0) == b"a/b/1.jpg"
    (tmp_path / "a\\2.jpg").write_bytes(b"a strange name")
    source = open_manifest(file)["all"]
    assert source.paths == ("a\\b\\1.jpg", "a\\2.jpg")
    assert source.read(1) == b"a strange name"


def test_missing_files_are_errors(tmp_path: Path) -> None:
    file = write(tmp_path, "path,label\n1,a\n2,b\n")
    (tmp_path / "1").unlink()
    source = open_manifest(file)["all"]
    with pytest.raises(ReadError, match="cannot read '.*/1': No such file"):
        source.read(0)
    (tmp_path / "2").unlink()
    with pytest.raises(
        SourceError, match=f"looked for any of the first 2 images .* {file.parent}/1"
    ):
        open_manifest(file)
    lines = [f"{i},{i % 2}" for i in range(300)]
    file.write_text("\n".join(["path,label", *lines]))
    (tmp_path / "100").touch()
    with pytest.raises(SourceError, match="looked for any of the first 100 images"):
        open_manifest(file)
    (tmp_path / "99").touch()
    assert len(open_manifest(file)["all"]) == 300


def test_an_impossible_name_is_a_row_that_fails(tmp_path: Path) -> None:
    file = write(tmp_path, "path,label\n1,a\n", "list.csv")
    file.write_text("path,label\n1,a\n2\0,b\n")
    with pytest.raises(ImageError, match="not a possible file name"):
        open_manifest(file)["all"].read(1)


def test_equals_the_folder(cifar_slice: Path, tmp_path: Path) -> None:
    """The same images by a manifest and by their folders have one content id."""
    root = shutil.copytree(cifar_slice, tmp_path / "copy")
    folder = open_data(root)
    lines = ["path,label,split"]
    for split, source in folder.items():
        names = [source.class_names[label] for label in source.labels]
        lines += [f"{p},{name},{split}" for p, name in zip(source.paths, names, strict=True)]
    (root / "list.csv").write_text("\n".join(lines))
    for split, source in open_manifest(root / "list.csv").items():
        assert source.paths == folder[split].paths
        assert source.class_names == folder[split].class_names
        np.testing.assert_array_equal(source.labels, folder[split].labels)
        np.testing.assert_array_equal(source.image_digests(), folder[split].image_digests())
        assert source.content_id() == folder[split].content_id()


class TestManifest(SourceContract):
    @pytest.fixture
    def splits(self, photo_tree: Path) -> dict[str, Source]:
        paths = sorted(path.relative_to(photo_tree) for path in photo_tree.rglob("*.*"))
        lines = [f"{path},{path.parent}" for path in paths]
        (photo_tree / "list.csv").write_text("\n".join(["path,label", *lines]))
        return open_manifest(photo_tree / "list.csv")


class TestManifestWithSplits(SourceContract):
    @pytest.fixture
    def splits(self, photo_tree: Path) -> dict[str, Source]:
        paths = sorted(path.relative_to(photo_tree) for path in photo_tree.rglob("*.*"))
        halves = ["train", "test"] * len(paths)
        lines = [f"{p},{p.parent},{half}" for p, half in zip(paths, halves, strict=False)]
        (photo_tree / "list.csv").write_text("\n".join(["path,label,split", *lines]))
        return open_manifest(photo_tree / "list.csv")
