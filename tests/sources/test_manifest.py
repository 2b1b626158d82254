from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_source_contract import SourceContract

from featx.errors import FeatxError, ImageError, ReadError, SourceError, UsageError
from featx.progress import Reporter
from featx.sources import LayoutChoice, Source, open_data
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


TABLES = {
    "an id without an ending, and any name": "image_id,breed\na,cat\nb,dog\nc,cat\nd,dog\n",
    "plurals": "filepaths,labels\na.jpg,cat\nb.PNG,dog\nc.jpg,cat\nd.jpeg,dog\n",
    "an index of a data frame": "id,file,class\n0,a.jpg,cat\n1,b.PNG,dog\n2,c.jpg,cat\n"
    "3,d.jpeg,dog\n",
    "one column a class": "image,cat,dog\na,1,0\nb,0,1\nc,1,0\nd,0,1\n",
    "floats and a split": "img|cat|dog|split\na|1.0|0.0|train\nb|0.0|1.0|train\nc|1.0|0.0|train\n"
    "d|0.0|1.0|train\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_as_people_have_them(tmp_path: Path, name: str) -> None:
    (tmp_path / "photos").mkdir()
    for image in ("a.jpg", "b.PNG", "c.jpg", "d.jpeg", "a.txt"):
        (tmp_path / "photos" / image).write_bytes(image.encode())
    file = tmp_path / "list.csv"
    file.write_text(TABLES[name])
    with pytest.raises(SourceError, match="they are in .*photos: add  --images-root .*photos$"):
        open_data(file)
    [source] = open_data(file, layout=LayoutChoice(images_root=str(tmp_path / "photos"))).values()
    assert source.paths == ("a.jpg", "b.PNG", "c.jpg", "d.jpeg")
    assert source.class_names == ("cat", "dog")
    assert source.labels.tolist() == [0, 1, 0, 1]
    assert source.read(1) == b"b.PNG"
    shutil.move(file, tmp_path / "photos")
    assert open_data(tmp_path / "photos" / "list.csv")[source.split].paths == source.paths


def test_columns_are_named(tmp_path: Path) -> None:
    text = "path,label,a,b,which\n1,x,2,cat,train\n2,x,1,dog,test\n"
    file = write(tmp_path, text)
    columns = ("path=a", "label=b", "split=which")
    found = open_data(file, layout=LayoutChoice(columns=columns))
    assert {split: source.paths for split, source in found.items()} == {
        "train": ("2",),
        "test": ("1",),
    }
    assert found["test"].class_names == ("cat", "dog")
    for columns, reason in (
        (("label=bb",), "--columns label=bb: .* has no such column: did you mean b?"),
        (("class=b",), "'class=b': write path=NAME, label=NAME or split=NAME"),
        (("split=b",), "the column 'split' looks like a split, but some values are none"),
    ):
        with pytest.raises(FeatxError, match=reason):
            open_data(file, layout=LayoutChoice(columns=columns))
    with pytest.raises(UsageError, match="is no table: leave out --images-root and --columns"):
        open_data(tmp_path, layout=LayoutChoice(images_root=str(tmp_path)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("id,caption\na,one\nb,two\n", "has no column 'label' but 'id', 'caption'.* --columns"),
        ("id,x,y\na,1,0\nb,1,1\n", r"row 2 belongs to 2 classes \('x', 'y'\)"),
        ("id,breed\n1,x\n1,y\n2,x\n2,y\n", "'1' may be '1.jpg', '1.png': write the whole name"),
    ],
)
def test_tables_that_are_not_clear(tmp_path: Path, text: str, reason: str) -> None:
    for name in ("1.jpg", "1.png", "2.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(SourceError, match=reason):
        open_data(tmp_path / "list.csv")


def test_the_converters_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(# CUB.*?)```", docs, re.DOTALL)
    cub, val = tmp_path / "CUB_200_2011", tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    for name, text in {
        "images": "1 001.Albatross/a_1.jpg\n2 002.Wren/b_2.jpg\n3 002.Wren/b_3.jpg\n",
        "image_class_labels": "1 1\n2 2\n3 2\n",
        "train_test_split": "1 1\n2 0\n3 1\n",
        "classes": "1 001.Albatross\n2 002.Wren\n",
    }.items():
        cub.mkdir(exist_ok=True)
        (cub / f"{name}.txt").write_text(text)
    for image in (cub / "images/001.Albatross/a_1.jpg", val / "v1.JPEG", val / "v2.JPEG"):
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
    (tmp_path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\nv1,n01 1 2 3 4 n01 5 6 7 8 \nv2,n02 1 2 3 4 \n"
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/data.md", "exec"), {})
    found = open_data(cub / "images" / "cub.csv")
    assert found["train"].paths == ("001.Albatross/a_1.jpg", "002.Wren/b_3.jpg")
    assert found["test"].paths == ("002.Wren/b_2.jpg",)
    assert found["test"].class_names == ("001.Albatross", "002.Wren")
    [imagenet] = open_data(val / "val.csv").values()
    assert imagenet.paths == ("v1.JPEG", "v2.JPEG")
    assert imagenet.class_names == ("n01", "n02")


def test_tables_of_a_usual_name_are_called_by_their_folder_too(tmp_path: Path) -> None:
    text = "path,label\n1.jpg,a\n2.jpg,b\n"
    names = {open_data(write(tmp_path / x, text, "labels.csv"))["all"].name for x in "xy"}
    assert names == {"x-labels", "y-labels"}


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
