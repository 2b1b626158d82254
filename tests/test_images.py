from __future__ import annotations

import io
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_images import (
    BAD,
    COLOURS,
    EXACT,
    FLOAT,
    GREY,
    LIKE_PILLOW,
    SMOOTH,
    encoded,
    grey_rgb,
    png_apng,
    rgb,
)
from PIL import Image, ImageOps, features

from featx.errors import ImageError, ReadError
from featx.images import (
    DECODER,
    ENDINGS,
    FORMATS,
    LARGEST,
    MAX_ASPECT,
    MAX_PIXELS,
    decode,
    measure,
)


@pytest.mark.parametrize("name", EXACT)
def test_exact_pixels_of_every_kind_of_file(name: str) -> None:
    make, expected = EXACT[name]
    image = decode(make())
    assert type(image) is Image.Image
    assert image.mode == "RGB"
    assert image.info.keys() <= {LARGEST}
    np.testing.assert_array_equal(np.asarray(image), expected)


@pytest.mark.parametrize("name", LIKE_PILLOW)
def test_lossy_files_equal_the_reference_path(name: str) -> None:
    if name == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = LIKE_PILLOW[name]()
    reference = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(decode(data)), np.asarray(reference))
    near = np.abs(np.asarray(reference).astype(int) - SMOOTH).mean()
    assert near < 140 if "ycck" in name or "grey" in name else near < 20


def test_real_photographs_equal_the_reference_path(photographs: list[Path]) -> None:
    assert len(photographs) == 40
    for path in photographs:
        reference = np.asarray(Image.open(path).convert("RGB"))
        np.testing.assert_array_equal(np.asarray(decode(path)), reference)
        np.testing.assert_array_equal(np.asarray(decode(path.read_bytes())), reference)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation(kind: str, orientation: int) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(rgb(SMOOTH), kind, exif=exif)
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    image = decode(data)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(reference))
    assert image.size == ((24, 32) if 5 <= orientation <= 8 else (32, 24))


def test_exif_orientation_by_hand() -> None:
    # 6: row 0 is the visual right side, column 0 the visual top (EXIF 2.3, 4.6.4 A).
    stored = np.zeros((2, 3, 3), dtype=np.uint8)
    stored[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    image = np.asarray(decode(encoded(rgb(stored), "PNG", exif=exif)))
    assert image.shape == (3, 2, 3)
    assert image[0, 1].tolist() == [255, 255, 255]
    assert image.sum() == 3 * 255


def test_the_endings_are_those_that_pillow_gives_to_what_is_read() -> None:
    kinds = Image.registered_extensions()
    assert {end for end, kind in kinds.items() if kind in {*FORMATS, "MPO"}} <= ENDINGS
    for end in ENDINGS & set(kinds):
        kind = kinds[end]
        image = Image.fromarray(FLOAT) if end == ".pfm" else rgb(SMOOTH)
        assert decode(encoded(image, kind)).size == image.size
    assert {".heic", ".heif", ".hif", ".avif", ".jfif", ".jpe", ".mpo", ".apng", ".pnm"} <= ENDINGS
    assert not {".cls", ".txt", ".json", ".jp2", ".eps", ".pdf", ".npy"} & ENDINGS


def test_heic_where_its_extra_is_installed() -> None:
    heif = pytest.importorskip("pillow_heif")
    decode(encoded(rgb(), "PNG"))  # featx, not this test, makes Pillow read HEIC
    heif.register_heif_opener()
    data = encoded(rgb(SMOOTH), "HEIF", quality=90)
    reference = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(decode(data)), np.asarray(reference))
    assert np.abs(np.asarray(reference).astype(int) - SMOOTH).max() < 12
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(rgb(SMOOTH), "HEIF", quality=90, exif=exif.tobytes())
    assert decode(turned).size == (24, 32)
    with pytest.raises(ImageError, match="HEIC photograph, a damaged one"):
        decode(data[:300])


def test_heic_without_its_extra_names_it() -> None:
    code = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "import importlib.util; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'pillow_heif' else find(name)\n"
        "from featx.images import decode, ENDINGS, FORMATS\n"
        "assert 'HEIF' not in FORMATS and '.heic' in ENDINGS\n"
        "decode(b'\\0\\0\\0\\x18ftypheic' + bytes(50))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'featx[heic]'" in done.stderr


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(rgb(SMOOTH), "JPEG"), ("JPEG", 32, 24, False)),
        (encoded(rgb(), "PNG"), ("PNG", 17, 13, False)),
        (encoded(rgb(SMOOTH), "JPEG")[:-3], ("JPEG", 32, 24, False)),
        (SMOOTH, ("pixels", 32, 24, False)),
    ],
)
def test_measuring_reads_the_header_only(
    data: bytes | np.ndarray, expected: tuple[str, int, int, bool]
) -> None:
    assert measure(data) == expected


@pytest.mark.parametrize("name", ["empty", "html", "png bomb", "strip", "png no width"])
def test_measuring_refuses_what_has_no_good_header(name: str) -> None:
    make, reason = BAD[name]
    with pytest.raises(ImageError, match=reason):
        measure(make())


@pytest.mark.parametrize("name", BAD)
def test_bad_files_have_a_short_reason(name: str, tmp_path: Path) -> None:
    make, reason = BAD[name]
    path = tmp_path / "secret-name.jpg"
    path.write_bytes(make())
    for data in (path.read_bytes(), path):
        with pytest.raises(ImageError, match=reason) as caught:
            decode(data)
        text = str(caught.value)
        assert "secret-name" not in text
        assert "BytesIO" not in text
        assert len(text) < 180
        assert "\n" not in text


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"^cannot read '.*/missing.jpg': No such file or dir"):
        decode(tmp_path / "missing.jpg")
    with pytest.raises(ImageError, match=r"^cannot be read: Is a directory$"):
        decode(tmp_path)
    with pytest.raises(ImageError, match="not a possible file name"):
        decode(str(tmp_path / "a\0b"))
    with pytest.raises(TypeError, match="not int"):
        decode(3)  # type: ignore[arg-type]


def test_too_little_memory_is_no_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's decoders say it as they say that a file is damaged."""
    monkeypatch.setattr(Image.core, "getcodecstatus", lambda _: "out of memory", raising=False)
    stream = io.BytesIO()
    Image.fromarray(COLOURS).save(stream, "PNG")
    data = bytearray(stream.getvalue())
    at = data.index(b"IDAT") + 8
    data[at : at + 4] = b"\xff" * 4  # the decoder stops here
    with pytest.raises(MemoryError, match="out of memory when reading image file"):
        decode(bytes(data))


def test_arrays() -> None:
    np.testing.assert_array_equal(np.asarray(decode(COLOURS)), COLOURS)
    np.testing.assert_array_equal(np.asarray(decode(COLOURS[::-1, ::2])), COLOURS[::-1, ::2])
    np.testing.assert_array_equal(np.asarray(decode(GREY)), grey_rgb(GREY))


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (FLOAT * 2, "float pixels from 0"),
        (FLOAT - 1, "float pixels from -"),
        (GREY.astype(np.int64), "int64"),
        (COLOURS[np.newaxis], r"\(1, 13, 17, 3\)"),
        (COLOURS[:, :, :2], r"\(13, 17, 2\)"),
        (COLOURS[:, :0], "no pixels"),
        (np.zeros((1, MAX_ASPECT + 1), np.uint8), "256 times"),
        (np.broadcast_to(np.uint8(0), (MAX_PIXELS // 8192 + 1, 8192)), "decompression bomb"),
    ],
)
def test_arrays_that_are_no_images(array: np.ndarray, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode(array)


def test_policy_is_pinned() -> None:
    # A change of any of these changes features: bump DECODER with it.
    assert (DECODER, MAX_PIXELS, MAX_ASPECT) == ("pillow-rgb/1", 2**27, 256)
    assert FORMATS[:6] == ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")


def test_threads_leave_the_warning_filters_as_they_were() -> None:
    noisy = EXACT["png palette, alphas"][0]()
    apng = EXACT["invalid apng frames"][0]()
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [noisy, apng] * 200))
    assert list(warnings.filters) == before


def test_the_noisy_file_does_make_pillow_warn() -> None:
    with pytest.warns(UserWarning, match="Invalid APNG"):
        Image.open(io.BytesIO(EXACT["invalid apng frames"][0]()))


FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
STARTS = [b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"MM\0*"]
STARTS += [b"RIFF\x40\0\0\0WEBPVP8 ", b"\0\0\0\x1cftypavif", b"P3 9 9 255 ", b"P5 9 9 65535 "]
SEEDS = [
    encoded(rgb(SMOOTH), kind, **options)
    for kind, options in [
        ("JPEG", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
        ("PPM", {}),
    ]
] + [png_apng()]


def decodes_or_explains(data: bytes) -> None:
    try:
        image = decode(data)
    except ImageError:
        return
    assert image.mode == "RGB"
    assert min(image.size) > 0


@FUZZ
@given(st.sampled_from(STARTS), st.binary(max_size=300))
def test_random_bytes_raise_nothing_else(start: bytes, data: bytes) -> None:
    decodes_or_explains(start + data)


@FUZZ
@given(st.data())
def test_mutated_files_raise_nothing_else(data: st.DataObject) -> None:
    image = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(image) - 1) | st.integers(0, 60))
        image[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    decodes_or_explains(bytes(image[: data.draw(st.integers(1, len(image)))]))
