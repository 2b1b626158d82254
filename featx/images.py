"""Decode one image file, as strange as it may be, to upright 8-bit RGB, or say why not."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import threading
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from featx.errors import ImageError, read_error

__all__ = ["DECODER", "ENDINGS", "FORMATS", "MAX_ASPECT", "MAX_PIXELS", "decode", "measure"]

_T = TypeVar("_T")

DECODER = "pillow-rgb/1"
"""Name of the policy below; it is part of a cache's fingerprint, so any change bumps it."""

MAX_PIXELS = 1 << 27
"""Most pixels of an image (134 million, 400 MB as RGB): more is a decompression bomb."""

MAX_ASPECT = 256
"""Longest side over shortest: resizing the short side to 256 of more would fill the memory."""

_NO_MEMORY = "out of memory"  # in an OSError of Pillow: it says nothing about the image
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
_FOREIGN = {  # what files that are no image for us often are, by a piece of their first bytes
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML file",
    b"%pdf": "a PDF file",
    b"pk\x03\x04": "a ZIP archive",
    b"8bps": "a Photoshop file",
    b"ftypavi": _AVIF,
    b"ftyphei": _HEIC,
    b"ftyphev": _HEIC,
    b"ftypmsf1": _HEIC,
    b"ftypmif1": _HEIC,
    b"jp  \r\n": "a JPEG 2000 file",
    b"version https://git-lfs": "a Git LFS pointer (run  git lfs pull)",
}


def decode(data: bytes | str | os.PathLike[str] | np.ndarray) -> Image.Image:
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
      byte, as Pillow does;
    - float grey is scaled by 255 if all of it lies in 0 to 1, and is refused otherwise;
    - HEIC is read where the extra ``heic`` is installed, and AVIF where Pillow can.

    Only `FORMATS` are opened. Images of more than `MAX_PIXELS` or more
    elongated than `MAX_ASPECT` are refused before a pixel is decoded.

    Parameters
    ----------
    data : bytes, path-like or ndarray
        An encoded file, its path, or pixels: uint8, of shape (H, W) or (H, W, 3).

    Returns
    -------
    PIL.Image.Image
        Mode RGB, without metadata, independent of `data`.

    Raises
    ------
    ImageError
        If it is no image; the text is a short reason, without the path.
    ReadError
        If the machine cannot read the file.

    Examples
    --------
    >>> decode(np.zeros((2, 3), dtype=np.uint8)).size
    (3, 2)
    """
    if isinstance(data, np.ndarray):
        return _from_array(data)
    return _parse(data, _decode)


def measure(data: bytes | np.ndarray) -> tuple[str, int, int]:
    """Look at an image's header without decoding its pixels.

    Parameters
    ----------
    data : bytes or ndarray of uint8, shape (H, W[, 3])
        An encoded file, or pixels.

    Returns
    -------
    kind : str
        A name of `FORMATS` (or MPO), or ``"pixels"``.
    width, height : int
        In pixels, as stored: an orientation in the EXIF data is not applied.

    Raises
    ------
    ImageError
        If there is no such image; one that is damaged behind its header is not noticed.
    """
    if isinstance(data, np.ndarray):
        image = _from_array(data)
        return "pixels", image.width, image.height
    return _parse(data, _measure)


def _parse(data: bytes | str | os.PathLike[str], parser: Callable[[bytes], _T]) -> _T:
    """Call `parser` with an image's bytes; bad bytes are an `ImageError`."""
    if isinstance(data, (str, os.PathLike)):
        data = _read(Path(data))
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"decode takes bytes, a path or an array, not {type(data).__name__}")
    if not data:
        raise ImageError("the file is empty")
    try:
        with _quiet_pillow:
            return parser(bytes(data))
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ImageError(_not_an_image(bytes(data[:512]))) from None
    except Image.DecompressionBombError:
        raise ImageError(f"more than {MAX_PIXELS:,} pixels: a decompression bomb?") from None
    except Exception as error:  # Pillow's parsers raise nearly anything on bad bytes
        if _NO_MEMORY in str(error):
            raise MemoryError(str(error)) from error
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


def _measure(data: bytes) -> tuple[str, int, int]:
    with _open(data) as image:
        _check_size(*image.size)
        return str(image.format), image.width, image.height


def _decode(data: bytes) -> Image.Image:
    with _open(data) as image:
        _check_size(*image.size)
        image.load()
        orientation = _orientation(image)
        rgb = _to_rgb(image)
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    rgb.info = {}
    return rgb


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


def _orientation(image: ImageFile.ImageFile) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF data do not make the pixels bad
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    # Which colour is transparent no longer matters, and converting it is what Pillow warns about.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _to_8_bits(grey: np.ndarray) -> np.ndarray:
    low, high = grey.min(), grey.max()
    if np.issubdtype(grey.dtype, np.floating):
        if not (low >= 0 and high <= 1):  # also true of NaN
            raise ImageError(f"float pixels from {low:g} to {high:g}, not within 0 to 1")
        return np.rint(grey * 255.0).astype(np.uint8)
    if low < 0 or high > 65535:
        raise ImageError(f"integer pixels from {low} to {high}, not within 0 to 65535")
    return ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _from_array(pixels: np.ndarray) -> Image.Image:
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not is_image:
        raise ImageError(
            f"an array of {pixels.dtype} {pixels.shape}, not uint8 (height, width[, 3])"
        )
    _check_size(pixels.shape[1], pixels.shape[0])
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def _not_an_image(head: bytes) -> str:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()[:64]
    for mark, what in _FOREIGN.items():
        if mark in start:
            return f"not an image but {what}"
    return f"not an image, or a damaged header (readable are {', '.join(FORMATS)})"


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."


class _QuietPillow:
    """Hide Pillow's warnings while any thread decodes.

    `warnings.catch_warnings` changes and restores a global, so threads that
    used it at once could leave it changed: the first to come sets it, the last to go restores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._users += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._caught.__exit__(kind, error, traceback)


_quiet_pillow = _QuietPillow()
