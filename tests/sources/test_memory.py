from __future__ import annotations

import io
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_source_contract import SourceContract

from featx.errors import ImageError, ReadError, UsageError
from featx.images import decode
from featx.sources import ArraySource, FolderSource, Source, open_data
from featx.sources.memory import MemorySource, from_arrays


def pixels_of(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(8).integers(0, 256, (n, *shape), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def folder(photo_tree: Path) -> FolderSource:
    source = open_data(photo_tree)["all"]
    assert isinstance(source, FolderSource)
    return source


def test_an_array_is_not_copied() -> None:
    pixels = pixels_of(6, 5, 4, 3)
    source = from_arrays(pixels, [0, 1] * 3)
    assert isinstance(source, ArraySource)
    assert np.shares_memory(source.pixels, pixels)
    assert (source.name, source.split, source.class_names) == ("memory", "all", ("0", "1"))
    assert source.paths[5] == "all/00005"
    np.testing.assert_array_equal(source.image(2), pixels[2])


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1)])
def test_grey(shape: tuple[int, ...]) -> None:
    pixels = pixels_of(6, *shape)
    source = from_arrays(pixels, split="test", name="grey")
    assert isinstance(source, ArraySource)
    assert np.shares_memory(source.pixels, pixels)
    assert source.paths[5] == "test/00005"
    assert repr(source) == "<ArraySource 'grey', split 'test': 6 images, 0 classes>"
    read = source.read(2)
    assert read.shape == (5, 4, 3)
    np.testing.assert_array_equal(read, np.stack([pixels[2].reshape(5, 4)] * 3, axis=2))
    one = from_arrays(list(pixels))
    np.testing.assert_array_equal(one.image(2), source.image(2))
    coloured = from_arrays(read[np.newaxis])
    assert source.take(np.array([2])).content_id() == coloured.content_id()


def test_a_mixture(tmp_path: Path, folder: FolderSource, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, png = pixels_of(1, 7, 6, 3)[0], folder.read(0)
    monkeypatch.chdir(folder.root)
    images = [pixels, png, bytearray(png), folder.paths[1], Path(folder.root, folder.paths[2])]
    source = from_arrays([*images, Image.fromarray(pixels), pixels[..., 0]], [1] * 7)
    assert isinstance(source, MemorySource)
    monkeypatch.chdir(tmp_path)
    assert source.paths[:4] == ("all/00000", "all/00001", "all/00002", folder.paths[1])
    assert source.paths[4:6] == (f"{folder.root}/{folder.paths[2]}", "all/00005")
    source = pickle.loads(pickle.dumps(source))
    for row, wanted in enumerate([pixels, png, png, folder.read(1), folder.read(2), pixels]):
        np.testing.assert_array_equal(source.image(row), decode(wanted))
    digests = source.image_digests()
    np.testing.assert_array_equal(digests[[1, 3, 4]], folder.image_digests()[:3])


def test_paths_give_the_content_of_their_folder(folder: FolderSource) -> None:
    words = [folder.class_names[label] for label in folder.labels]
    paths = [Path(folder.root, path) for path in folder.paths]
    assert from_arrays(paths, words).content_id() == folder.content_id()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "HSV"])
def test_modes_of_pil(mode: str) -> None:
    image = Image.fromarray(pixels_of(1, 9, 7, 3)[0]).convert("RGBA")
    image.putalpha(Image.fromarray(pixels_of(1, 9, 7)[0]))
    image = image.convert("RGB").convert(mode) if mode in ("HSV", "CMYK") else image.convert(mode)
    read = from_arrays([image]).image(0)
    wanted = image.convert("RGBA").convert("RGB") if mode == "RGBa" else image.convert("RGB")
    np.testing.assert_array_equal(read, wanted)


def test_deep_grey_of_pil() -> None:
    deep = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    for image in (Image.fromarray(deep), Image.fromarray(deep.astype(np.int32))):
        np.testing.assert_array_equal(from_arrays([image]).image(0), decode(encoded(image, "TIFF")))
    source = from_arrays([Image.fromarray(deep.astype(np.float32))])
    with pytest.raises(ImageError, match="float pixels from 0 to"):
        source.image(0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_pil_image_is_turned_upright(kind: str, mode: str, orientation: int) -> None:
    if (kind, mode) == ("JPEG", "RGBA"):
        return
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(pixels_of(1, 9, 7, 3)[0]).convert(mode), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        read = from_arrays([image]).image(0)
    np.testing.assert_array_equal(read, decode(data))


def test_a_pil_image_that_is_cut_short() -> None:
    data = encoded(Image.fromarray(pixels_of(1, 99, 97, 3)[0]), "JPEG")
    with pytest.raises(UsageError, match=r"images\[1\] cannot be read: .*image file is truncated"):
        from_arrays([data, Image.open(io.BytesIO(data[:-3000]))])
    assert len(from_arrays([data, data[:-3000]])) == 2  # bytes are decoded when they are read
    closed = Image.open(io.BytesIO(data))
    closed.close()
    with pytest.raises(UsageError, match="cannot be read: it is closed: give its path"):
        from_arrays([closed])


@pytest.mark.parametrize(
    ("labels", "class_names", "names", "numbers"),
    [
        (None, None, (), [-1, -1, -1]),
        (None, ["x", "y"], ("x", "y"), [-1, -1, -1]),
        ([0, 1, 0], ["x", "y"], ("x", "y"), [0, 1, 0]),
        (np.array([0, -1, 1], np.int8), ["x", "y"],
         ("x", "y"), [0, -1, 1]),
        ([30, 4, None], None, ("4", "30"), [1, 0, -1]),
        (np.array([30, 4, -1]), None, ("4", "30"), [1, 0, -1]),
        (["b", "a", ""], None, ("a", "b"), [1, 0, -1]),
        (np.array(["b", "a", "b"]), None, ("a", "b"), [1, 0, 1]),
        (["b", None, "b"], ["b", "c", "a"], ("b", "c", "a"), [0, -1, 0]),
        (["10", "9", "10"], None, ("9", "10"), [1, 0, 1]),
        ((np.int64(2), 5, 2), None, ("2", "5"), [0, 1, 0]),
        ([1.0, np.nan, True], ["x", "y"], ("x", "y"), [1, -1, 1]),
        ([None] * 3, None, (), [-1, -1, -1]),
    ],
)  # fmt: skip
def test_labels(labels: Any, class_names: Any, names: tuple[str, ...], numbers: list[int]) -> None:
    source = from_arrays(pixels_of(3, 4, 4, 3), labels, class_names=class_names)
    assert source.class_names == names
    assert source.labels.tolist() == numbers


@pytest.mark.parametrize(
    ("labels", "class_names", "reason"),
    [
        ([1, 2], None, "labels has 2 entries for 3 images"),
        (
            [0, 1, 2],
            ["a", "b"],
            r"labels\[2\] is 2, and must be a whole number within -1 to 1, as class_names",
        ),
        ([0, 1, -2], None, "labels has the label -2: numbers of classes start at 0, and -1 means"),
        ([0, 1, 0.5], ["a", "b"], r"labels\[2\] is 0.5, and must be a whole number"),
        ([0, 1, "a"], None, r"labels\[2\] is 'a': give numbers or texts, not a mixture"),
        ([0, 1, b"a"], None, r"labels\[2\] is b'a': give numbers or texts"),
        (["cat", "dgo", "cat"], ["cat", "dog"], "'dgo' is none of class_names: did you mean 'dog'"),
        (["cat", "xyz", "cat"], ["cat", "dog"], "'xyz' is none of class_names: it has cat, dog"),
        (None, ["a", "a"], "class_names has a name twice"),
    ],
)
def test_wrong_labels(labels: Any, class_names: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        from_arrays(pixels_of(3, 4, 4, 3), labels, class_names=class_names)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (np.full((2, 4, 4), 9.0), r"of values from 0 to 255 .*\.clip\(0, 255\)\.astype\('uint8'\)"),
        (np.full((2, 4, 4, 3), -0.1), r"images\[0\] is float pixels from -0.1 to .*undo a norm"),
        (np.full((2, 4, 4), np.nan, np.float32), "float pixels from nan"),
        (np.zeros((2, 4, 4), np.int64), "an array of int64 .*: convert it to uint8 from 0 to 255"),
        (pixels_of(2, 3, 8, 8), r"\(2, 3, 8, 8\), not \(N, .*np\.moveaxis\(images, 1, 3\)"),
        (pixels_of(2, 8, 8, 4), r"drop the transparency with images\[\.\.\., :3\]"),
        (pixels_of(2), r"images has shape \(2,\), not \(N, H, W, 3\) or \(N, H, W\)$"),
        (pixels_of(2, 8, 8, 8, 8), "images has shape"),
        ("photos", r"images is one str: of one image give the list \[image\]"),
        (Image.new("RGB", (9, 9)), r"images is one Image: of one image give the list"),
        (pixels_of(2, 8), r"shape \(2, 8\), .*: of one image give the list \[image\]"),
        (pixels_of(9, 8, 1), r"shape \(9, 8, 1\): one RGB image is given as \[image\]"),
        (pixels_of(9, 8, 4), r"shape \(9, 8, 4\): one RGB image is given as \[image\]"),
        (pixels_of(9, 8, 3), r"shape \(9, 8, 3\): one RGB image is given as \[image\]"),
        (list(pixels_of(9, 8, 3)), r"images\[0\] has shape \(8, 3\), a row of an RGB image"),
        ([pixels_of(3, 5, 6)], r"images\[0\] has shape \(3, 5, 6\), .*moveaxis\(images, 0, 2\)"),
        ([b"x", 3], r"images\[1\] is of type builtins.int: give a PIL image, a uint8 array"),
        (np.array([b"x", None]), r"images is object, not of .*give a list of the images, list\(im"),
        (iter([b"x"]), "images is of type builtins.list_iterator: give a numpy array"),
        ({"a": 1}, "images is of type builtins.dict: give a numpy array, or a list"),
        (["a/b.jpg", "c.jpg", "a//b.jpg"], r"images\[2\] is the same file as images\[0\]"),
    ],
)  # fmt: skip
def test_wrong_images(images: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        from_arrays(images)
    assert "\n" not in str(caught.value)


def test_colours_that_may_come_first_are_said() -> None:
    with pytest.warns(UserWarning, match=r"taken as 3 grey images; .*moveaxis\(images, 0, 2\)"):
        assert len(from_arrays(pixels_of(3, 8, 9))) == 3


def test_a_mend_works() -> None:
    images = pixels_of(2, 8, 8, 3).astype(np.float32) / 255
    repaired = (images * 255).round().clip(0, 255).astype("uint8")
    np.testing.assert_array_equal(from_arrays(repaired).image(1), pixels_of(2, 8, 8, 3)[1])
    turned = np.moveaxis(pixels_of(2, 3, 8, 8), 1, 3)
    np.testing.assert_array_equal(from_arrays(turned).image(1), turned[1])
    assert len(from_arrays(turned).content_id()) == 64


def test_a_tensor_is_told_what_to_do() -> None:
    import torch

    tensor = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    with pytest.raises(UsageError, match=r"is of type torch\.Tensor: .*tensor\.cpu\(\)\.numpy\(\)"):
        from_arrays(tensor)  # type: ignore[arg-type]
    assert len(from_arrays(tensor.cpu().numpy())) == 2


def test_missing_files_are_errors(tmp_path: Path) -> None:
    source = from_arrays([tmp_path / "1.jpg", "a\0b"])
    with pytest.raises(ReadError, match="cannot read '.*/1.jpg': No such file"):
        source.read(0)
    with pytest.raises(ImageError, match="not a possible file name"):
        source.read(1)


def test_no_images() -> None:
    for images in ([], np.empty((0, 4, 4, 3), np.uint8)):
        assert len(from_arrays(images, [])) == 0


def test_a_worker_process(folder: FolderSource) -> None:
    source = from_arrays([folder.read(0), str(Path(folder.root, folder.paths[1]))])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(source.read, (1,)) == folder.read(1)


class TestArray(SourceContract):
    @pytest.fixture
    def splits(self, cifar_slice: Path) -> dict[str, Source]:
        source = open_data(cifar_slice)["test"]
        rows = range(0, len(source), 8)
        pixels = np.stack([np.asarray(source.image(row)) for row in rows])
        labels = source.labels[::8]
        return {"all": from_arrays(pixels, labels, class_names=source.class_names)}


class TestGrey(SourceContract):
    @pytest.fixture
    def splits(self) -> dict[str, Source]:
        return {"all": from_arrays(pixels_of(12, 6, 5), list("abcabcabcabc"))}


class TestMixture(SourceContract):
    @pytest.fixture
    def splits(self, folder: FolderSource) -> dict[str, Source]:
        images: list[Any] = [Path(folder.root, path) for path in folder.paths]
        images[1::3] = [folder.read(row) for row in range(1, len(folder), 3)]
        images[2::3] = [folder.image(row) for row in range(2, len(folder), 3)]
        return {"all": from_arrays(images, folder.labels, class_names=folder.class_names)}
