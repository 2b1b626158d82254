from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featx.errors import ReadError
from featx.progress import Reporter
from featx.sources import ArraySource, FolderSource, Source, open_data
from featx.sources.base import _ROWS_PER_TASK


class SourceContract:
    """What every source must do; subclasses give the splits as a fixture."""

    most_pickled_bytes = 100_000

    @pytest.fixture
    def splits(self) -> dict[str, Source]:
        raise NotImplementedError

    @pytest.fixture
    def source(self, splits: dict[str, Source]) -> Source:
        return list(splits.values())[-1]

    def test_splits(self, splits: dict[str, Source]) -> None:
        assert list(splits) in (["all"], ["train", "test"], ["train", "val", "test"])
        assert len({source.class_names for source in splits.values()}) == 1
        assert [source.split for source in splits.values()] == list(splits)
        assert len({source.name for source in splits.values()}) == 1

    def test_rows_have_labels_and_unique_paths(self, splits: dict[str, Source]) -> None:
        for source in splits.values():
            assert len(source) == len(source.labels) == len(source.paths) > 0
            assert source.labels.dtype == np.int64
            assert source.labels.min() >= 0
            assert source.labels.max() < len(source.class_names)
            assert len(set(source.class_names)) == len(source.class_names)
            assert len(set(source.paths)) == len(source.paths)
            assert all(isinstance(path, str) for path in source.paths)

    def test_images_are_rgb(self, source: Source) -> None:
        for row in range(0, len(source), max(1, len(source) // 10)):
            assert isinstance(source.read(row), (bytes, np.ndarray))
            image = source.image(row)
            assert type(image) is Image.Image
            assert image.mode == "RGB"

    def test_a_row_out_of_range_is_an_error(self, source: Source) -> None:
        with pytest.raises(IndexError):
            source.read(len(source))

    def test_what_is_read_belongs_to_the_caller(self, source: Source) -> None:
        data = source.read(0)
        if isinstance(data, np.ndarray):
            before = data.copy()
            data[:] = 0
            np.testing.assert_array_equal(source.read(0), before)

    def test_pickled_gives_equal_images(self, source: Source) -> None:
        stored = pickle.dumps(source)
        assert len(stored) < self.most_pickled_bytes
        other = pickle.loads(stored)
        assert (other.name, other.split, other.class_names) == (
            source.name,
            source.split,
            source.class_names,
        )
        assert other.paths == source.paths
        np.testing.assert_array_equal(other.labels, source.labels)
        for row in range(0, len(source), max(1, len(source) // 10)):
            np.testing.assert_array_equal(other.image(row), source.image(row))

    def test_take(self, source: Source) -> None:
        rows = np.array([3, 0, 5])
        part = source.take(rows)
        assert type(part) is type(source)
        assert len(part) == 3
        assert part.class_names == source.class_names
        assert part.paths == tuple(source.paths[row] for row in rows)
        np.testing.assert_array_equal(part.labels, source.labels[rows])
        for i, row in enumerate(rows):
            np.testing.assert_array_equal(part.image(i), source.image(row))
        again = pickle.loads(pickle.dumps(part.take(np.array([2, 1]))))
        np.testing.assert_array_equal(again.image(0), source.image(5))
        assert len(source.take(np.array([], dtype=int))) == 0

    @pytest.mark.parametrize("rows", [[-1], [0, 0], [10**9], [0.5], [[0]], [True]])
    def test_take_refuses(self, source: Source, rows: list[Any]) -> None:
        with pytest.raises(ValueError, match=r"^rows must"):
            source.take(np.array(rows))

    def test_content_id_depends_on_the_set_of_rows_only(self, source: Source) -> None:
        whole = source.content_id()
        assert len(bytes.fromhex(whole)) == 32
        shuffled = source.take(np.random.default_rng(0).permutation(len(source)))
        assert shuffled.content_id() == whole
        assert source.take(np.arange(len(source) - 1)).content_id() != whole

    def test_content_id_depends_on_names_of_labels_not_numbers(self, source: Source) -> None:
        whole = source.content_id()
        labels = source.labels.copy()
        labels[0] = (labels[0] + 1) % len(source.class_names)
        assert replace(source, labels=labels).content_id() != whole
        renamed = ("another name", *source.class_names[1:])
        assert replace(source, class_names=renamed).content_id() != whole
        last = len(source.class_names) - 1
        mirrored = replace(
            source, labels=last - source.labels, class_names=source.class_names[::-1]
        )
        assert mirrored.content_id() == whole

    def test_content_id_shows_progress(
        self, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FEATX_DATA", str(tmp_path / "nothing remembered"))
        stream = io.StringIO()
        source.content_id(reporter=Reporter(stream=stream))
        assert f"{len(source):,}/{len(source):,}" in stream.getvalue()

    def test_repr_is_short(self, source: Source) -> None:
        assert len(repr(source)) < 200


class TestFolder(SourceContract):
    @pytest.fixture
    def splits(self, photo_tree: Path) -> dict[str, Source]:
        return open_data(photo_tree)

    def test_content_id_depends_on_every_byte(self, splits: dict[str, Source]) -> None:
        source = splits["all"]
        assert isinstance(source, FolderSource)
        before = source.content_id()
        path = Path(source.root, source.paths[7])
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert source.content_id() != before

    def test_content_id_survives_renaming_and_moving(self, photo_tree: Path) -> None:
        before = open_data(photo_tree)["all"].content_id()
        for path in sorted(photo_tree.rglob("*.*")):
            path.rename(path.with_name(f"{9 - int(path.stem)}-new{path.suffix}"))
        moved = photo_tree.rename(photo_tree.with_name("elsewhere"))
        after = open_data(moved)["all"]
        assert after.name == "elsewhere"
        assert after.content_id() == before

    def test_content_id_counts_what_is_no_file_by_name(self, photo_tree: Path) -> None:
        source = open_data(photo_tree)["all"]
        before = source.content_id()
        (photo_tree / "bee" / "2.bmp").unlink()
        with pytest.raises(ReadError, match=r"cannot read '.*/bee/2.bmp'"):
            source.content_id()
        (photo_tree / "bee" / "2.bmp").mkdir()
        without = source.content_id()
        assert without not in (before, source.take(np.delete(np.arange(15), 7)).content_id())
        (photo_tree / "bee" / "2.bmp").rename(photo_tree / "bee" / "x.bmp")
        renamed = replace(
            source, paths=tuple(p.replace("bee/2.bmp", "bee/x.bmp") for p in source.paths)
        )
        assert renamed.content_id() != without


class TestCifarJpegs(SourceContract):
    @pytest.fixture
    def splits(self, cifar_slice: Path) -> dict[str, Source]:
        return open_data(cifar_slice)

    def test_is_the_slice(self, splits: dict[str, Source]) -> None:
        assert {split: len(source) for split, source in splits.items()} == {
            "train": 200,
            "test": 200,
        }
        assert len(splits["train"]) > _ROWS_PER_TASK
        assert splits["test"].class_names == (
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        )
        assert splits["train"].content_id() != splits["test"].content_id()

    def test_decoding_equals_the_reference_path(
        self, splits: dict[str, Source], cifar_slice: Path
    ) -> None:
        for source in splits.values():
            for row, path in enumerate(source.paths):
                reference = Image.open(cifar_slice / path).convert("RGB")
                np.testing.assert_array_equal(source.image(row), reference)


class TestDigits(SourceContract):
    most_pickled_bytes = 500_000

    @pytest.fixture
    def splits(self) -> dict[str, Source]:
        return open_data("digits")

    def test_the_split_is_pinned(self, splits: dict[str, Source]) -> None:
        train, test = splits["train"], splits["test"]
        assert np.bincount(train.labels).sum() == 1201
        assert np.bincount(test.labels).tolist() == [59, 60, 59, 61, 60, 60, 60, 59, 58, 60]
        assert test.class_names == tuple("0123456789")
        assert test.labels[:10].tolist() == list(range(10))  # the file starts 0 to 9, thrice
        assert test.content_id() == DIGITS_TEST_ID

    def test_pixels_are_those_of_scikit_learn(self, splits: dict[str, Source]) -> None:
        from sklearn.datasets import load_digits

        values = load_digits().images
        pixels = [source.read(row) for source in splits.values() for row in range(len(source))]
        assert len(pixels) == len(values)
        ours = sorted(np.asarray(p)[:, :, 1].tobytes() for p in pixels)
        assert ours == sorted((v * 255 / 16 + 0.5).astype(np.uint8).tobytes() for v in values)


DIGITS_TEST_ID = "f614f7282120fab72f5b8cf6360d9732444e2cfd8909ba38979cbeabbc65edb8"


GOOD: dict[str, Any] = {
    "name": "x",
    "split": "all",
    "class_names": ("a", "b"),
    "labels": np.array([0, -1]),
    "paths": ("1", "2"),
    "pixels": np.zeros((2, 4, 4, 3), np.uint8),
    "rows": np.arange(2),
}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"labels": np.array([0, 1], np.int32)}, "int64"),
        ({"labels": np.array([0])}, "one for each path"),
        ({"labels": np.array([0, 2])}, "index class_names"),
        ({"labels": np.array([0, -2])}, "index class_names"),
        ({"paths": ("1", "1")}, "unique"),
        ({"pixels": np.zeros((2, 4, 4), np.uint8)}, "pixels must be"),
        ({"rows": np.arange(3)}, "rows must"),
    ],
)
def test_parts_that_do_not_fit(wrong: dict[str, Any], reason: str) -> None:
    assert len(ArraySource(**GOOD).content_id()) == 64
    with pytest.raises(ValueError, match=reason):
        ArraySource(**GOOD | wrong)


def test_content_id_is_pinned() -> None:
    # Caches hold this value: another hash is another "featx content" version.
    digest = hashlib.sha256(b"uint8 (4, 4, 3)\n" + bytes(48)).digest()
    by_hand = b"featx content 1\n" + digest + bytes(4) + digest + b"\1\0\0\0a"
    assert ArraySource(**GOOD).content_id() == hashlib.sha256(by_hand).hexdigest()
    assert hashlib.sha256(by_hand).hexdigest() == (
        "f7b149c993938eb71208943452582beaa530bca2bba5c100eecda7d293c95148"
    )
