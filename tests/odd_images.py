"""Files of every kind that Pillow writes, and of kinds that it should not read."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (13, 17, 3), dtype=np.uint8)
SMOOTH = np.linspace(0, 255, 24 * 32 * 3).reshape(24, 32, 3).astype(np.uint8)
GREY = COLOURS[:, :, 0]
ALPHA = COLOURS[:, :, 1]
GREY16 = RNG.integers(0, 65536, (13, 17), dtype=np.uint16)
COLOURS16 = RNG.integers(0, 65536, (13, 17, 3), dtype=np.uint16)
BITS = GREY > 127


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def rgb(array: np.ndarray = COLOURS) -> Image.Image:
    return Image.fromarray(array)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + extra + body


def png16(values: np.ndarray) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(values.shape[1], values.shape[0], 16, 2 if values.ndim == 3 else 0, rows)


def bmp(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 12, 0, 0, 54) + info + bytes(12)


def gif(width: int, height: int) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return screen + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02L\x01\x00;"


def grey_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(grey, dtype=np.uint8)[:, :, np.newaxis], 3, axis=2)


def with_alpha(mode: str) -> Image.Image:
    planes = COLOURS if mode == "RGBA" else GREY[:, :, np.newaxis]
    return Image.fromarray(np.concatenate([planes, ALPHA[:, :, np.newaxis]], axis=2))


def palette() -> Image.Image:
    image = Image.fromarray((GREY % 4).astype(np.uint8), mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    return image


PALETTE_RGB = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]])[GREY % 4]
PAIR: dict[str, Any] = {"save_all": True, "append_images": [rgb(255 - COLOURS)]}
FLOAT = (GREY16 / 65535).astype(np.float32)
EXIF_GARBAGE = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(RNG.integers(0, 256, 99, dtype=np.uint8))
CMYK = Image.fromarray(
    np.concatenate([COLOURS, np.zeros((13, 17, 1), np.uint8)], axis=2), mode="CMYK"
)


# A colour profile that would change every colour if it were applied.
PROFILE = bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes())


def scaled16(values: np.ndarray) -> np.ndarray:
    return grey_rgb(np.round(values / 257.0))


def png_apng() -> bytes:
    return encoded(rgb(), "PNG", **PAIR)


# Each: the file, the exact pixels expected.
EXACT: dict[str, tuple[Callable[[], bytes], np.ndarray]] = {
    "png rgb": (lambda: encoded(rgb(), "PNG"), COLOURS),
    "bmp rgb": (lambda: encoded(rgb(), "BMP"), COLOURS),
    "tiff rgb": (lambda: encoded(rgb(), "TIFF"), COLOURS),
    "tiff lzw": (lambda: encoded(rgb(), "TIFF", compression="tiff_lzw"), COLOURS),
    "tiff deflate": (lambda: encoded(rgb(), "TIFF", compression="tiff_deflate"), COLOURS),
    "webp lossless": (lambda: encoded(rgb(), "WEBP", lossless=True), COLOURS),
    "png with a colour profile": (lambda: encoded(rgb(), "PNG", icc_profile=PROFILE), COLOURS),
    "png one pixel": (lambda: encoded(rgb(COLOURS[:1, :1]), "PNG"), COLOURS[:1, :1]),
    "png grey": (lambda: encoded(rgb(GREY), "PNG"), grey_rgb(GREY)),
    "gif grey": (lambda: encoded(rgb(GREY), "GIF"), grey_rgb(GREY)),
    "tiff grey": (lambda: encoded(rgb(GREY), "TIFF"), grey_rgb(GREY)),
    "png 1 bit": (lambda: encoded(Image.fromarray(BITS), "PNG"), grey_rgb(BITS * 255)),
    "bmp 1 bit": (lambda: encoded(Image.fromarray(BITS), "BMP"), grey_rgb(BITS * 255)),
    "tiff 1 bit": (
        lambda: encoded(Image.fromarray(BITS), "TIFF", compression="group4"),
        grey_rgb(BITS * 255),
    ),
    "png grey + alpha": (lambda: encoded(with_alpha("LA"), "PNG"), grey_rgb(GREY)),
    "png rgba": (lambda: encoded(with_alpha("RGBA"), "PNG"), COLOURS),
    "tiff rgba": (lambda: encoded(with_alpha("RGBA"), "TIFF"), COLOURS),
    "webp rgba": (
        lambda: encoded(with_alpha("RGBA"), "WEBP", lossless=True, exact=True),
        COLOURS,
    ),
    "png palette": (lambda: encoded(palette(), "PNG"), PALETTE_RGB),
    "bmp palette": (lambda: encoded(palette(), "BMP"), PALETTE_RGB),
    "png palette, one transparent": (
        lambda: encoded(palette(), "PNG", transparency=2),
        PALETTE_RGB,
    ),
    "png palette, alphas": (
        lambda: encoded(palette(), "PNG", transparency=bytes([0, 99, 255, 3])),
        PALETTE_RGB,
    ),
    "png rgb, one transparent": (
        lambda: encoded(rgb(), "PNG", transparency=tuple(int(c) for c in COLOURS[0, 0])),
        COLOURS,
    ),
    "gif palette": (lambda: encoded(palette(), "GIF"), PALETTE_RGB),
    "gif transparent": (lambda: encoded(palette(), "GIF", transparency=1), PALETTE_RGB),
    "gif animated": (
        lambda: encoded(rgb(GREY), "GIF", save_all=True, append_images=[rgb(255 - GREY)]),
        grey_rgb(GREY),
    ),
    "apng": (png_apng, COLOURS),
    "webp animated": (lambda: encoded(rgb(), "WEBP", lossless=True, **PAIR), COLOURS),
    "tiff of two pages": (lambda: encoded(rgb(), "TIFF", **PAIR), COLOURS),
    "ppm": (lambda: encoded(rgb(), "PPM"), COLOURS),
    "pgm": (lambda: encoded(rgb(GREY), "PPM"), grey_rgb(GREY)),
    "pgm of 16 bits": (lambda: encoded(Image.fromarray(GREY16), "PPM"), scaled16(GREY16)),
    "pbm": (lambda: encoded(Image.fromarray(BITS), "PPM"), grey_rgb(BITS * 255)),
    "pfm": (lambda: encoded(Image.fromarray(FLOAT), "PPM"), grey_rgb(np.rint(FLOAT * 255))),
    "png 16-bit grey": (lambda: png16(GREY16), scaled16(GREY16)),
    "png 16-bit rgb": (lambda: png16(COLOURS16), (COLOURS16 >> 8).astype(np.uint8)),
    "tiff 16-bit grey": (lambda: encoded(Image.fromarray(GREY16), "TIFF"), scaled16(GREY16)),
    "tiff 16-bit big-endian": (
        lambda: encoded(Image.fromarray(GREY16.astype(">u2")), "TIFF"),
        scaled16(GREY16),
    ),
    "tiff 32-bit integers": (
        lambda: encoded(Image.fromarray(GREY16.astype(np.int32)), "TIFF"),
        scaled16(GREY16),
    ),
    "tiff float": (
        lambda: encoded(Image.fromarray(FLOAT), "TIFF"),
        grey_rgb(np.round(FLOAT * np.float32(255))),
    ),
    "tiff cmyk": (lambda: encoded(CMYK, "TIFF"), 255 - COLOURS),
    "png with damaged EXIF": (lambda: encoded(rgb(), "PNG", exif=EXIF_GARBAGE), COLOURS),
    "png with rubbish for EXIF": (
        lambda: encoded(rgb(), "PNG", exif=b"Exif\0\0rubbish-rubbish"),
        COLOURS,
    ),
    "webp with EXIF cut short": (
        lambda: encoded(rgb(), "WEBP", lossless=True, exif=b"Exif\0\0MM\0*"),
        COLOURS,
    ),
    "png without its end": (lambda: encoded(rgb(), "PNG")[:-12], COLOURS),
    "invalid apng frames": (
        lambda: png(1, 1, 8, 0, b"\0\x07", chunk(b"acTL", bytes(8))),
        grey_rgb(np.array([[7]])),
    ),
}


# Lossy files: what the reference path makes of them.
LIKE_PILLOW: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encoded(rgb(SMOOTH), "JPEG"),
    "jpeg with a colour profile": lambda: encoded(rgb(SMOOTH), "JPEG", icc_profile=PROFILE),
    "jpeg progressive": lambda: encoded(rgb(SMOOTH), "JPEG", progressive=True),
    "jpeg grey": lambda: encoded(rgb(SMOOTH[:, :, 0]), "JPEG"),
    "jpeg cmyk": lambda: encoded(rgb(SMOOTH).convert("CMYK"), "JPEG"),
    "jpeg ycck": lambda: encoded(rgb(SMOOTH).convert("CMYK"), "JPEG").replace(
        b"Adobe\0\x64\0\0\0\0\0", b"Adobe\0\x64\0\0\0\0\x02"
    ),
    "mpo": lambda: encoded(rgb(SMOOTH), "MPO", save_all=True, append_images=[rgb(255 - SMOOTH)]),
    "jpeg with rubbish behind": lambda: encoded(rgb(SMOOTH), "JPEG") + b"rubbish" * 99,
    "webp": lambda: encoded(rgb(SMOOTH), "WEBP"),
    "tiff jpeg": lambda: encoded(rgb(SMOOTH), "TIFF", compression="jpeg"),
    "tiff ycbcr": lambda: encoded(rgb(SMOOTH).convert("YCbCr"), "TIFF"),
    "gif of colours": lambda: encoded(rgb(SMOOTH), "GIF"),
    "avif": lambda: encoded(rgb(SMOOTH), "AVIF"),
}


def text_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 70_000_000, zip=True)
    return encoded(rgb(), "PNG", pnginfo=info)


def cut(kind: str, part: float = 0.6, **options: Any) -> bytes:
    data = encoded(rgb(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind, **options)
    return data[: int(len(data) * part)]


def tiff_of(values: np.ndarray) -> bytes:
    return encoded(Image.fromarray(values), "TIFF")


def damaged_png() -> bytes:
    data = bytearray(encoded(rgb(), "PNG"))
    data[60:70] = b"0123456789"
    return bytes(data)


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "the file is empty"),
    "one byte": (lambda: b"\xff", "not an image"),
    "zeros": (lambda: bytes(1000), "not an image"),
    "text": (lambda: b"hello", "not an image, or a damaged header"),
    "html": (lambda: b"\n<!DOCTYPE html><html>404</html>", "not an image but an HTML page"),
    "bare html": (lambda: b"\xef\xbb\xbf<HTML><body>", "not an image but an HTML page"),
    "svg": (lambda: b"<svg xmlns=''/>", "not an image but an SVG drawing"),
    "xml": (lambda: b"<?xml version='1.0'?>", "not an image but an XML file"),
    "pdf": (lambda: b"%PDF-1.7", "not an image but a PDF file"),
    "zip": (lambda: b"PK\x03\x04" + bytes(50), "not an image but a ZIP archive"),
    "psd": (lambda: b"8BPS\0\x01" + bytes(50), "not an image but a Photoshop file"),
    "heic": (lambda: b"\0\0\0\x18ftypheic" + bytes(50), "not an image but a HEIC"),
    "jpeg 2000": (lambda: encoded(rgb(), "JPEG2000"), "not an image but a JPEG 2000"),
    "lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "ico": (lambda: encoded(rgb(), "ICO"), "not an image, or"),
    "tga": (lambda: encoded(rgb(), "TGA"), "not an image, or"),
    "eps": (lambda: encoded(rgb(), "EPS"), "not an image, or"),
    "jpeg start only": (lambda: b"\xff\xd8\xff", "not an image|damaged"),
    "png start only": (lambda: b"\x89PNG\r\n\x1a\n", "not an image|damaged"),
    "jpeg cut": (lambda: cut("JPEG"), "damaged or truncated .*truncated"),
    "jpeg cut by two": (lambda: encoded(rgb(SMOOTH), "JPEG")[:-40], "damaged or truncated"),
    "png cut": (lambda: cut("PNG"), "damaged or truncated"),
    "gif cut": (lambda: cut("GIF"), "damaged or truncated"),
    "bmp cut": (lambda: cut("BMP"), "damaged or truncated"),
    "tiff cut": (lambda: cut("TIFF"), "damaged or truncated|not an image"),
    "webp cut": (lambda: cut("WEBP"), "damaged or truncated|not an image"),
    "png overwritten": (damaged_png, "damaged or truncated"),
    "png bomb": (lambda: png(50_000, 50_000, 1, 0, b""), "a decompression bomb"),
    "png large": (lambda: png(12_000, 12_000, 1, 0, b""), "12,000 x 12,000 pixels, more than"),
    "bmp bomb": (lambda: bmp(30_000, 30_000), "a decompression bomb"),
    "gif bomb": (lambda: gif(65_535, 65_535), "a decompression bomb"),
    "png text bomb": (text_bomb, "damaged or truncated"),
    "png no width": (lambda: png(0, 5, 8, 2, b""), "no pixels|damaged|not an image"),
    "bmp no width": (lambda: bmp(0, 5), "no pixels|damaged|not an image"),
    "gif no height": (lambda: gif(5, 0), "no pixels|damaged|not an image"),
    "strip": (lambda: encoded(rgb(GREY[:1].repeat(40, 1)), "PNG"), "more than 256 times"),
    "float above 1": (lambda: tiff_of(FLOAT * 2), "float pixels from .* not within 0 to 1"),
    "float below 0": (lambda: tiff_of(FLOAT - 1), "float pixels from -"),
    "float nan": (lambda: tiff_of(FLOAT * np.float32("nan")), "float pixels from nan"),
    "integers below 0": (lambda: tiff_of(GREY16.astype(np.int32) - 65536), "integer pixels"),
    "integers too large": (lambda: tiff_of(GREY16.astype(np.int32) * 2), "integer pixels"),
}
