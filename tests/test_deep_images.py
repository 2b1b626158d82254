"""Values of more than 8 bits, and the same image as a file, an array and an image of Pillow."""

from __future__ import annotations

import io
import itertools
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_images import (
    BITS,
    COLOURS,
    COLOURS16,
    EXACT,
    FLOAT,
    GREY16,
    LIKE_PILLOW,
    SMOOTH,
    encoded,
    grey_rgb,
    png16,
    rgb,
    scaled16,
)
from PIL import Image, features

import featx
from featx import pillow_gaps
from featx.cli import main
from featx.depth import check_bits, describe_dim
from featx.errors import ImageError, SourceError, UsageError
from featx.images import LARGEST, decode, measure
from featx.pillow_gaps import MAX_SCANS
from featx.sources import from_arrays
from featx.sources.look import find_dim, summarise

tifffile = pytest.importorskip("tifffile")

ALPHA16 = np.full((13, 17, 1), 65535, np.uint16)
CMYK16 = np.concatenate([COLOURS16, COLOURS16[..., :1] // 2], axis=2)


def tiff(values: np.ndarray, photometric: str, **options: Any) -> bytes:
    stream, order = io.BytesIO(), options.pop("byteorder", "<")
    with tifffile.TiffWriter(stream, byteorder=order) as writer:
        writer.write(values, photometric=photometric, metadata=None, **options)
    data = stream.getvalue()
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        np.testing.assert_array_equal(file.asarray(), values)
    return data


def high(values: np.ndarray) -> np.ndarray:
    return (values >> 8).astype(np.uint8)


def cmyk(values: np.ndarray) -> np.ndarray:
    raw = high(values).tobytes()
    return np.asarray(Image.frombytes("CMYK", values.shape[1::-1], raw).convert("RGB"))


GREY32 = GREY16.astype(np.int32)
FORMS: dict[str, tuple[str, np.ndarray, np.ndarray, dict[str, Any]]] = {
    "grey": ("minisblack", GREY16, scaled16(GREY16), {}),
    "grey, white is 0": ("miniswhite", GREY16, scaled16(65535 - GREY16), {}),
    "signed": ("minisblack", GREY16.astype(np.int16) & 0x7FFF, scaled16(GREY16 & 0x7FFF), {}),
    "32 bits": ("minisblack", GREY16.astype(np.uint32), scaled16(GREY16), {}),
    "32 bits, signed": ("minisblack", GREY32, scaled16(GREY16), {}),
    "float": ("minisblack", FLOAT, grey_rgb(np.round(FLOAT * np.float32(255))), {}),
    "float, white is 0": ("miniswhite", FLOAT, 255 - grey_rgb(np.round(FLOAT * 255)), {}),
    "rgb": ("rgb", COLOURS16, high(COLOURS16), {}),
    "rgba": ("rgb", np.concatenate([COLOURS16, ALPHA16], 2), high(COLOURS16),
             {"extrasamples": (2,)}),
    "rgbx": ("rgb", np.concatenate([COLOURS16, ALPHA16], 2), high(COLOURS16),
             {"extrasamples": (0,)}),
    "rgba, multiplied": ("rgb", np.concatenate([COLOURS16, ALPHA16], 2), high(COLOURS16),
                         {"extrasamples": (1,)}),
    "cmyk": ("separated", CMYK16, cmyk(CMYK16), {}),
    "grey + alpha": ("minisblack", np.concatenate([COLOURS16[..., :1], ALPHA16], 2),
                     scaled16(COLOURS16[..., 0]), {"extrasamples": (2,)}),
    "rgb of 8 bits": ("rgb", COLOURS, COLOURS, {}),
    "rgb of 32 bits": ("rgb", COLOURS16.astype(np.uint32), high(COLOURS16), {}),
    "float rgb": ("rgb", np.stack([FLOAT] * 3, 2), grey_rgb(np.round(FLOAT * 255)), {}),
    "signed 8 bits": ("minisblack", COLOURS[..., 0].astype(np.int8), grey_rgb(COLOURS[..., 0]), {}),
}  # fmt: skip
# Pillow does not read these at all, whatever the order of bytes.
NEVER = {"grey + alpha", "rgb of 32 bits", "float rgb", "signed 8 bits"}
NOT_IN_PLANES = {"cmyk", "rgbx", "rgba, multiplied"}
NOT_BIG_ENDIAN = {"grey, white is 0", "32 bits"}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_tiff_is_read_rightly_or_refused(name: str) -> None:
    photometric, values, expected, options = FORMS[name]
    planes = ("contig", "separate") if values.ndim == 3 else (None,)
    ways: list[dict[str, Any]] = [{}, {"rowsperstrip": 4}, {"tile": (16, 16)}]
    packings: list[dict[str, Any]] = [{}, {"compression": "zlib"}]
    if values.dtype.kind != "f":
        packings.append({"compression": "zlib", "predictor": 2})
    for order, planar, way, packing in itertools.product("<>", planes, ways, packings):
        stored = np.moveaxis(values, -1, 0) if planar == "separate" else values
        how = {"byteorder": order, "planarconfig": planar, **way, **packing, **options}
        data = tiff(stored, photometric, **how)
        is_in_planes = planar == "separate" and not packing
        if (
            name in NEVER
            or (order == ">" and name in NOT_BIG_ENDIAN)
            or (is_in_planes and name in NOT_IN_PLANES)
        ):
            with pytest.raises(ImageError, match="does not read|reads wrongly|unknown raw mode"):
                decode(data)
            continue
        image = decode(data)
        np.testing.assert_array_equal(np.asarray(image), expected, err_msg=str(how))


def test_other_forms_of_tiff() -> None:
    colours = np.random.default_rng(1).integers(0, 65536, (3, 256), np.uint16)
    index = COLOURS[..., 0]
    small = np.moveaxis(high(colours)[:, index], 0, 2)
    palette = tiff(index, "palette", colormap=colours)
    np.testing.assert_array_equal(np.asarray(decode(palette)), small)
    palette = tiff(index, "palette", colormap=colours >> 8)  # as old programs write it
    np.testing.assert_array_equal(np.asarray(decode(palette)), small)
    packed = np.packbits(
        np.unpackbits((GREY16 >> 4).astype(">u2").view(np.uint8).reshape(13, 17, 2), axis=2)
        .reshape(13, 17, 16)[..., 4:]
        .reshape(13, -1),
        axis=1,
    )
    twelve = bytearray(tiff(np.zeros((13, 26), np.uint8), "minisblack"))
    with tifffile.TiffFile(io.BytesIO(twelve)) as file:
        start = file.pages[0].dataoffsets[0]
        for tag, value in (("ImageWidth", 17), ("BitsPerSample", 12)):
            at = file.pages[0].tags[tag].valueoffset
            twelve[at : at + 2] = value.to_bytes(2, "little")
    twelve[start : start + packed.size] = packed.tobytes()
    expected = grey_rgb(np.rint((GREY16 >> 4) * (255 / 4095)))
    np.testing.assert_array_equal(np.asarray(decode(bytes(twelve))), expected)
    source = from_arrays([bytes(twelve)])
    assert find_dim(source, summarise(source)) == ""  # its bits are known


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 15])
def test_bits_in_use(bits: int) -> None:
    top = (1 << bits) - 1
    grey, colours, inks = (values >> (16 - bits) for values in (GREY16, COLOURS16, CMYK16))

    def scaled(values: np.ndarray) -> np.ndarray:
        return np.rint(values * (255 / top)).astype(np.uint8)

    printed = Image.frombytes("CMYK", (17, 13), scaled(inks).tobytes()).convert("RGB")
    with_alpha = np.concatenate([colours, ALPHA16], 2)
    for values, expected in [
        (grey, grey_rgb(scaled(grey))),
        (colours, scaled(colours)),
        (png16(grey), grey_rgb(scaled(grey))),
        (png16(colours), scaled(colours)),
        (tiff(grey, "minisblack", byteorder=">"), grey_rgb(scaled(grey))),
        (tiff(grey, "miniswhite"), 255 - grey_rgb(scaled(grey))),
        (tiff(colours, "rgb"), scaled(colours)),
        (tiff(colours, "rgb", byteorder=">", compression="zlib"), scaled(colours)),
        (tiff(with_alpha, "rgb", extrasamples=(2,)), scaled(colours)),
        (tiff(inks, "separated"), np.asarray(printed)),
        (COLOURS, COLOURS),
        (encoded(rgb(), "PNG"), COLOURS),
    ]:
        np.testing.assert_array_equal(np.asarray(decode(values, bits)), expected)
    planes = np.moveaxis(colours, 2, 0)
    data = tiff(planes, "rgb", planarconfig="separate", byteorder=">")
    np.testing.assert_array_equal(np.asarray(decode(data, bits)), scaled(colours))
    data = tiff(planes, "rgb", planarconfig="separate", compression="zlib")
    with pytest.raises(ImageError, match="in planes or with alpha"):
        decode(data, bits)
    for values in (png16(grey | (1 << bits)), tiff(colours | (1 << bits), "rgb")):
        with pytest.raises(ImageError, match=rf"not within 0 to {top}, which bits={bits} means"):
            decode(values, bits)


def test_what_the_largest_value_says() -> None:
    dark = GREY16 >> 4
    for data in (dark, png16(dark), tiff(dark, "minisblack", byteorder=">")):
        assert decode(data).info == {LARGEST: int(dark.max())}
        assert measure(data)[3]
    for data in (png16(COLOURS16 >> 4), tiff(COLOURS16 >> 4, "rgb", planarconfig="contig")):
        assert decode(data).info[LARGEST] == 4095
        assert measure(data)[3]
    said = describe_dim([4000, 12, 4000], None)
    assert said.startswith("3 images store 16 bits a value, and their largest value is 4,000 of")
    assert said.endswith("give bits=12 (--bits 12)")
    assert (
        describe_dim([4000], 12) == describe_dim([], None) == describe_dim([65000, 9], None) == ""
    )
    with pytest.raises(UsageError, match="from 8 to 15, or leave it out"):
        check_bits(16)


DEEP = {
    "white is 0": lambda: tiff(GREY16, "miniswhite"),
    "big-endian, packed": lambda: tiff(GREY32, "minisblack", byteorder=">", compression="zlib"),
    "planes": lambda: tiff(np.moveaxis(COLOURS16, 2, 0), "rgb", planarconfig="separate"),
}
ODD = {name: make for name, (make, _) in EXACT.items()} | LIKE_PILLOW | DEEP


@pytest.mark.parametrize("name", ODD)
def test_an_image_of_pillow_gives_the_pixels_of_its_file(name: str) -> None:
    if name == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = ODD[name]()
    expected = np.asarray(decode(data))
    if name == "invalid apng frames":
        warnings.simplefilter("ignore")
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(from_arrays([image]).image(0), expected)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        if name in ("planes", "big-endian, packed"):
            with pytest.raises(UsageError, match="wrong order: give the path"):
                from_arrays([image])
        else:
            np.testing.assert_array_equal(from_arrays([image]).image(0), expected)
            np.testing.assert_array_equal(decode(image), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F", "L", "P", "RGBA"])
def test_an_image_of_pillow_is_turned_upright(mode: str, orientation: int) -> None:
    image = {
        "I;16": Image.fromarray(GREY16),
        "I;16B": Image.fromarray(GREY16.astype(">u2")),
        "I": Image.fromarray(GREY32),
        "F": Image.fromarray(FLOAT),
    }.get(mode) or rgb().convert(mode)
    expected = np.asarray(decode(image))
    image.getexif()[0x0112] = orientation
    turned = Image.fromarray(expected)
    turned.getexif()[0x0112] = orientation
    upright = decode(encoded(turned, "PNG", exif=turned.getexif()))
    np.testing.assert_array_equal(from_arrays([image]).image(0), upright)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (GREY16, scaled16(GREY16)),
        (GREY16.astype(">u2"), scaled16(GREY16)),
        (GREY32, scaled16(GREY16)),
        (COLOURS16, high(COLOURS16)),
        (BITS, grey_rgb(BITS * 255)),
        (FLOAT, grey_rgb(np.round(FLOAT * np.float32(255)))),
        (np.stack([FLOAT] * 3, 2).astype(np.float64), grey_rgb(np.round(FLOAT * 255.0))),
        (COLOURS[..., :1] / np.float32(255), grey_rgb(COLOURS[..., 0])),
    ],
)
def test_arrays_are_treated_as_files_with_such_values(
    pixels: np.ndarray, expected: np.ndarray
) -> None:
    for images in ([pixels], pixels[np.newaxis]):
        np.testing.assert_array_equal(from_arrays(images).image(0), expected)


def progressive(n_scans: int) -> bytes:
    """Make a JPEG file whose last scan, which refines, comes again and again."""
    data = encoded(rgb(SMOOTH), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    n_more = n_scans - data.count(b"\xff\xda")
    return data[:last] + data[last:-2] * (n_more + 1) + b"\xff\xd9"


def test_a_jpeg_file_of_too_many_scans_is_refused() -> None:
    for make in (progressive(MAX_SCANS + 1), Image.open(io.BytesIO(progressive(MAX_SCANS + 1)))):
        with pytest.raises(ImageError, match="more than 100 scans"):
            decode(make)
    usual = encoded(rgb(SMOOTH), "JPEG", progressive=True)
    inside = usual[:2] + b"\xff\xe5\x01\x02" + b"\xff\xda" * 128 + usual[2:]
    for data in (usual + b"\xff\xda" * 200, inside):  # behind the end, or in a segment
        np.testing.assert_array_equal(decode(data), decode(usual))


def test_a_large_jpeg_file_may_have_fewer_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    data = progressive(MAX_SCANS)
    decode(data)
    with Image.open(io.BytesIO(data)) as image:
        monkeypatch.setattr(pillow_gaps, "_MOST_PIXELS_SCANNED", 99 * image.width * image.height)
    with pytest.raises(ImageError, match="more than 99 scans"):
        decode(data)


def test_too_little_memory_names_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiff(np.zeros((6000, 6000), np.float32), "minisblack", compression="zlib")
    (tmp_path / "large.tif").write_bytes(data)
    source = from_arrays([tmp_path / "large.tif"])
    monkeypatch.setattr("featx.images.available_bytes", lambda: 300_000_000)
    with pytest.raises(SourceError, match=r"large\.tif \(6,000 x 6,000 pixels need 0\.3 GB"):
        source.image(0)

    def fail(self: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("featx.images.available_bytes", lambda: 1 << 40)
    monkeypatch.setattr("PIL.TiffImagePlugin.TiffImageFile.load", fail)
    with pytest.raises(SourceError, match=r"too little memory to decode .*large\.tif: close"):
        source.image(0)


@pytest.fixture
def microscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Two classes of 12-bit grey in 16-bit TIFF; gives the pixels."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(3).integers(0, 4096, (8, 40, 40), np.uint16)
    for i, values in enumerate(pixels):
        folder = tmp_path / "cells" / "ab"[i // 4]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.tif").write_bytes(tiff(values, "minisblack", byteorder=">"))
    return pixels


SMALL: dict[str, Any] = {"weights": "random", "input_size": 32, "pool": "avg"}
WORDS = ["--weights", "random", "--input-size", "32", "--pool", "avg", "--data", "cells", "-q"]
DARK = "8 images store 16 bits a value, and their largest value is 4,095 of 65,535"


def test_bits_from_extract_to_predict(
    microscope: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", "--data", "cells"]) == 0
    assert f"all, of those looked at: {DARK}" in capfd.readouterr().err
    extract = ["extract", "--backbone", "squeezenet1_1", *WORDS, "--store-dtype", "float32"]
    for workers in ("0", "1"):
        shutil.rmtree("cache", ignore_errors=True)
        assert main([*extract, "-j", workers]) == 0
        assert DARK in capfd.readouterr().err
    assert main([*extract, "-j", "0", "--bits", "12"]) == 0
    assert DARK not in capfd.readouterr().err
    dark, bright = sorted(Path("cache").glob("*.h5"), key=lambda path: len(path.name))
    assert "bits12" in bright.name
    with featx.Cache.open(dark) as one, featx.Cache.open(bright) as other:
        assert "bits" not in str(one.meta["identity"])
        assert other.meta["identity"]["preprocessing"]["bits"] == 12
        features = other.X[:]
        scaled = np.rint(microscope * (255 / 4095)).astype(np.uint8)
        usual = featx.FeatureExtractor("squeezenet1_1", **SMALL).fit(list(scaled))
        np.testing.assert_allclose(features, usual.transform(list(scaled)), rtol=1e-5, atol=1e-6)
        deep = featx.FeatureExtractor("squeezenet1_1", bits=12, **SMALL).fit(microscope)
        np.testing.assert_array_equal(deep.transform(microscope), usual.transform(list(scaled)))
        files = [Path("cells", path) for path in other.paths]
    deep = featx.FeatureExtractor("squeezenet1_1", **SMALL).fit(files)
    with pytest.warns(UserWarning, match=DARK):
        deep.transform(files)
    dark.unlink()
    fit = ["fit", "--clf", "ncm", "--per-class", "2", "--repeats", "1", "--holdout", "0.5"]
    assert main([*fit, "--save-models", "-q"]) == 0
    saved = featx.load_model(next(Path("reports/models").glob("*.safetensors")))
    found = saved.predict_images(files)
    wanted = saved.decision_function(features)
    wanted = np.abs(wanted) if wanted.ndim == 1 else wanted.max(axis=1)
    np.testing.assert_allclose([one.scores[0] for one in found], wanted, rtol=1e-3)
    assert main(["predict", "--model", str(saved.path), "cells", "-j", "0"]) == 0


def test_bits_in_sweep_train_and_verify(
    microscope: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    backbone = ["--backbone", "squeezenet1_1", "--bits", "12"]
    sweep = ["sweep", *backbone, "--weights", "random", "--data", "cells", "--pool", "avg"]
    sweep += ["--input-size", "32", "40", "--per-class", "2", "--repeats", "1", "-j", "0"]
    assert main(sweep) == 0
    verify = ["verify", *backbone, "--weights", "random", "--input-size", "64"]
    assert main([*verify, "--photographs", "cells"]) == 0
    out = capfd.readouterr().out
    assert "PASS" in out
    assert "not compared" not in out
    train = ["train", "--network", "ann-nellangara", "--data", "cells", "--epochs", "1", "-j", "0"]
    assert main([*train, "--per-class", "2", "--repeats", "1"]) == 0
    assert DARK[2:] in capfd.readouterr().err
    assert main([*train, "--per-class", "2", "--repeats", "1", "--bits", "12"]) == 0
    assert DARK[2:] not in capfd.readouterr().err
