from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from packing import MODES, files_of, member, named, pack, pack_members
from test_source_contract import SourceContract

from featx.errors import SourceError
from featx.progress import Reporter
from featx.sources import Source
from featx.sources.archives.archive import open_archive
from featx.sources.archives.webdataset import expand_braces, is_webdataset, open_webdataset
from featx.sources.folder import open_folder
from featx.sources.splits import split_of_shard


@pytest.fixture(autouse=True)
def data_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("FEATX_DATA", str(folder))
    return folder


def said(spec: str | Path) -> str:
    stream = io.StringIO()
    open_webdataset(spec, reporter=Reporter(stream=stream, quiet=True))
    return stream.getvalue()


def shard(path: Path, labels: Mapping[str, object], extension: str = "cls") -> Path:
    """Write a shard of samples, each an image that holds its key, and its label."""
    files = {}
    for key, label in labels.items():
        files[f"{key}.jpg"] = key.encode()
        if label is not None:
            files[f"{key}.{extension}"] = label if isinstance(label, bytes) else str(label).encode()
    return pack(path, files)


def from_folder(root: Path, folder: Path, per_shard: int = 70, ending: str = ".tar") -> Path:
    """Write the splits of a folder of images as shards with numbers, and classes.txt."""
    for split, source in open_folder(folder).items():
        for start in range(0, len(source), per_shard):
            files = {}
            for row in range(start, min(start + per_shard, len(source))):
                files[f"{row:06}.cls"] = b"%d\n" % source.labels[row]
                files[f"{row:06}{Path(source.paths[row]).suffix}"] = source.read(row)
            pack(root / f"{split}-{start // per_shard:03}{ending}", files)
    (root / "classes.txt").write_text("\n".join(source.class_names) + "\n", encoding="utf-8")
    return root


class TestWebDataset(SourceContract):
    @pytest.fixture
    def splits(self, photo_tree: Path, tmp_path: Path) -> dict[str, Source]:
        return open_webdataset(from_folder(tmp_path / "shards", photo_tree, 4))


@pytest.mark.parametrize("ending", MODES)
def test_the_same_images_as_in_the_folder(cifar_slice: Path, tmp_path: Path, ending: str) -> None:
    folder = open_folder(cifar_slice)
    root = from_folder(tmp_path / "cifar10", cifar_slice, ending=ending)
    assert is_webdataset(root)
    packed = open_webdataset(root)
    assert list(packed) == list(folder) == ["train", "test"]
    for split, source in packed.items():
        assert source.name == "cifar10"
        assert source.class_names == folder[split].class_names
        np.testing.assert_array_equal(source.labels, folder[split].labels)
        assert source.content_id() == folder[split].content_id()
        assert source.paths[0] == f"{split}-000/000000.jpg"
        assert source.paths[-1] == f"{split}-002/000199.jpg"


def test_one_shard(tmp_path: Path) -> None:
    path = shard(tmp_path / "imagenet-val-00.tar", {"a/1": 3, "a/2": 10, "b/1": 3})
    for splits in (open_webdataset(path), open_webdataset(str(path)), open_archive(path)):
        [(split, source)] = splits.items()
        assert (split, source.split, source.name) == ("val", "val", "imagenet-val-00")
        assert source.class_names == ("3", "10")
        assert source.labels.tolist() == [0, 1, 0]
        assert source.paths == tuple(f"imagenet-val-00/{key}.jpg" for key in ("a/1", "a/2", "b/1"))
        assert source.read(1) == b"a/2"
    assert list(open_archive(shard(tmp_path / "x.tar", {"1": 0, "2": 1}))) == ["all"]
    assert list(open_archive(shard(tmp_path / "x.tar.xz", {"1": 0, "2": 1}))) == ["all"]


LABELS: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "cls": ({"1": 1, "2": b" 0\n"}, ("0", "1")),
    "cls names": ({"1": "dog", "2": "cat"}, ("cat", "dog")),
    "txt": ({"1": "dóg", "2": "a cat\r\n"}, ("a cat", "dóg")),
    "json label": ({"1": '{"label": 10, "x": [1]}', "2": '{"label": 2}'}, ("2", "10")),
    "json cls": ({"1": '{"cls": "dog"}', "2": '{"cls": "cat"}'}, ("cat", "dog")),
    "json class": ({"1": '{"label": null, "class": 1}', "2": '{"class": 0}'}, ("0", "1")),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels(tmp_path: Path, name: str) -> None:
    labels, class_names = LABELS[name]
    path = shard(tmp_path / "x.tar", labels, name.partition(" ")[0])
    assert is_webdataset(path)
    source = open_webdataset(path)["all"]
    assert source.class_names == class_names
    assert source.labels.tolist() == [1, 0]
    assert open_archive(path)["all"].content_id() == source.content_id()


def test_the_label_is_the_first_that_there_is(tmp_path: Path) -> None:
    files = {
        **{"1.jpg": b"1", "1.cls": b"0", "1.json": b'{"label": 9}', "1.txt": b"caption"},
        **{"2.jpg": b"2", "2.cls": b"", "2.json": b'{"label": 1}', "2.txt": b"9"},
        **{"3.jpg": b"3", "3.json": b"[1, 2", "3.txt": b"1"},
    }
    assert open_webdataset(pack(tmp_path / "x.tar", files))["all"].labels.tolist() == [0, 1, 1]


def test_no_label_is_minus_one_and_told(tmp_path: Path) -> None:
    bad: dict[str, object] = {
        **{"0": 0, "1": 1, "2": None, "3": -1, "4": b"\xff\xfe", "5": b"x" * 5000, "6": b"a\nb"},
        **{"7": b" ", "8": b"y" * 300, "9": b"0\0"},
    }
    path = shard(tmp_path / "x.tar", bad)
    assert open_webdataset(path)["all"].labels.tolist() == [0, 1] + [-1] * 8
    assert "warning: 'x': 7 images without a label, their class is unknown\n" in said(path)
    nested = b"[" * 100_000
    odd = {"0": '{"label": NaN}', "1": '{"label": "\\n"}', "2": '{"label": [1]}', "3": nested}
    path = shard(tmp_path / "x.tar", odd | {"4": '{"label": 1}', "5": '{"label": "0"}'}, "json")
    assert open_webdataset(path)["all"].labels.tolist() == [-1] * 4 + [1, 0]
    with pytest.raises(SourceError, match="has no class, and a classifier needs two"):
        open_webdataset(shard(tmp_path / "x.tar", dict.fromkeys("ab")))


def test_samples_without_an_image_are_told(tmp_path: Path) -> None:
    files = named("1.jpg", "2.JPEG", "3.txt", "3.cls", "_stats.json", ".hid.jpg", "__MACOSX/1.jpg")
    path = pack(tmp_path / "x.tar", files | {"1.cls": b"0", "2.cls": b"1"})
    assert open_webdataset(path)["all"].paths == ("x/1.jpg", "x/2.JPEG")
    assert said(path) == "warning: 'x': 2 samples without an image left out\n"
    pack(tmp_path / "y.tar", {"1.cls": b"0", "2.cls": b"1"})
    with pytest.raises(
        SourceError, match=r"shards of 'y' have no images in the split 'all': image"
    ):
        open_webdataset(tmp_path / "y.tar")


def test_several_images_of_one_sample(tmp_path: Path) -> None:
    files = {"1.mask.png": b"m", "1.jpg": b"1", "1.cls": b"0", "2.left.jpg": b"2", "2.cls": b"1"}
    source = open_webdataset(pack(tmp_path / "x.tar", files))["all"]
    assert [source.read(row) for row in range(2)] == [b"1", b"2"]
    pack(tmp_path / "x.tar", files | {"1.png": b"3"})
    with pytest.raises(
        SourceError, match=r"more than one image of the sample '1': '1.jpg', '1.png'"
    ):
        open_webdataset(tmp_path / "x.tar")
    pack(tmp_path / "x.tar", files | {"1.JPG": b"3"})
    with pytest.raises(SourceError, match="has both '1.jpg', '1.JPG': keep one"):
        open_webdataset(tmp_path / "x.tar")
    twice = [member(name, b"0") for name in ("1.jpg", "1.cls", "2.jpg", "2.cls", "1.jpg")]
    with pytest.raises(SourceError, match=r"has '1.jpg' twice \(members 1 and 5"):
        open_webdataset(pack_members(tmp_path / "x.tar", *twice))


def test_images_whose_key_is_taken_are_counted(tmp_path: Path) -> None:
    """The key of a sample ends at the first dot, so that 0.25.png belongs to 0.png."""
    names = ["0.png", "0.25.png", "0.5.png", "1.png", "1.5.png", "2.seg.png", "2.jpg", "a.b/3.png"]
    labels = {"0.cls": b"0", "0.25.cls": b"7", "1.cls": b"1", "2.cls": b"1", "a.b/3.cls": b"0"}
    path = pack(tmp_path / "x.tar", named(*names) | labels)
    source = open_webdataset(path)["all"]
    assert [source.read(row) for row in range(len(source))] == [
        *(b"0.png", b"1.png", b"2.jpg", b"a.b/3.png")
    ]
    assert source.class_names == ("0", "1")
    assert source.labels.tolist() == [0, 1, 1, 0]
    text = said(path)
    assert "warning: 'x': 4 images left out, since their sample has another image" in text
    assert "('0.25.png' beside '0.png')" in text


def test_keys_may_start_anew_in_each_shard(tmp_path: Path) -> None:
    for i in range(3):
        shard(tmp_path / f"train-{i}.tar", {"000": 0, "001": 1})
    source = open_webdataset(tmp_path)["train"]
    assert source.paths[:3] == ("train-0/000.jpg", "train-0/001.jpg", "train-1/000.jpg")
    assert len(source) == 6


def test_splits_by_the_words_of_names_or_folders(tmp_path: Path) -> None:
    for i, name in enumerate(["set-Validation-0", "my_train_0", "test/0", "test/1", "extra"]):
        shard(tmp_path / f"{name}.tar", {"1": i, "2": 9})
    shard(tmp_path / "elsewhere" / "train-9.tar", {"1": 0})
    splits = open_webdataset(tmp_path)
    assert {split: len(source) for split, source in splits.items()} == {
        "train": 2,
        "val": 2,
        "test": 4,
    }
    assert splits["test"].paths[0] == "test/0/1.jpg"
    assert splits["train"].class_names == splits["test"].class_names == ("0", "1", "2", "3", "9")
    assert "shards that name no split left out: 'extra.tar'" in said(tmp_path)


SPLITS = {
    "imagenet1k-validation-00": "val",
    "test_tubes_train_000": "train",
    "train_stations_test": "test",
    "trainset-0": "train",
    "web-dev-3": "val",
    "ILSVRC2012_img_val_a": "val",
    "photos-00": None,
    "trained-00": None,
}


@pytest.mark.parametrize("name", SPLITS)
def test_the_split_is_the_last_word_before_the_number(name: str) -> None:
    assert split_of_shard(name) == SPLITS[name]


@pytest.mark.parametrize(
    "name", ["train-test", "train_val_000", "train_test_tubes_000", "train/web-val-0"]
)
def test_shards_that_name_two_splits_are_refused(tmp_path: Path, name: str) -> None:
    path = shard(tmp_path / f"{name}.tar", {"1": 0, "2": 1})
    with pytest.raises(SourceError, match=r"names more than one split \('train', '(test|val)'\)"):
        open_webdataset(tmp_path)
    if "/" not in name:
        with pytest.raises(SourceError, match="names more than one split"):
            open_archive(path)


def test_names_of_numbers(tmp_path: Path) -> None:
    shard(tmp_path / "train-0.tar", {"1": 0, "2": 2})
    shard(tmp_path / "val-0.tar", {"1": 1})
    names = tmp_path / "classnames.txt"
    names.write_text("\ufefftench\n goldfish \r\ngreat white shark\n\n", encoding="utf-8")
    splits = open_webdataset(tmp_path)
    assert splits["val"].class_names == ("tench", "goldfish", "great white shark")
    assert splits["train"].labels.tolist() == [0, 2]
    assert open_archive(tmp_path / "train-0.tar")["train"].class_names[2] == "great white shark"
    (tmp_path / "classes.txt").write_text("one\ntwo\n", encoding="utf-8")  # comes before the other
    with pytest.raises(
        SourceError, match=r"label 2 of 'train-0/2.jpg' has no name: .* has 2 lines"
    ):
        open_webdataset(tmp_path)
    for text in ("crane\nbus\ncrane\n", "one\n\ntwo\n"):
        (tmp_path / "classes.txt").write_text(text, encoding="utf-8")
        with pytest.raises(
            SourceError, match=r"must name each class once.* repeated are '(crane|)'"
        ):
            open_webdataset(tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(SourceError, match="cannot read the class names in"):
        open_webdataset(tmp_path)


def test_labels_that_do_not_fit_together(tmp_path: Path) -> None:
    shard(tmp_path / "x.tar", {"1": 0, "2": "cat"})
    with pytest.raises(
        SourceError, match=r"numbers in some .*0 in 'x/1.jpg'.* names in others .'cat'"
    ):
        open_webdataset(tmp_path / "x.tar")
    shard(tmp_path / "x.tar", {"1": 5, "2": 5})
    with pytest.raises(SourceError, match=r"one class only \('5'\) and a classifier needs two"):
        open_webdataset(tmp_path / "x.tar")


def test_splits_inside_json_files(tmp_path: Path) -> None:
    cells = [json.dumps({"label": i % 2, "meta": {"split": "test" if i > 1 else "train"}})
             for i in range(4)]  # fmt: skip
    members = {f"{i}.{end}": text for i, cell in enumerate(cells)
               for end, text in (("jpg", b""), ("json", cell.encode()))}  # fmt: skip
    splits = open_webdataset(pack(tmp_path / "x.tar", members))
    assert {split: len(source) for split, source in splits.items()} == {"train": 2, "test": 2}
    with pytest.raises(SourceError, match=r"'train-0' is called 'train', .* '2.jpg' says 'test'"):
        open_webdataset(pack(tmp_path / "train-0.tar", members))


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train-08", "train-09", "train-10", "val-08", "other"):
        shard(tmp_path / "in" / f"{name}.tar", {"1": 0, "2": 1})
    monkeypatch.chdir(tmp_path)
    spec = "in/train-{08..10}.tar"
    assert is_webdataset(spec)
    splits = open_webdataset(spec)
    assert [*splits] == ["train"]
    assert splits["train"].name == "in"
    assert splits["train"].paths[::2] == ("train-08/1.jpg", "train-09/1.jpg", "train-10/1.jpg")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_webdataset("~/in")["train"].name == "in"
    monkeypatch.chdir("/")
    assert splits["train"].read(5) == b"2"
    assert list(open_webdataset(f"{tmp_path}/in/{{train,val}}-08.tar")) == ["train", "val"]
    with pytest.raises(SourceError, match=r"2 of 4 shards are missing: '.*-11.tar', '.*-12.tar'"):
        open_webdataset(f"{tmp_path}/in/train-{{09..12}}.tar")
    shard(tmp_path / "odd{1..2}.tar", {"1": 0, "2": 1})  # a file that is called so
    assert list(open_webdataset(tmp_path / "odd{1..2}.tar")) == ["all"]


def test_expanding() -> None:
    assert expand_braces("a-{1..3}") == ["a-1", "a-2", "a-3"]
    assert expand_braces("{008..011}") == ["008", "009", "010", "011"]
    assert expand_braces("{a,b}{0..1}.tar") == ["a0.tar", "a1.tar", "b0.tar", "b1.tar"]
    for wrong in ("{}", "{a}", "{3..1}", "{a..c}", "{1..}", "{0..9" + "9" * 20 + "}"):
        with pytest.raises(SourceError, match="is no range: write"):
            expand_braces(wrong)
    for many in ("{0..100000}", "{0..999}{0..999}", "{0..999999999999999999}"):
        with pytest.raises(SourceError, match="gives more than 100,000 names"):
            expand_braces(many)


def test_what_is_a_webdataset(tmp_path: Path) -> None:
    assert not is_webdataset(tmp_path)
    assert not is_webdataset(tmp_path / "nothing.tar")
    assert not is_webdataset("photos/{a,b}")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.txt").touch()
    assert not is_webdataset(tmp_path / "photos")
    assert not is_webdataset(tmp_path / "photos" / "notes.txt")
    # torchvision keeps ImageNet's tars, with tars inside, beside train/ and val/.
    pack(tmp_path / "imagenet" / "ILSVRC2012_img_train.tar", named("n01440764.tar"))
    assert not is_webdataset(tmp_path / "imagenet")
    (tmp_path / "broken.tar").write_bytes(b"x" * 2000)
    assert not is_webdataset(tmp_path / "broken.tar")
    assert not is_webdataset(shard(tmp_path / "x.tar.gz", {"1": 0}))  # open_archive looks inside
    assert is_webdataset(shard(tmp_path / "z" / "x.tar.gz", {"1": 0}).parent)


CLASS_FOLDERS = {
    "images only": named("a/1.jpg", "b/1.jpg"),
    "captions beside them": named("a/1.jpg", "a/1.txt", "b/1.jpg", "b/1.txt"),
    "boxes beside them": named("a/1.jpg", "a/1.json", "b/1.jpg", "b/1.json"),
    "splits": named("x/train/a/1.jpg", "x/train/a/1.txt", "x/train/b/1.jpg"),
    "a stray label": named("a/1.jpg", "a/1.cls", "b/1.jpg"),
    "notes": named("a/1.jpg", "b/1.jpg", "classes.txt", "labels.json", "a.cls"),
}


@pytest.mark.parametrize("name", CLASS_FOLDERS)
def test_tar_archives_of_class_folders_are_none(tmp_path: Path, name: str) -> None:
    path = pack(tmp_path / "x.tar", CLASS_FOLDERS[name])
    assert not is_webdataset(path)
    assert next(iter(open_archive(path).values())).class_names == ("a", "b")


def test_keys_in_class_folders_with_numbers_are_one(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", {"n01/1": 0, "n02/1": 1})
    assert is_webdataset(path)
    assert open_archive(path)["all"].class_names == ("0", "1")


def test_missing_and_damaged_shards(tmp_path: Path) -> None:
    for spec in (tmp_path / "no.tar", str(tmp_path / "no.tar")):
        with pytest.raises(SourceError, match=r"cannot read '.*no.tar': No such file"):
            open_webdataset(spec)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"empty' has no tar archives: shards end in .tar"):
        open_webdataset(tmp_path / "empty")
    shard(tmp_path / "s" / "train-0.tar", {"1": 0, "2": 1})
    bad = shard(tmp_path / "s" / "train-1.tar", {"1": 0, "2": 1})
    bad.write_bytes(bad.read_bytes()[:1500])
    with pytest.raises(SourceError, match=r"train-1.tar' is cut short after 1,500 bytes"):
        open_webdataset(tmp_path / "s")
    shard(bad, {"1": 0})
    shard(tmp_path / "s" / "train-1.tar.gz", {"1": 0})
    with pytest.raises(
        SourceError, match="two shards of one name, 'train-1.tar', 'train-1.tar.gz'"
    ):
        open_webdataset(tmp_path / "s")


def test_nothing_but_unpacked_tars_is_written(tmp_path: Path, data_dir: Path) -> None:
    shard(tmp_path / "train-0.tar", {"1": 0, "2": 1})
    before = files_of(tmp_path)
    open_webdataset(tmp_path)["train"].content_id()
    assert files_of(tmp_path) == before
    assert list(data_dir.iterdir()) == []
