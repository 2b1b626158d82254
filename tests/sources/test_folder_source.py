from __future__ import annotations

import io
import os
import pickle
import shutil
import socket
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from featx.errors import ImageError, ReadError, SourceError
from featx.progress import Reporter
from featx.sources import open_data
from featx.sources.folder import open_folder


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            target.mkdir()
        else:
            target.write_bytes(path.encode())
    return root


def said(root: Path, *, quiet: bool = False) -> str:
    stream = io.StringIO()
    open_folder(root, reporter=Reporter(stream=stream, quiet=quiet))
    return stream.getvalue()


def test_classes_without_splits(tmp_path: Path) -> None:
    root = make(tmp_path / "pets", "dog/b.jpg", "dog/a.PNG", "cat/10.tif", "cat/9.webp")
    splits = open_folder(root)
    assert list(splits) == ["all"]
    source = splits["all"]
    assert (source.name, source.split) == ("pets", "all")
    assert source.class_names == ("cat", "dog")
    assert source.paths == ("cat/10.tif", "cat/9.webp", "dog/a.PNG", "dog/b.jpg")
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert source.read(2) == b"dog/a.PNG"


@pytest.mark.parametrize("alias", ["val", "valid", "validation", "VAL"])
def test_splits_come_in_order(tmp_path: Path, alias: str) -> None:
    names = [f"{split}/{label}/1.jpg" for split in ("test", alias, "Train") for label in "ba"]
    splits = open_folder(make(tmp_path, *names))
    assert list(splits) == ["train", "val", "test"]
    assert splits["val"].paths == (f"{alias}/a/1.jpg", f"{alias}/b/1.jpg")
    assert splits["train"].paths == ("Train/a/1.jpg", "Train/b/1.jpg")


@pytest.mark.parametrize("split", ["train", "test"])
def test_one_split_alone(tmp_path: Path, split: str) -> None:
    assert list(open_folder(make(tmp_path, f"{split}/a/1.jpg", f"{split}/b/1.jpg"))) == [split]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    root = make(tmp_path, "bus/1.jpg", "train/1.jpg", "train/old/2.jpg", "ship/1.jpg")
    source = open_folder(root)["all"]
    assert source.class_names == ("bus", "ship", "train")
    assert source.labels.tolist() == [0, 1, 2, 2]


def test_folders_beside_the_splits_are_told(tmp_path: Path) -> None:
    root = make(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "annotations/x.jpg", "y.jpg")
    assert list(open_folder(root)) == ["train"]
    text = said(root, quiet=True)
    assert "only 'train' read, 'annotations' left out" in text
    assert "1 images in no class folder left out" in text


def test_every_ending_counts_in_any_case(tmp_path: Path) -> None:
    endings = ["jpg", "jpeg", "png", "bmp", "gif", "tif", "tiff", "webp", "avif", "JPG", "Jpeg"]
    root = make(tmp_path, *(f"a/{i}.{end}" for i, end in enumerate(endings)), "b/1.jpg")
    assert len(open_folder(root)["all"]) == len(endings) + 1


def test_hidden_files_are_left_out_and_others_are_told_once(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        *("a/1.jpg", "a/.2.jpg", "a/.DS_Store", "a/Thumbs.db", "a/desktop.ini", "a/.hid/3.jpg"),
        *("b/1.jpg", "b/notes.txt", "b/more.TXT", "b/README", "b/x.json"),
        *(".git/1.jpg", "__MACOSX/1.jpg", "__MACOSX/a/1.jpg"),
    )
    assert open_folder(root)["all"].paths == ("a/1.jpg", "b/1.jpg")
    text = said(root)
    assert text.count("\n") == 1
    assert "4 files that are no images left out (2 .txt, 1 " in text
    assert said(root, quiet=True) == ""


def test_subfolders_belong_to_their_class(tmp_path: Path) -> None:
    root = make(tmp_path, "a/z.jpg", "a/m/deep/1.jpg", "a/m.jpg", "b/x.jpg/1.png", "b/q/")
    source = open_folder(root)["all"]
    assert source.paths == ("a/m.jpg", "a/m/deep/1.jpg", "a/z.jpg", "b/x.jpg/1.png")
    assert source.labels.tolist() == [0, 0, 0, 1]


def test_class_folders_are_labels_in_every_split(tmp_path: Path) -> None:
    """Numbers in order, one class for two spellings, and -1 is unknown, wherever it lies."""
    names = ("train/10/1.jpg", "train/9/1.jpg", "train/-1/1.jpg", "train/e\u0301/1.jpg")
    root = make(
        tmp_path, *names, "train/\xe9/2.jpg", "test/\xe9/1.jpg", "test/9/1.jpg", "test/10/1.jpg"
    )
    splits = open_folder(root)
    assert {source.class_names for source in splits.values()} == {("9", "10", "\xe9")}
    assert splits["train"].labels.tolist() == [0, 1, 2, 2, -1]
    assert splits["train"].paths[-1] == "train/-1/1.jpg"
    assert splits["test"].labels.tolist() == [0, 1, 2]
    with pytest.raises(SourceError, match=r"one class only \('0'\)"):
        open_folder(make(tmp_path / "x", "0/1.jpg", "0.0/2.jpg", "-1/3.jpg"))


def test_order_does_not_depend_on_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path, *(f"{label}/{i}.jpg" for label in "cab" for i in range(20)))
    wanted = open_folder(root)["all"].paths
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: Path) -> None:
            with scandir(path) as found:
                self.found = sorted(found, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.found

        def __exit__(self, *args: object) -> None:
            del args

    monkeypatch.setattr(os, "scandir", Backwards)
    assert open_folder(root)["all"].paths == wanted == tuple(sorted(wanted))


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    root = make(tmp_path / "data", "a/1.jpg", "b/1.jpg", "b/sub/2.jpg")
    outside = make(tmp_path / "outside", "far.jpg", "more/3.jpg")
    (root / "a" / "file.jpg").symlink_to(outside / "far.jpg")
    (root / "a" / "folder").symlink_to(outside / "more")
    (root / "a" / "again").symlink_to(outside / "more")
    (root / "a" / "up").symlink_to(root)  # would put b's images into a
    (root / "a" / "far-up").symlink_to(tmp_path)
    (root / "b" / "loop").symlink_to(root / "b")
    (root / "b" / "sub" / "loop").symlink_to("..")
    (root / "b" / "self").symlink_to("self")
    (root / "b" / "self.jpg").symlink_to("self.jpg")
    (root / "b" / "broken.jpg").symlink_to("nowhere")
    (root / "c").symlink_to(outside)
    source = open_folder(root)["all"]
    assert source.paths == (
        *("a/1.jpg", "a/again/3.jpg", "a/file.jpg"),
        *("b/1.jpg", "b/broken.jpg", "b/self.jpg", "b/sub/2.jpg"),
        *("c/far.jpg", "c/more/3.jpg"),
    )
    assert source.read(2) == b"far.jpg"
    with pytest.raises(ReadError, match=r"^cannot read '.*/b/broken.jpg': No such file"):
        source.read(4)
    with pytest.raises(ReadError, match=r"^cannot read '.*/b/self.jpg': Too many levels"):
        source.read(5)


def test_a_class_on_a_disk_that_is_not_mounted_is_not_left_out(tmp_path: Path) -> None:
    root = make(tmp_path / "data", "a/1.jpg", "b/1.jpg")
    (root / "c").symlink_to("/not-mounted/c")
    with pytest.raises(SourceError, match=r"^cannot list '.*/data/c': No such file"):
        open_folder(root)


def test_special_files_are_never_opened(tmp_path: Path) -> None:
    root = make(tmp_path, "a/1.jpg", "b/1.jpg")
    os.mkfifo(root / "a" / "pipe.jpg")
    (root / "a" / "link-to-pipe.jpg").symlink_to("pipe.jpg")
    (root / "a" / "zero.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(root / "b" / "socket.jpg"))
        source = open_folder(root)["all"]
        assert source.paths == ("a/1.jpg", "b/1.jpg")
        assert "4 files that are no images left out (4 pipe, socket or device)" in said(root)


def test_a_file_that_became_a_pipe_does_not_hang(tmp_path: Path) -> None:
    root = make(tmp_path, "a/1.jpg", "a/2.jpg", "a/3.jpg", "b/1.jpg")
    source = open_folder(root)["all"]
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        (root / "a" / name).unlink()
    os.mkfifo(root / "a" / "1.jpg")
    (root / "a" / "2.jpg").symlink_to("/dev/zero")
    (root / "a" / "3.jpg").mkdir()
    for row, reason in enumerate(["not a regular file", "not a regular file", "Is a directory"]):
        with pytest.raises(ImageError, match=f"^cannot be read: {reason}$"):
            source.read(row)


def test_a_file_too_large_for_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_folder(make(tmp_path, "a/1.jpg", "b/1.jpg"))["all"]
    monkeypatch.setattr("featx.sources.folder.MOST_IMAGE_BYTES", 3)
    with pytest.raises(ImageError, match="^7 bytes, more than 3$"):
        source.read(0)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_folder(make(tmp_path, "a/1.jpg", "b/1.jpg"))["all"]

    def refuse(path: Path, flags: int) -> int:  # the tests may run as root, who may read all
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ReadError, match=r"^cannot read '.*/a/1.jpg': Permission denied\."):
        source.read(0)


def test_long_names_and_names_with_odd_signs(tmp_path: Path) -> None:
    names = ("a b/ 1 .jpg", "a b/é.JPG", "b/" + "n" * 251 + ".jpg", "b/'\"\n\\.jpg", "b/C:.jpg")
    source = open_folder(make(tmp_path, *names))["all"]
    assert sorted(source.paths) == sorted(names)
    assert [source.read(row).decode() for row in range(5)] == list(source.paths)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    for label in (b"caf\xe9", b"th\xc3\xa9"):
        folder = tmp_path / os.fsdecode(label)
        folder.mkdir()
        (folder / os.fsdecode(b"\xff\xfe.jpg")).write_bytes(label)
    source = pickle.loads(pickle.dumps(open_folder(tmp_path)["all"]))
    assert source.class_names == ("caf\udce9", "thé")
    assert [source.read(row) for row in range(2)] == [b"caf\xe9", b"th\xc3\xa9"]
    assert len(source.content_id()) == 64
    Path(source.root, source.paths[0]).unlink()
    with pytest.raises(ReadError, match=r"caf\\udce9/\\udcff\\udcfe.jpg': No such file"):
        source.content_id()
    with pytest.raises(SourceError, match=r"no images in 'caf\\udce9'"):
        open_folder(tmp_path)


def test_the_root_may_be_relative_or_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "pets", "a/1.jpg", "b/1.jpg")
    monkeypatch.chdir(tmp_path / "pets")
    monkeypatch.setenv("HOME", str(tmp_path))
    for spec in (".", "../pets", "../pets/", "~/pets", Path("../pets"), str(tmp_path / "pets")):
        source = open_data(spec)["all"]
        assert source.name == "pets"
        monkeypatch.chdir("/")
        assert source.read(0) == b"a/1.jpg"
        monkeypatch.chdir(tmp_path / "pets")


ERRORS = {
    "empty": ((), "has no images and no class folders: featx reads <folder>/<class>/<image>"),
    "text only": (("a.txt",), "has no images and no class folders"),
    "no class folders": (("1.jpg", "2.jpg", "x.txt"), "has 2 images but no class folders: move"),
    "no class folders in train": (
        ("train/1.jpg", "test/1.jpg"),
        "train/?' has 1 images but no class folders",
    ),
    "one class": (
        ("a/1.jpg", "a/b/2.jpg", "a/c/3.jpg"),
        r"has one class only \('a'\) .* or give --classes-at 2 if",
    ),
    "one class in train": (("train/a/1.jpg", "test/a/1.jpg"), r"one class only \('a'\)"),
    "no images": (("a/1.txt", "b/"), "has no images in 'a', 'b': image files end in .apng, .avif"),
    "an empty class": (("a/1.jpg", "b/", "c/1.jpg"), "no images in 'b': add images or remove"),
    "many empty": (
        ("0/1.jpg", *(f"{i}/" for i in range(1, 9))),
        "in '1', '2', '3', '4', '5' and 3 more",
    ),
    "two of one split": (
        tuple(f"{split}/{label}/1.jpg" for split in ("train", "val", "valid") for label in "ab"),
        "has both 'val', 'valid' for the split val: keep one",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_layouts_that_are_refused(tmp_path: Path, name: str) -> None:
    paths, reason = ERRORS[name]
    with pytest.raises(SourceError, match=reason) as caught:
        open_folder(make(tmp_path, *paths))
    assert "\n" not in str(caught.value)


def test_missing_folders_and_files(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no folder '.*/a/b': '.*' has no 'a'"):
        open_folder(tmp_path / "a" / "b")
    (tmp_path / "photos.csv").write_text("path,label")
    with pytest.raises(SourceError, match=r"photos.csv' is a file, not a folder: featx reads"):
        open_folder(tmp_path / "photos.csv")


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path, "a/1.jpg", "b/1.jpg")

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError, match=r"cannot list '.*': Permission denied"):
        open_folder(root)


def test_a_file_that_vanished_is_an_error_of_the_machine(photo_tree: Path) -> None:
    source = open_folder(photo_tree)["all"]
    shutil.rmtree(photo_tree / "bee")
    with pytest.raises(ReadError, match=r"^cannot read '.*/bee/.*': No such file or directory\."):
        source.image(7)
    np.testing.assert_equal(source.image(0).size, (7, 9))


MOST_CALLS_A_FILE = 40  # seen: 18; 60,000 names take about a second then


def test_many_names_are_listed_fast(tmp_path: Path) -> None:
    """Few calls of functions a file, however many files: seconds are the machine's."""
    for label in "abcdef":
        (tmp_path / label).mkdir()
        first = tmp_path / label / "0.jpg"
        first.touch()
        for i in range(1, 1_000):
            os.link(first, tmp_path / label / f"{i}.jpg")
    calls: Counter[str] = Counter()
    sys.setprofile(lambda _frame, event, _what: calls.update([event]))
    try:
        source = open_folder(tmp_path)["all"]
    finally:
        sys.setprofile(None)
    assert len(source) == 6_000
    assert calls["call"] + calls["c_call"] < MOST_CALLS_A_FILE * 6_000
