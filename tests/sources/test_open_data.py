from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from packing import pack
from test_folder_source import make

from featx.errors import SourceError, UsageError
from featx.progress import Reporter
from featx.sources import LayoutChoice, available_data, default_data_dir, open_data
from featx.sources.official.formats import FORMATS


def test_names() -> None:
    known = available_data()
    assert set(known) == {"cifar10", "cifar100", "stl10", "digits"}
    assert all(0 < len(text) < 90 and "\n" not in text for text in known.values())


def test_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("FEATX_DATA", raising=False)
    assert default_data_dir() == Path("/home/someone/.cache/featx/data")
    monkeypatch.setenv("FEATX_DATA", "~/elsewhere")
    assert default_data_dir() == Path("/home/someone/elsewhere")


@pytest.mark.parametrize("spec", ["cifra10", "CIFAR-10", "Digits", "photos", ""])
def test_a_wrong_name(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"^unknown data set '{spec}'") as caught:
        open_data(spec)
    assert f"there is no folder {spec!r}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert any(name in str(caught.value) for name in available_data())


def test_a_wrong_path_may_have_been_meant_as_a_name(tmp_path: Path) -> None:
    for spec in ("./cifra10", tmp_path / "cifar-10", Path("stl_10")):
        with pytest.raises(SourceError, match="did you mean the built-in data set"):
            open_data(spec)
    with pytest.raises(SourceError, match="no folder '/nowhere/photos': '/' has no 'nowhere'"):
        open_data("/nowhere/photos")


def test_a_name_wins_over_a_folder_and_says_so(
    photo_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo_tree.rename(photo_tree.with_name("digits"))
    monkeypatch.chdir(photo_tree.parent)
    stream = io.StringIO()
    assert set(open_data("digits", reporter=Reporter(stream=stream))) == {"train", "test"}
    assert "for the folder, say ./digits" in stream.getvalue()
    for spec in ("./digits", Path("digits"), "digits/"):
        assert open_data(spec)["all"].class_names == ("ant", "bee", "crane")


def test_a_folder_loads_neither_torch_nor_sklearn(photo_tree: Path) -> None:
    code = (
        "import sys; from featx.sources import open_data; "
        f"open_data({str(photo_tree)!r})['all'].image(0); "
        "print([m for m in ('torch', 'torchvision', 'sklearn', 'h5py') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"


def sample(n: int) -> dict[str, bytes]:
    return {f"{i}.{end}": str(i % 2).encode() for i in range(n) for end in ("jpg", "cls")}


def images_in_a_table(path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    cells = {"image": [{"bytes": b"x", "path": "1.jpg"}] * 2, "label": ["a", "b"]}
    pyarrow.parquet.write_table(pa.table(cells), path)


BESIDE = {
    "backup.tar.gz": lambda path: pack(path, {"a/1.jpg": b"", "b/2.jpg": b""}),
    "flat.tgz": lambda path: pack(path, {"1.jpg": b"", "2.jpg": b""}),
    "backup.zip": lambda path: pack(path, {"a/1.jpg": b"", "b/2.jpg": b""}),
    "photos.tar": lambda path: pack(path, {"1.jpg": b"", "2.jpg": b""}),
    "train-000.tar": lambda path: pack(path, sample(2)),
    "train-000.tar.xz": lambda path: pack(path, sample(2)),
    "train-00000-of-00001.parquet": images_in_a_table,
    "labels.csv": lambda path: path.write_text("path,label\ncat/1.jpg,x\ndog/1.jpg,y\n"),
    "official files": lambda path: [path.with_name(n).touch() for n in FORMATS[0].files],
}
HIDDEN = {"train-000.tar", "train-000.tar.xz", "train-00000-of-00001.parquet", "official files"}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("top", ["", "train/"])
def test_nothing_hides_class_folders(tmp_path: Path, name: str, top: str) -> None:
    make(tmp_path / "x", *(f"{top}{label}/{i}.jpg" for label in ("cat", "dog") for i in "123"))
    BESIDE[name](tmp_path / "x" / name)
    stream = io.StringIO()
    splits = open_data(tmp_path / "x", reporter=Reporter(stream=stream))
    assert {split: source.class_names for split, source in splits.items()} == {
        "train" if top else "all": ("cat", "dog")
    }
    assert stream.getvalue().startswith("warning: ") == (name in HIDDEN)
    assert "beside" in stream.getvalue()


def test_a_folder_of_previews_hides_no_shards(tmp_path: Path) -> None:
    pack(tmp_path / "x" / "train-000.tar.gz", sample(4))
    make(tmp_path / "x", "previews/1.jpg", "previews/2.jpg")
    splits = open_data(tmp_path / "x", data_dir=tmp_path / "unpacked")
    assert splits["train"].class_names == ("0", "1")


def test_archives_in_a_folder_are_named_where_it_has_no_classes(tmp_path: Path) -> None:
    pack(tmp_path / "x" / "photos.tar.gz", {"cat/1.jpg": b"", "dog/2.jpg": b""})
    with pytest.raises(SourceError, match="has no images and no class folders") as caught:
        open_data(tmp_path / "x")
    assert caught.value.__notes__ == ["to read 'photos.tar.gz' in it, give the file after --data"]
    with pytest.raises(SourceError, match="but no class folders|has no class, and"):
        open_data(pack(tmp_path / "y.tar", {"1.jpg": b"", "2.jpg": b""}))
    for labels in ({}, {"1.cls": b"-1", "2.cls": b""}):
        with pytest.raises(SourceError, match="no class folders|has no class, and a classifier"):
            open_data(pack(tmp_path / "train-0.tar", {"1.jpg": b"", "2.jpg": b""} | labels))


ROWS = [("cat/1.jpg", "x"), ("cat/2.jpg", "x"), ("dog/3.jpg", "y")]
TABLES = {
    "labels of the folders by other names": ("labels.csv", ROWS, ""),
    "other labels": (
        "metadata.csv",
        [("cat/1.jpg", "x"), ("cat/2.jpg", "y")],
        "gives other classes",
    ),
    "other labels as JSON": ("metadata.jsonl", [("cat/1.jpg", "a"), ("cat/2.jpg", "b")], "gives"),
    "other labels by name": ("train.csv", [("1.jpg", "a"), ("2.jpg", "b")], "gives other classes"),
    "other images": ("a.csv", [("1.png", "a"), ("2.png", "a"), ("3.png", "a")], ""),
    "objects in images": ("a.csv", [("cat/1.jpg", "x"), ("cat/1.jpg", "y")], ""),
    "predictions": ("a.csv", [("cat/1.jpg", "x"), ("cat/2.jpg", "y"), ("rank", "")], ""),
    "unknown labels": ("a.csv", [("cat/1.jpg", "1.0"), ("cat/2.jpg", "-1")], ""),
}


@pytest.mark.parametrize("top", ["", "train/"])
@pytest.mark.parametrize("name", TABLES)
def test_no_table_beside_the_folders_is_passed_over(tmp_path: Path, name: str, top: str) -> None:
    file, rows, reason = TABLES[name]
    root = make(tmp_path / "x", *(f"{top}{path}" for path, _ in ROWS))
    if file.endswith(".jsonl"):
        lines = [json.dumps({"file_name": path, "label": label}) for path, label in rows]
    else:
        lines = ["file_name,label", *map(",".join, rows)]
        if rows[-1][0] == "rank":
            lines = [f"{line},1" for line in lines[:-1]]
            lines[0] = "path,class,rank"
    table = root / top / file
    table.write_text("\n".join(lines))
    if not reason:
        assert open_data(root).popitem()[1].class_names == ("cat", "dog")
        return
    with pytest.raises(SourceError, match=reason) as caught:
        open_data(root)
    assert f"--data {table} for its labels, or --classes-at {1 + bool(top)} " in str(caught.value)
    layout = LayoutChoice(classes_at=1 + bool(top))
    assert open_data(root, layout=layout).popitem()[1].class_names == ("cat", "dog")
    if "/" in rows[0][0]:
        assert open_data(table)["all"].class_names == tuple(sorted({label for _, label in rows}))


def test_a_table_of_hugging_face_is_named(tmp_path: Path) -> None:
    def said(path: Path) -> str:
        stream = io.StringIO()
        assert open_data(path, reporter=Reporter(stream=stream, quiet=True))
        return stream.getvalue()

    root = make(tmp_path / "x", "cat/1.jpg", "dog/2.jpg")
    (root / "metadata.csv").write_text("file_name,text\ncat/1.jpg,hello\n")
    assert "names these images and is not read: the classes are the folders" in said(root)
    packed = pack(tmp_path / "y.zip", {"cat/1.jpg": b"", "dog/2.jpg": b"", "metadata.csv": b""})
    assert "'metadata.csv' in the archive not read" in said(packed)
