"""Decode one image file, as strange as it may be, to upright 8-bit RGB, or say why not."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from featx.depth import DEEP_KINDS, scale, scale_colours
from featx.errors import ImageError, read_error
from featx.memory import available_bytes
from featx.pillow_gaps import Form, check_scans, find_form, low_bytes_of, mend, quiet_pillow

__all__ = [
    "DECODER",
    "ENDINGS",
    "FORMATS",
    "LARGEST",
    "MAX_ASPECT",
    "MAX_PIXELS",
    "check_array",
    "decode",
    "in_memory",
    "measure",
]

_T = TypeVar("_T")
_G = TypeVar("_G")

DECODER = "pillow-rgb/1"
"""Name of the policy below; it is part of a cache's fingerprint, so any change bumps it."""

MAX_PIXELS = 1 << 27
"""Most pixels of an image (134 million, 400 MB as RGB): more is a decompression bomb."""

MAX_ASPECT = 256
"""Longest side over shortest: resizing the short side to 256 of more would fill the memory."""

_NO_MEMORY = "out of memory"  # in an OSError of Pillow: it says nothing about the image
_CLOSED = re.compile(r"on closed (image|file)")  # in a ValueError of Pillow, of images in memory

LARGEST = "largest"
"""Key of a decoded image's ``info``: the largest value, where values were stored in 16 bits."""

_PLUGINS = {"AVIF": "PIL.AvifImagePlugin", "HEIF": "pillow_heif"}

FORMATS = (
    "JPEG",
    "PNG",
    "GIF",
    "BMP",
    "WEBP",
    "TIFF",
    "PPM",
    *(name for name, package in _PLUGINS.items() if importlib.util.find_spec(package)),
)
"""Pillow's parsers that may run (MPO is opened by JPEG's); the rare ones stay unreachable."""

# Listed with or without their parser: which rows a data set has must not depend on what is
# installed. Without it, the reason of each such row names what is missing.
_ALWAYS = {".heic", ".heics", ".heif", ".heifs", ".hif", ".avif", ".avifs"}


def _endings() -> frozenset[str]:
    """Ask Pillow for the endings of the parsers that may run, and load no others."""
    for name in ("Jpeg", "Mpo", "Png", "Gif", "Bmp", "WebP", "Tiff", "Ppm"):
        importlib.import_module(f"PIL.{name}ImagePlugin")
    readable = {*FORMATS, "MPO"}
    return frozenset(end for end, name in Image.EXTENSION.items() if name in readable) | _ALWAYS


ENDINGS = _endings()
"""Endings of the files that are taken as images, in lower case: those that `decode` reads."""

_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEIC = "a HEIC photograph, " + (
    "a damaged one" if "HEIF" in FORMATS else "which needs  pip install 'featx[heic]'"
)
_AVIF = "an AVIF image, " + (
    "a damaged one" if "AVIF" in FORMATS else "which needs a Pillow that reads AVIF (11.3 or newer)"
)
_UNREAD_TIFF = (
    "a TIFF file whose pixels Pillow does not read, or a damaged one: save it as grey or RGB of "
    "8 or 16 bits"
)
_FOREIGN = {  # what files that are no image for us often are, by a piece of their first bytes
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML file",
    b"%pdf": "a PDF file",
    b"pk\x03\x04": "a ZIP archive",
    b"8bps": "a Photoshop file",
    b"ftypavi": _AVIF,
    **dict.fromkeys((b"ftyphei", b"ftyphev", b"ftypmsf1", b"ftypmif1"), _HEIC),
    b"jp  \r\n": "a JPEG 2000 file",
    b"version https://git-lfs": "a Git LFS pointer (run  git lfs pull)",
}


def decode(
    data: bytes | str | os.PathLike[str] | np.ndarray | Image.Image, bits: int | None = None
) -> Image.Image:
    """Decode an image to RGB, upright.

    The colours are those of ``Image.open(path).convert("RGB")``; PNG and JPEG
    files with 8-bit RGB equal it bit for bit. Beyond that:

    - the orientation in the EXIF data is applied; EXIF data that cannot be read count as none;
    - of an animation or a multi-page file, the first frame or page is taken;
    - 1-bit, grey, palette, CMYK, YCCK and YCbCr become RGB by Pillow's conversion; colour
      profiles are not applied;
    - transparency is dropped, not composited: a transparent pixel shows the colour
      stored under it;
    - 16-bit grey is scaled to 8 bits (``v / 257``, rounded) where Pillow would clip; 32-bit integer
      grey likewise if its values lie in 0 to 65,535. 16-bit colour keeps its high
      byte, as Pillow does. With `bits`, both are scaled by ``255 / (2 ** bits - 1)``;
    - float grey is scaled by 255 if all of it lies in 0 to 1, and is refused otherwise;
    - what Pillow reads wrongly of TIFF files is read rightly, see `featx.pillow_gaps`;
    - HEIC is read where the extra ``heic`` is installed, and AVIF where Pillow can.

    Only `FORMATS` are opened. Images of more than `MAX_PIXELS` or more
    elongated than `MAX_ASPECT`, and JPEG files of more than 100 scans, are refused before a pixel
    is decoded.

    Examples
    --------
    >>> decode(np.zeros((2, 3), dtype=np.uint8)).size
    (3, 2)
    """
    if isinstance(data, Image.Image):
        data = in_memory(data)
    if isinstance(data, np.ndarray):
        return _from_array(data, bits)
    return _parse(data, lambda given: _decode(given, bits))


def in_memory(image: Image.Image) -> bytes | np.ndarray:
    """Give what `decode` makes the same of as of the file of an opened image.

    Upright pixels, uint8 (H, W) or (H, W, 3), or deeper grey as it is; the file itself where
    Pillow's pixels lack something and are not loaded yet.
    """
    return _guarded(_in_memory, image, b"")


def _in_memory(image: Image.Image) -> bytes | np.ndarray:
    _check_size(*image.size)
    form = find_form(image)
    stream: Any = getattr(image, "fp", None)
    is_waiting = bool(getattr(image, "tile", None)) and stream is not None and image.tell() == 0
    if is_waiting and (not form.is_usual or image.format in ("JPEG", "MPO")):
        stream.seek(0)
        data: bytes = stream.read()
        if not form.is_usual:
            return data
        check_scans(data, image.width * image.height)
        stream.seek(0)
    if form.is_usual and _is_deep_grey(image):
        image.load()
        values = np.asarray(_upright(image, image))
        return np.array(values, dtype=values.dtype.newbyteorder("="))
    return np.array(_convert(image, form, None, b""))


def measure(data: bytes | np.ndarray) -> tuple[str, int, int, bool]:
    """Read kind, width, height (px, as stored) and "more than 8 bits" from an image's header."""
    if isinstance(data, np.ndarray):
        check_array(data)
        return "pixels", data.shape[1], data.shape[0], data.dtype.kind in "ui" and data.itemsize > 1
    return _parse(data, _measure)


def _parse(data: bytes | str | os.PathLike[str], parser: Callable[[bytes], _T]) -> _T:
    """Call `parser` with an image's bytes; bad bytes are an `ImageError`."""
    if isinstance(data, (str, os.PathLike)):
        data = _read(Path(data))
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"decode takes bytes, a path or an array, not {type(data).__name__}")
    if not data:
        raise ImageError("the file is empty")
    return _guarded(parser, bytes(data), bytes(data[:512]))


def _guarded(work: Callable[[_G], _T], given: _G, head: bytes) -> _T:
    try:
        with quiet_pillow:
            return work(given)
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ImageError(_not_an_image(head)) from None
    except Image.DecompressionBombError:
        raise ImageError(f"more than {MAX_PIXELS:,} pixels: a decompression bomb?") from None
    except Exception as error:  # Pillow's parsers raise nearly anything on bad bytes
        if _NO_MEMORY in str(error):
            raise MemoryError(str(error)) from error
        if isinstance(error, ValueError) and _CLOSED.search(str(error)):
            raise ImageError("it is closed: give its path, or a copy made before") from error
        raise ImageError(f"damaged or truncated ({_short(error)})") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise read_error(path, error) from error
    except ValueError as error:  # a NUL inside the path
        raise ImageError("cannot be read: not a possible file name") from error


@cache
def _register_plugins() -> None:
    if "HEIF" in FORMATS:
        import pillow_heif

        pillow_heif.register_heif_opener()


def _open(data: bytes) -> ImageFile.ImageFile:
    _register_plugins()
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _measure(data: bytes) -> tuple[str, int, int, bool]:
    with _open(data) as image:
        _check_size(*image.size)
        is_deep = bool(find_form(image).raw) or image.mode.startswith("I")
        return str(image.format), image.width, image.height, is_deep


def _decode(data: bytes, bits: int | None) -> Image.Image:
    with _open(data) as image:
        _check_size(*image.size)
        if image.format in ("JPEG", "MPO"):
            check_scans(data, image.width * image.height)
        _check_memory(image)
        pixels = _convert(image, find_form(image), bits, data)
    del image  # of floats, four bytes a pixel
    return _as_rgb(pixels)


def _convert(image: Image.Image, form: Form, bits: int | None, data: bytes) -> Image.Image:
    """Load the pixels, in mode L or RGB and upright."""
    mend(image, form)
    image.load()
    if _is_deep_grey(image):
        found = _grey(image, form, bits)
    elif form.raw and bits:
        found = _deep_colours(image, form, bits, data)
    else:
        found = image if image.mode == "L" else _plain(image)
        if form.raw:
            found.info[LARGEST] = _largest(image)
    return _upright(image, found)


def _upright(image: Image.Image, pixels: Image.Image) -> Image.Image:
    orientation = _orientation(image)
    if orientation not in _UPRIGHT:
        return pixels
    turned = pixels.transpose(_UPRIGHT[orientation])
    turned.info = pixels.info
    return turned


def _as_rgb(pixels: Image.Image) -> Image.Image:
    rgb = pixels if type(pixels) is Image.Image and pixels.mode == "RGB" else pixels.convert("RGB")
    rgb.info = {key: value for key, value in pixels.info.items() if key == LARGEST}
    return rgb


_BYTES_PER_PIXEL = {"F": 4, "I": 4, "L": 1, "P": 1, "1": 1}
_SMALL_BYTES = 1 << 28


def _check_memory(image: Image.Image) -> None:
    """Refuse, before a pixel is decoded, what does not fit; RGB takes four bytes a pixel."""
    n_bytes = image.width * image.height * (5 + _BYTES_PER_PIXEL.get(image.mode, 4))
    if n_bytes > _SMALL_BYTES and n_bytes > (n_free := available_bytes()):
        raise MemoryError(
            f"{image.width:,} x {image.height:,} pixels need {n_bytes / 1e9:.1f} GB of memory, and "
            f"{n_free / 1e9:.1f} GB are free"
        )


def _check_size(width: int, height: int) -> None:
    short, long = sorted((width, height))
    if short < 1:
        raise ImageError(f"no pixels ({width} x {height})")
    if short * long > MAX_PIXELS:
        raise ImageError(
            f"{width:,} x {height:,} pixels, more than {MAX_PIXELS:,}: a decompression bomb?"
        )
    if long > MAX_ASPECT * short:
        raise ImageError(
            f"{width:,} x {height:,} pixels: one side is more than {MAX_ASPECT} times the other"
        )


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF data do not make the pixels bad
        return 1
    return value if isinstance(value, int) else 1


def _plain(image: Image.Image) -> Image.Image:
    if image.mode in ("La", "RGBa"):  # Pillow gives back the colours under the transparency
        image = image.convert(image.mode.upper())
    if "transparency" in image.info:
        # Which colour is transparent does not matter, and converting it is what Pillow warns about.
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def _is_deep_grey(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _grey(image: Image.Image, form: Form, bits: int | None) -> Image.Image:
    def rows(part: slice) -> np.ndarray:
        return np.asarray(image.crop((0, part.start, image.width, part.stop)))

    scaled, largest = scale(rows, (image.height, image.width), form.bits or bits)
    found = Image.fromarray(255 - scaled if form.is_white_zero else scaled)
    if image.mode != "F" and form.bits is None:
        found.info[LARGEST] = largest
    return found


def _deep_colours(image: Image.Image, form: Form, bits: int, data: bytes) -> Image.Image:
    with _open(data) as again:
        low = np.asarray(low_bytes_of(again, form))
    colours = np.asarray(image).astype(np.uint16) << 8 | low
    if image.mode != "CMYK":
        colours = colours[..., :3]
    scaled, largest = scale_colours(colours, bits)
    found = Image.frombytes("CMYK", image.size, scaled.tobytes()) if image.mode == "CMYK" else None
    found = Image.fromarray(scaled) if found is None else found.convert("RGB")
    found.info[LARGEST] = largest
    return found


def _largest(image: Image.Image) -> int:
    """Bound the values of 16-bit colours, without alpha, by their high bytes."""
    extrema: Any = image.getextrema()
    n_colours = 4 if image.mode == "CMYK" else 3
    return int(max(high for _, high in extrema[:n_colours])) * 256 + 255


def check_array(pixels: np.ndarray) -> None:
    """Refuse an array that is no image; the values of floats and integers are looked at later."""
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if not is_image or (pixels.dtype != np.uint8 and pixels.dtype.name not in DEEP_KINDS):
        raise ImageError(
            f"an array of {pixels.dtype} {pixels.shape}, not (height, width[, 3]) of uint8 or "
            + ", ".join(DEEP_KINDS)
        )
    _check_size(pixels.shape[1], pixels.shape[0])


def _from_array(pixels: np.ndarray, bits: int | None) -> Image.Image:
    check_array(pixels)
    if pixels.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
    is_colour = pixels.ndim == 3 and pixels.dtype == np.uint16
    scaled, largest = (
        scale_colours(pixels, bits) if is_colour else scale(pixels.__getitem__, pixels.shape, bits)
    )
    rgb = Image.fromarray(scaled).convert("RGB")
    rgb.info = {LARGEST: largest} if pixels.dtype.kind in "ui" else {}
    return rgb


def _not_an_image(head: bytes) -> str:
    if head.startswith((b"II", b"MM")):
        return _UNREAD_TIFF
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()[:64]
    for mark, what in _FOREIGN.items():
        if mark in start:
            return f"not an image but {what}"
    return f"not an image, or a damaged header (readable are {', '.join(FORMATS)})"


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."
