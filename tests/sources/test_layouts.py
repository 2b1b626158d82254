"""Layouts as people have them: which splits, classes and counts, or which refusal, in each form."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packing import named, pack
from test_folder_source import make

from featx.errors import SourceError, UsageError
from featx.progress import Reporter
from featx.sources import LayoutChoice, Source, open_data

TWO = ("cat", "dog")
FORMS = ("folder", ".zip", ".tar")


def tree(*tops: str, classes: tuple[str, ...] = TWO, ending: str = "jpg") -> list[str]:
    """Two images of each class below each folder; no two files are called the same."""
    return [
        f"{top}{name}/{top.replace('/', '-')}{name}{i}.{ending}"
        for top in tops
        for name in classes
        for i in range(2)
    ]


def files(*tops: str, ending: str = "jpg") -> list[str]:
    """Three images in each folder, called the same in all of them."""
    return [f"{top}{i}.{ending}" for top in tops for i in range(3)]


def open_as(form: str, root: Path, names: list[str], **choice: Any) -> tuple[Any, str]:
    """Open a layout in one form; gives the classes' counts of each split, and what was said."""
    path = make(root / "x", *names) if form == "folder" else pack(root / f"x{form}", named(*names))
    stream = io.StringIO()
    reporter = Reporter(stream=stream, quiet=True)
    splits = open_data(path, layout=LayoutChoice(**choice), reporter=reporter)
    return {split: counts(source) for split, source in splits.items()}, stream.getvalue()


def counts(source: Source) -> dict[str, int]:
    found = np.unique(source.labels, return_counts=True)
    return {
        source.class_names[label] if label >= 0 else "": n
        for label, n in zip(*(values.tolist() for values in found), strict=True)
    }


C = {"cat": 2, "dog": 2}
TRAIN_TEST = {"train": C, "test": C}

# Layout: files, then the counts, and what is said of what was left out ("" for nothing).
READ: dict[str, tuple[list[str], dict[str, dict[str, int]], str]] = {
    "training_set and test_set": (tree("training_set/", "test_set/"), TRAIN_TEST, ""),
    "each in itself, images to predict": (
        [*tree("training_set/training_set/", "test_set/test_set/"), "single_prediction/1.jpg"],
        TRAIN_TEST,
        "'single_prediction' left out",
    ),
    "seg_train, seg_test, seg_pred": (
        [*tree("seg_train/seg_train/", "seg_test/seg_test/"), "seg_pred/seg_pred/1.jpg"],
        TRAIN_TEST,
        "'seg_pred' left out",
    ),
    "twice the same folder": (
        [*tree("chest/chest/train/", "chest/chest/test/"), "chest/__MACOSX/1.jpg", "README.md"],
        TRAIN_TEST,
        "",
    ),
    "flat test images of an alphabet": (
        [*tree("asl_train/asl_train/"), "asl_test/asl_test/A_test.jpg"],
        {"train": C, "unlabeled": {"": 1}},
        "1 images of 'asl_test/asl_test/' lie in no class folders, and so have no labels",
    ),
    "flat test images in a folder of any name, and more of them": (
        [*tree("train/", "val/"), "test/unknown/1.jpg", "test/unknown/2.jpg", "unlabeled/x/3.jpg"],
        {"train": C, "val": C, "unlabeled": {"": 3}},
        "2 images of 'test/' lie in no class folders",
    ),
    "an empty split": (
        [*tree("train/", "test/"), "val/readme.txt"],
        TRAIN_TEST,
        "'val/' has no images: left out",
    ),
    "classes of train alone": (
        [*tree("train/"), *tree("test/", classes=("dog",)), "test/cat/readme.txt"],
        {"train": C, "test": {"dog": 2}},
        "the split test has no images of 'cat'. If these are misspelt, rename their folders",
    ),
    "classes of test alone": (
        [*tree("train/", "test/"), "test/eel/1.jpg", "test/emu/1.jpg"],
        {"train": C, "test": C | {"eel": 1, "emu": 1}},
        "the split train has no images of 'eel', 'emu'",
    ),
    "helpers of programs and systems": (
        [
            *(*tree(""), "models/a.pt", "__pycache__/a.pyc", "reports/a.csv", "lost+found/1.jpg"),
            *("cat/@eaDir/cat0.jpg/THUMB.jpg", "@eaDir/x.jpg", "$RECYCLE.BIN/1.jpg"),
        ],
        {"all": C},
        "",
    ),
    "Training and Test beside another test": (
        [*tree("f_dataset/f/Training/", "f_dataset/f/Test/"), "f_dataset/f/test-many/1.jpg"],
        TRAIN_TEST,
        "'test-many' left out",
    ),
    "camel case": (tree("trainImages/", "testImages/"), TRAIN_TEST, ""),
    "years": (tree("train2017/", "val2017/"), {"train": C, "val": C}, ""),
    "dev and eval": (
        tree("TRAIN/", "Dev/", "eval/"),
        {"train": C, "val": C, "test": C},
        "",
    ),
    "a wrapper, code and notes": (
        [*tree("dataset/train/", "dataset/test/"), "README.md", "src/a.py"],
        TRAIN_TEST,
        "",
    ),
    "boxes beside images": (
        [*tree("images/train/", "images/test/"), "labels/train/cat/1.txt"],
        TRAIN_TEST,
        "",
    ),
    "a wrapper of classes": ([*tree("PetImages/"), "readme.txt"], {"all": C}, ""),
    "images and folders without": (
        [*tree("CUB/images/"), "CUB/parts/a.txt", "CUB/attributes/b.txt"],
        {"all": C},
        "",
    ),
    "two wrappers": (tree("EuroSAT/2750/"), {"all": C}, ""),
    "objects and annotations": (
        [*tree("101_ObjectCategories/"), "Annotations/cat/1.mat"],
        {"all": C},
        "",
    ),
    "images of each class in a folder": (
        ["train/cat/images/1.jpg", "train/dog/images/2.jpg", "val/images/3.jpg", "words.txt"],
        {"train": {"cat": 1, "dog": 1}, "unlabeled": {"": 1}},
        "1 images of 'val/images/' lie in no class folders",
    ),
    "masks by class": (
        [*files("images/cat/", "images/dog/"), *files("masks/cat/", "masks/dog/", ending="png")],
        {"all": {"cat": 3, "dog": 3}},
        "'masks' left out: masks",
    ),
    "masks in each class": (
        files("COVID/images/", "COVID/masks/", "Normal/images/", "Normal/masks/", ending="png"),
        {"all": {"COVID": 3, "Normal": 3}},
        "'COVID/masks' left out: masks",
    ),
    "masks beside their images": (
        [*tree(""), "cat/cat0_mask.png"],
        {"all": {"cat": 3, "dog": 2}},
        "1 images are called like masks of others beside them ('cat/cat0_mask.png')",
    ),
    "images without labels beside splits": (
        [*tree("train/"), "unlabeled/1.jpg"],
        {"train": C, "unlabeled": {"": 1}},
        "",
    ),
    "images without labels beside classes": (
        [*tree(""), "unlabeled/1.jpg"],
        {"all": C},
        "'unlabeled' left out: called like a folder of images without labels",
    ),
    "images to predict beside classes": (
        [*tree(""), "pred/1.jpg"],
        {"all": C},
        "'pred' left out: called like a folder of images without labels (--classes-at 1 takes it",
    ),
    "official splits in lists": (
        [*tree("food/images/"), "food/meta/train.txt", "food/meta/test.txt"],
        {"all": C},
        "'food/meta/test.txt' may list official splits, and are not read: all images are one set",
    ),
    "lists beside folders of splits": ([*tree("train/", "test/"), "test.txt"], TRAIN_TEST, ""),
    # What could be taken for a split, or for classes in classes, and is none.
    "a class called test": (tree("", classes=("bus", "test")), {"all": {"bus": 2, "test": 2}}, ""),
    "patients of equal numbers": (
        tree("control/", "case/", classes=("patient1", "patient2")),
        {"all": {"case": 4, "control": 4}},
        "",
    ),
    "species": (
        [*tree("Acer/", classes=("rubrum", "album")), *tree("Salix/", classes=("alba",))],
        {"all": {"Acer": 4, "Salix": 2}},
        "the classes are the folders at depth 1, as 'Acer'; those in them, as 'alba', count",
    ),
    "letters and their writers": (
        ["A/a1/1.jpg", "A/a2/1.jpg", "B/b1/1.jpg"],
        {"all": {"A": 2, "B": 1}},
        "",
    ),
    "photos and sketches of equal numbers": (
        [*files("photos/"), "sketches/0.jpg", "sketches/1.jpg"],
        {"all": {"photos": 3, "sketches": 2}},
        "",
    ),
    "a station": (
        ["x/train_station/roof/1.jpg", "x/airport/roof/1.jpg"],
        {"all": {"airport": 1, "train_station": 1}},
        "",
    ),
    "masks that people wear": (files("mask/", "no_mask/"), {"all": {"mask": 3, "no_mask": 3}}, ""),
    "masked and not": (files("masked/", "un_mask/"), {"all": {"masked": 3, "un_mask": 3}}, ""),
    "synsets": (
        tree("", classes=("n01440764", "n01443537")),
        {"all": {"n01440764": 2, "n01443537": 2}},
        "",
    ),
}

REFUSED: dict[str, tuple[list[str], str]] = {
    "a class called like a split": (
        tree("control/", "test/", classes=("patient1",)),
        r"called like splits \('test'\) lie 'control'. There are 'control' \(1 folders, 2 images\)",
    ),
    "one of many": (["a/1.jpg", *tree("test/")], r"splits \('test'\) lie 'a'"),
    "more than splits": (tree("train/", "extra/"), r"splits \('train'\) lie 'extra'"),
    "train and val in one": (tree("trainval/", "test/"), r"splits \('test'\) lie 'trainval'"),
    "two for one split": (tree("train_b/", "test_b/", "test/"), "both 'test', 'test_b' for the"),
    "flat splits": (files("train_images/", "test_images/"), "'test_images', 'train_images' are"),
    "flat splits beside a class": (files("a/", "test/", "train/"), "'test', 'train' are called"),
    "flat splits of other words": (files("train/", "test1/"), "'test1', 'train' are called like"),
    "a wrapper of splits beside flat images": (
        [*tree("Plants/Plants/train/", "Plants/Plants/valid/"), "test/test/1.jpg"],
        r"'Plants' holds folders called like splits \('train', 'valid'\)",
    ),
    "an index by letters": (
        ["a/airfield/1.jpg", "a/alley/1.jpg", "b/bar/1.jpg"],
        "'a', 'b' hold folders that begin with the same letter",
    ),
    "parts of train": (
        [*tree("train.X1/"), *tree("val.X/"), *tree("other/")],
        "'train.X1', 'val.X' may be a split",
    ),
    "splits in a split": (tree("train/train/", "train/test/"), "splits lie inside a split"),
    "splits in classes": (
        tree("cat/", "dog/", classes=("train", "test")),
        r"folders of the same names \('test', 'train'\)",
    ),
    "domains": (tree("amazon/", "dslr/"), r"'amazon', 'dslr' hold folders of the same names"),
    "office31": (tree("amazon/images/", "dslr/images/"), r"same names .*--classes-at 3 for"),
    "patients of classes": (tree("8863/", "8864/", classes=("0", "1")), "hold folders of the same"),
    "folds": (["fold1/cat/1.jpg", "fold2/dog/2.jpg"], "'fold1', 'fold2' are called like parts"),
    "folds of flat images": (["fold1/1.jpg", "fold2/2.jpg"], "'fold1', 'fold2' are called like"),
    "parts of flat images": (
        files("ham_images_part_1/", "ham_images_part_2/"),
        "called like parts",
    ),
    "a copy inside data": (
        tree("data/pets/", "pets/"),
        "'data' are called like parts|'data' holds",
    ),
    "a copy": ([*tree(""), *tree("pets/")], r"'pets' holds folders called like those beside it"),
    "masks": ([*files("images/"), *files("masks/", ending="png")], "images and their masks, and"),
    "masks with a word": (
        [*files("images/"), *(f"masks/{i}_mask.png" for i in range(3))],
        "images and their masks",
    ),
    "masks of classes": (
        [*tree(""), "masks/cat0.png", "masks/dog1.png"],
        "in 'masks' have the names of",
    ),
    "objects of some images": (
        [*files("JPEGImages/"), "SegmentationClass/0.png", "SegmentationObject/0.png"],
        "in 'SegmentationClass' have the names of",
    ),
    "masks of one class": ([*tree(""), "cat_mask/1.jpg"], "'cat_mask' are called like masks of"),
    "masks of any name": ([*files("x/"), *files("y/", ending="png")], "'x', 'y' have the same"),
    "thumbnails": (files("images/", "thumbnails/"), "'images', 'thumbnails' have the same names"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", READ)
def test_layouts_that_are_read(tmp_path: Path, name: str, form: str) -> None:
    paths, wanted, said = READ[name]
    found, text = open_as(form, tmp_path, paths)
    assert found == wanted
    assert list(found) == list(wanted)
    assert said in text
    assert bool(said) == bool(text)


@pytest.mark.parametrize("form", FORMS)
def test_splits_that_are_not_wanted_may_be_wrong(tmp_path: Path, form: str) -> None:
    names = [*tree("train/", "test/amazon/", "test/dslr/")]
    path = (
        make(tmp_path / "x", *names)
        if form == "folder"
        else pack(tmp_path / f"x{form}", named(*names))
    )
    stream = io.StringIO()
    found = open_data(path, wanted=["train"], reporter=Reporter(stream=stream))
    assert {split: counts(source) for split, source in found.items()} == {"train": C}
    assert "the split test left out: " in stream.getvalue()
    with pytest.raises(SourceError, match="hold folders of the same names"):
        open_data(path, wanted=["test"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", REFUSED)
def test_layouts_that_are_doubtful(tmp_path: Path, name: str, form: str) -> None:
    paths, reason = REFUSED[name]
    with pytest.raises(SourceError, match=reason) as caught:
        open_as(form, tmp_path, paths)
    for flag in ("--train-folder FOLDER", "--test-folder FOLDER", "--classes-at "):
        assert flag in str(caught.value)
    assert "\n" not in str(caught.value)


PATIENTS = [*tree("control/", "test/", classes=("p1",)), "control/1.jpg"]
CHOSEN: dict[str, tuple[list[str], dict[str, Any], dict[str, dict[str, int]], str]] = {
    "the folders are classes": (
        PATIENTS,
        {"classes_at": 1},
        {"all": {"control": 3, "test": 2}},
        "",
    ),
    "folders of splits": (
        tree("a/first/", "b/", "c/"),
        {"train_folder": "a/first", "test_folder": "./b/"},
        TRAIN_TEST,
        "",
    ),
    "one split and its own name": (tree("a/a/", "b/"), {"val_folder": "a"}, {"val": C}, ""),
    "splits above": (
        [*tree("seg_train/seg_train/", "seg_test/seg_test/"), "seg_pred/1.jpg"],
        {"classes_at": 3},
        TRAIN_TEST,
        "1 images in no class folder left out",
    ),
    "equal names are one class": (
        tree("amazon/", "dslr/"),
        {"classes_at": 2},
        {"all": {"cat": 4, "dog": 4}},
        "",
    ),
    "below the folders of splits": (
        tree("a/amazon/", "b/dslr/"),
        {"train_folder": "a", "test_folder": "b", "classes_at": 2},
        TRAIN_TEST,
        "",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CHOSEN)
def test_flags_settle_it(tmp_path: Path, name: str, form: str) -> None:
    paths, choice, wanted, said = CHOSEN[name]
    found, text = open_as(form, tmp_path, paths, **choice)
    assert found == wanted
    assert said in text
    assert bool(said) == bool(text)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"train_folder": "contro"}, "has no folder 'contro' but 'control', 'test'; the folder is"),
        ({"test_folder": "../x"}, "has no folder '..' but"),
        ({"classes_at": 2}, r"depth 2, some classes lie in no split \(all, test\): name"),
        ({"classes_at": 9}, "has no images and no class folders|has 1 images but no class"),
    ],
)
def test_flags_that_are_wrong(
    tmp_path: Path, form: str, choice: dict[str, Any], reason: str
) -> None:
    with pytest.raises((SourceError, UsageError), match=reason):
        open_as(form, tmp_path, PATIENTS, **choice)


def test_flags_need_folders(tmp_path: Path) -> None:
    table = tmp_path / "x.csv"
    table.write_text("path,label\n")
    for spec in ("digits", table):
        with pytest.raises(UsageError, match="neither a folder nor an archive of folders: leave"):
            open_data(spec, layout=LayoutChoice(classes_at=1))
    for wrong in (0, "1"):
        with pytest.raises(UsageError, match="must be a whole number of at least 1"):
            LayoutChoice(classes_at=wrong)  # type: ignore[arg-type]
    assert not LayoutChoice.of({"data": "x"})
    assert LayoutChoice.of({"classes_at": 2, "backbone": "vgg16"}) == LayoutChoice(classes_at=2)
