"""One policy of labels and splits for every form of data; docs/data.md has it as a table."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from packing import pack

from featx.errors import FeatxError
from featx.images import ENDINGS
from featx.predict.predictions import open_images
from featx.progress import Reporter
from featx.sources import Source, from_arrays, open_data
from featx.sources.labels import sorted_names

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def image_files(root: Path, n: int) -> list[str]:
    for i in range(n):
        (root / f"{i}.jpg").write_bytes(b"%d" % i)
    return [f"{i}.jpg" for i in range(n)]


def csv(root: Path, labels: Sequence[Any], **columns: Any) -> Path:
    paths = image_files(root, len(labels))
    table = pd.DataFrame({"path": paths, "label": labels, **columns})
    table.to_csv(root / "t.csv", index=False)
    return root / "t.csv"


def parquet(root: Path, labels: Sequence[Any], **columns: Any) -> Path:
    paths = image_files(root, len(labels))
    table = pd.DataFrame({"path": paths, "label": labels, **columns})
    table.to_parquet(root / "t.parquet")
    return root / "t.parquet"


def hub(root: Path, labels: Sequence[Any], **columns: Any) -> Path:
    images = [{"bytes": b"%d" % i} for i in range(len(labels))]
    table = pd.DataFrame({"image": images, "label": labels, **columns})
    table.to_parquet(root / "t.parquet")
    return root / "t.parquet"


def text_of(label: Any) -> str:
    return "" if label is None else str(label)


def folder(root: Path, labels: Sequence[Any]) -> Path:
    for i, label in enumerate(labels):
        (root / text_of(label)).mkdir(exist_ok=True)
        (root / text_of(label) / f"{i}.jpg").write_bytes(b"%d" % i)
    return root


def zipped(root: Path, labels: Sequence[Any]) -> Path:
    files = {f"{text_of(label)}/{i}.jpg": b"%d" % i for i, label in enumerate(labels)}
    return pack(root / "t.zip", files)


def shard_of(kind: str) -> Callable[..., Path]:
    def write(root: Path, labels: Sequence[Any], **columns: Any) -> Path:
        files = {}
        for i, label in enumerate(labels):
            files[f"{i}.jpg"] = b"%d" % i
            values = {name: column[i] for name, column in columns.items()}
            if kind == "json" or columns:
                files[f"{i}.json"] = json.dumps({"label": label} | values).encode()
            else:
                files[f"{i}.{kind}"] = text_of(label).encode()
        return pack(root / "t.tar", files)

    return write


def memory(root: Path, labels: Sequence[Any]) -> Source:
    return from_arrays([b"%d" % i for i in range(len(labels))], labels)


TABLES: dict[str, Callable[..., Path]] = {
    "csv": csv,
    "parquet": parquet,
    "hub": hub,
    "json": shard_of("json"),
}
FORMS: dict[str, Callable[..., Any]] = {
    **TABLES,
    "cls": shard_of("cls"),
    "txt": shard_of("txt"),
    "folder": folder,
    "zip": zipped,
    "memory": memory,
}


def opened(made: Path | Source) -> tuple[Source, str]:
    """Open what a form made as one source; with what is said even when quiet."""
    if isinstance(made, Source):
        return made, ""
    stream = io.StringIO()
    [source] = open_data(made, reporter=Reporter(quiet=True, stream=stream)).values()
    return source, stream.getvalue()


def classes(source: Source) -> list[str | None]:
    """The class of each image, in the order in which the images were given."""
    found = {}
    for row, label in enumerate(source.labels.tolist()):
        data = source.read(row)
        assert isinstance(data, bytes)
        found[int(data)] = source.class_names[label] if label >= 0 else None
    return [found[i] for i in range(len(found))]


NAN = float("nan")
POLICY: dict[str, tuple[list[Any], list[str | None], list[str]]] = {
    "numbers": ([10, 9, 1], ["10", "9", "1"], ["1", "9", "10"]),
    "numbers as text": (["10", "9", "1"], ["10", "9", "1"], ["1", "9", "10"]),
    "numbers in names": (
        ["class10", "class2", "Class3"],
        ["class10", "class2", "Class3"],
        ["Class3", "class2", "class10"],
    ),
    "padded numbers": (["010", "001", "1"], ["010", "001", "1"], ["001", "1", "010"]),
    "-1": ([-1, 0, 1], [None, "0", "1"], ["0", "1"]),
    "-1 among names": (["-1", "cat", "dog"], [None, "cat", "dog"], ["cat", "dog"]),
    "floats": ([0.0, 10.0, NAN, 2.0], ["0", "10", None, "2"], ["0", "2", "10"]),
    "floats as text": (["0.0", "10.0", "2.0"], ["0", "10", "2"], ["0", "2", "10"]),
    "fractions": ([1.5, 1.25, 10.0], ["1.5", "1.25", "10"], ["1.25", "1.5", "10"]),
    "true and false": ([True, False, True], ["True", "False", "True"], ["False", "True"]),
    "nan among names": (["cat", "nan", "dog"], ["cat", None, "dog"], ["cat", "dog"]),
    "no label": (["cat", None, "dog"], ["cat", None, "dog"], ["cat", "dog"]),
    "white space": ([" cat", "cat ", "dog"], ["cat", "cat", "dog"], ["cat", "dog"]),
    "two spellings": (
        ["cafe\u0301", "caf\xe9", "tea"],
        ["caf\xe9", "caf\xe9", "tea"],
        ["caf\xe9", "tea"],
    ),
    "case": (["cat", "Cat", "dog"], ["cat", "Cat", "dog"], ["Cat", "cat", "dog"]),
    "synsets": (["n02", "n01", "n10"], ["n02", "n01", "n10"], ["n01", "n02", "n10"]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", POLICY)
def test_a_label_means_the_same_in_every_form(form: str, case: str, tmp_path: Path) -> None:
    labels, wanted, names = POLICY[case]
    if form in ("folder", "zip") and None in labels:
        pytest.skip("a folder has a name")
    source, said = opened(FORMS[form](tmp_path, labels))
    assert list(source.class_names) == names
    assert classes(source) == wanted
    of_names = from_arrays([b"%d" % i for i in range(len(labels))], [name or "" for name in wanted])
    assert source.content_id() == of_names.content_id()
    if form != "memory":
        assert ("1 labels are '-1', which means that the class is unknown" in said) == (
            "-1" in case
        )
        assert "1 labels are 'nan', which means" in said or case != "nan among names"
        assert ("written in 2 ways, one class" in said) == (case == "two spellings")


@pytest.mark.parametrize("form", FORMS)
def test_other_negative_numbers_are_refused(form: str, tmp_path: Path) -> None:
    with pytest.raises(FeatxError, match="has the label -2: numbers of classes start at 0"):
        opened(FORMS[form](tmp_path, [-2, 0, 1]))


def test_minus_one_is_unknown_where_the_names_are_given(tmp_path: Path) -> None:
    shards = pack(
        tmp_path / "x.tar", {"0.jpg": b"0", "0.cls": b"-1", "1.jpg": b"1", "1.cls": b"1.0"}
    )
    (tmp_path / "classes.txt").write_text("tea\n cafe\u0301 \n", encoding="utf-8")
    source, said = opened(shards)
    of_memory = from_arrays(
        [b"0", b"1"], np.array([np.nan, 1.0]), class_names=["tea", "cafe\u0301"]
    )
    for each in (source, of_memory):
        assert each.class_names == ("tea", "caf\xe9")  # in the order given
        assert classes(each) == [None, "caf\xe9"]
    assert "1 labels are '-1', which means" in said
    labels = {"_type": "ClassLabel", "names": ["tea", "cafe\u0301 "]}
    features = {"image": {"_type": "Image"}, "label": labels}
    table = pa.table({"image": [{"bytes": b"0"}, {"bytes": b"1"}], "label": [-1, 1]})
    meta = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(meta), tmp_path / "t.parquet")
    source, said = opened(tmp_path / "t.parquet")
    assert source.class_names == ("tea", "caf\xe9")
    assert classes(source) == [None, "caf\xe9"]
    assert "1 labels are -1 or missing, which means" in said


def test_two_class_labels_are_refused(tmp_path: Path) -> None:
    labels = {"_type": "ClassLabel", "names": ["x", "y"]}
    meta = {"info": {"features": {"label": labels, "Label": labels}}}
    table = pa.table({"image": [b"0", b"1"], "label": [0, 1], "Label": [1, 0]})
    table = table.replace_schema_metadata({b"huggingface": json.dumps(meta).encode()})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(FeatxError, match="has the columns 'label' and 'Label'"):
        opened(tmp_path / "t.parquet")


@pytest.mark.parametrize("form", TABLES)
def test_two_columns_of_labels_are_refused(form: str, tmp_path: Path) -> None:
    with pytest.raises(FeatxError, match="has the columns 'label' and 'Label'"):
        opened(TABLES[form](tmp_path, ["a", "b"], Label=["b", "a"]))


def test_natural_order_is_text_order_but_for_numbers() -> None:
    names = ["a 2", "a1", "a", "a!", "a10", "a2", "A", "\xe4"]
    assert sorted_names(names) == ("A", "a", "a 2", "a!", "a1", "a2", "a10", "\xe4")
    assert sorted_names(["9" * 5000, "10"]) == ("10", "9" * 5000)


SPLITS: dict[str, tuple[dict[str, list[Any]], list[str]]] = {
    "split": ({"split": ["Training", "testing", "valid"]}, ["train", "test", "val"]),
    "subset": ({"subset": ["train", "TEST", "train"]}, ["train", "test", "train"]),
    "camel": ({"dataSplit": ["train", "test", "train"]}, ["train", "test", "train"]),
    "phase": ({"phase": ["train", "val", "train"]}, ["train", "val", "train"]),
    "train/test": ({"train/test": ["train", "test", "train"]}, ["train", "test", "train"]),
    "is_test": ({"is_test": [0, 1, 0]}, ["train", "test", "train"]),
    "isTrain": ({"isTrain": [True, False, True]}, ["train", "test", "train"]),
    "one of three": (
        {"is_val": [0, 1, 0], "is_test": [1, 0, 0]},
        ["test", "val", "train"],
    ),
    "testset": ({"testset": ["no", "yes", "no"]}, ["train", "test", "train"]),
    "the right name wins": (
        {"subset": ["a", "test", "b"], "split": ["train", "test", "train"]},
        ["train", "test", "train"],
    ),
}


@pytest.mark.parametrize("form", TABLES)
@pytest.mark.parametrize("case", SPLITS)
def test_a_column_of_splits_divides_every_table(form: str, case: str, tmp_path: Path) -> None:
    columns, wanted = SPLITS[case]
    splits = open_data(TABLES[form](tmp_path, ["a", "b", "a"], **columns))
    found = {}
    for split, source in splits.items():
        assert source.split == split
        assert source.class_names == ("a", "b")
        for row in range(len(source)):
            found[int(source.read(row))] = (split, source.labels[row])
    assert found == {i: (split, i % 2) for i, split in enumerate(wanted)}


REFUSED: dict[str, tuple[dict[str, list[Any]], str]] = {
    "holdout": (
        {"subset": ["train", "test", "holdout"]},
        "'subset' looks like a split, but some values are none: 'holdout'",
    ),
    "FER2013": (
        {"Usage": ["Training", "PublicTest", "PrivateTest"]},
        "'Usage' looks like a split, but some values are none: 'PublicTest', 'PrivateTest'",
    ),
    "dev": (
        {"split": ["train", "dev", "test"]},
        "'split' looks like a split, but some values are none: 'dev'",
    ),
    "gap": (
        {"partition": ["train", "", "test"]},
        "'partition' looks like a split, but some values are none: ''",
    ),
    "codes": (
        {"partition": [0, 1, 2]},
        "'partition' looks like a split, but some values are none: '0', '1', '2'; write",
    ),
    "codes as floats": ({"set": [0.0, 1.0, 1.0]}, "'set' looks like a split"),
    "train/test codes": ({"train_test": [0, 1, 1]}, "'train_test' looks like a split"),
    "a name in front": ({"cub_split": [0, 1, 1]}, "'cub_split' looks like a split"),
    "a train or training": (
        {"train": [0, 1, 1]},
        "'train' looks like a split, but some values are none: '0', '1'; write",
    ),
    "valid or validation": ({"is_valid": [0, 1, 1]}, "'is_valid' looks like a split"),
    "held out": ({"is_holdout": [0, 1, 1]}, "'is_holdout' looks like a split"),
    "evaluated": ({"eval": [False, True, True]}, "'eval' looks like a split"),
    "short words": ({"dataset": ["tr", "te", "tr"]}, "'dataset' holds names .* for 'tr', 'te'"),
    "folds with a test": (
        {"fold": ["1", "2", "test"]},
        "'fold' looks like a split, but some values are none: '1', '2'",
    ),
    "by its values": (
        {"group": ["train", "test", "x"]},
        "'group' holds names of .* call it 'split'",
    ),
    "others' words": (
        {"purpose": ["dev", "eval", "dev"]},
        "'purpose' holds names .* for 'dev', 'eval'",
    ),
    "two that differ": (
        {"subset": ["train", "test", "test"], "phase": ["train", "train", "test"]},
        "has two columns of splits that differ, 'subset' and 'phase'",
    ),
    "two at once": (
        {"is_val": [0, 1, 0], "in_test": [0, 1, 0]},
        "row 2: .* give no split or several",
    ),
}


@pytest.mark.parametrize("form", TABLES)
@pytest.mark.parametrize("case", REFUSED)
def test_a_split_that_is_not_understood_is_refused(form: str, case: str, tmp_path: Path) -> None:
    columns, reason = REFUSED[case]
    with pytest.raises(FeatxError, match=reason) as caught:
        open_data(TABLES[form](tmp_path, ["a", "b", "a"], **columns))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", TABLES)
@pytest.mark.parametrize(
    "column",
    [
        {"fold": [0, 1, 2]},
        {"trial phase": [1, 2, 1]},
        {"kfold": [0, 1, 2]},
        {"set": ["lego", "car", "lego"]},
        {"moon_phase": ["new", "full", "new"]},
    ],
)
def test_a_name_alone_is_a_warning(form: str, column: dict[str, Any], tmp_path: Path) -> None:
    source, said = opened(TABLES[form](tmp_path, ["a", "b", "a"], **column))
    assert source.split == "all"
    assert f"the column {next(iter(column))!r} is not taken as the split" in said


@pytest.mark.parametrize("form", TABLES)
def test_other_columns_say_nothing(form: str, tmp_path: Path) -> None:
    columns = {
        "caption": ["a train", "a test of strength", "x"],
        "vehicle": ["train", "bus", "train"],
        "train_loss": [0.5, 0.1, 0.2],
        "phase_contrast": [0, 1, 0],
        "split_seed": [0, 0, 0],
        "evaluation": [0, 1, 1],
        "language": ["tr", "en", "de"],
        "dataset": ["A", "B", "A"],
        "source_path": ["train/1.jpg", "test/2.jpg", "train/3.jpg"],
        "subset": ["", "", ""],
    }
    source, said = opened(TABLES[form](tmp_path, ["a", "b", "a"], **columns))
    assert (source.split, said) == ("all", "")


@pytest.mark.parametrize("ending", sorted(ENDINGS | {end.upper() for end in ENDINGS}))
def test_every_readable_ending_is_listed_in_every_form(ending: str, tmp_path: Path) -> None:
    files = {f"{name}/1{ending}": name.encode() for name in "ab"}
    for name, data in files.items():
        (tmp_path / "f" / name).parent.mkdir(parents=True)
        (tmp_path / "f" / name).write_bytes(data)
    shard = {f"{i}{ending}": b"%d" % i for i in range(2)} | {"0.cls": b"x", "1.cls": b"y"}
    specs = [tmp_path / "f", pack(tmp_path / "z.zip", files), pack(tmp_path / "s.tar", shard)]
    for spec in specs:
        assert opened(spec)[0].labels.tolist() == [0, 1]
        [(_, source)] = open_images([spec])
        assert len(source) == 2
