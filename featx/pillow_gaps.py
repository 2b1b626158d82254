"""What Pillow reads wrongly, or without end: found in the header, then mended or refused."""

from __future__ import annotations

import re
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from PIL import Image

from featx.errors import ImageError

__all__ = ["MAX_SCANS", "Form", "check_scans", "find_form", "low_bytes_of", "mend", "quiet_pillow"]

MAX_SCANS = 100
"""Most scans of a JPEG file, as in libtiff: each goes over all of the pixels once more."""

_MOST_PIXELS_SCANNED = 1 << 31  # in all scans together, some 20 seconds; cameras write up to 10

_BITS, _COMPRESSION, _PHOTOMETRIC, _PLANAR, _COLOURS, _FORMAT = 258, 259, 262, 284, 320, 339
_PLANES = "planes"
_NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


@dataclass(frozen=True)
class Form:
    """What Pillow's mode does not say about the values in a file.

    `raw` is the raw mode of 16-bit colours, of which Pillow keeps the high bytes; `bits` those
    of grey that is stored in fewer than 16; `renamed` the raw modes that Pillow takes wrongly.
    """

    raw: str = ""
    bits: int | None = None
    is_white_zero: bool = False
    has_small_palette: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_usual(self) -> bool:
        """Whether Pillow gives all of the values, and rightly."""
        return self == Form()


def find_form(image: Image.Image) -> Form:
    """Look at an opened image, best before its pixels are loaded: then nothing is lost yet."""
    raw, mode = _raw_mode(image), image.mode
    wide = raw if raw.endswith((";16B", ";16L", ";16N")) and mode[0] != "I" else ""
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None:
        return Form(wide)
    bits, is_plain = tags.get(_BITS, (1,)), tags.get(_COMPRESSION, 1) == 1
    if bits[0] == 8 and max(tags.get(_FORMAT, (1,))) == 2:
        raise ImageError("signed 8-bit pixels, which Pillow reads wrongly: save them unsigned")
    order = "B" if tags.prefix == b"MM" else "L"
    renamed: Mapping[str, str] = {}
    if tags.get(_PLANAR, 1) == 2 and bits[0] == 16 and mode in ("RGB", "RGBA", "CMYK"):
        # Each band is read as one of 8 bits, unless libtiff unpacks it.
        renamed = {band: f"{band};16{order}" for band in mode} if is_plain else {}
        wide = renamed["R"] if is_plain and mode != "CMYK" else _PLANES
    elif order == "B" and mode in ("I", "F") and not is_plain:
        renamed = _NATIVE  # the byte order of libtiff
    if renamed and not raw:
        raise ImageError("Pillow has read its values in a wrong order: give the path of the file")
    return Form(
        raw=wide,
        bits=12 if bits[0] == 12 else None,
        is_white_zero=tags.get(_PHOTOMETRIC, 0) == 0 and mode in ("I;16", "F"),
        has_small_palette=mode == "P" and max(tags.get(_COLOURS, (256,))) < 256,
        renamed=renamed,
    )


def _raw_mode(image: Image.Image) -> str:
    tiles: Any = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ""
    return str(args[0] if isinstance(args, tuple) and args else args or "")


def _rename(image: Any, new: Callable[[str], str]) -> None:
    """Put other raw modes into the tiles: tuples, named ones since Pillow 11.1."""
    for i, tile in enumerate(image.tile):
        args = tile[3]
        args = (new(args[0]), *args[1:]) if isinstance(args, tuple) else new(args)
        values = (*tile[:3], args)
        image.tile[i] = tile._make(values) if hasattr(tile, "_make") else values


def mend(image: Image.Image, form: Form) -> None:
    """Make Pillow read the pixels of a newly opened image as they are."""
    if form.renamed:
        _rename(image, lambda raw: form.renamed.get(raw, raw))
    if form.has_small_palette:  # colours of 0 to 255 where 0 to 65,535 are expected
        found: Any = image
        found.load()
        found.putpalette(bytes(found.tag_v2[_COLOURS]), "RGB;L")


def low_bytes_of(image: Image.Image, form: Form) -> Image.Image:
    """Read the low bytes of 16-bit colours from a newly opened image: in the other byte order."""
    if form.raw.startswith(("LA", "RGBa", _PLANES)):
        raise ImageError(
            "16-bit colours in planes or with alpha, of which Pillow gives the high bytes alone: "
            "save them as RGB, pixel by pixel"
        )
    mend(image, form)
    _rename(image, lambda raw: raw[:-1] + _OTHER_BYTE[raw[-1]])
    image.load()
    return image


_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_SCAN, _END, _ALONE = 0xDA, 0xD9, (0x01, 0xD8)


def check_scans(data: bytes, n_pixels: int) -> None:
    """Refuse a JPEG file of too many scans; its headers are followed from mark to mark."""
    most = min(MAX_SCANS, _MOST_PIXELS_SCANNED // n_pixels)
    if data.count(b"\xff\xda") <= most:
        return
    n_scans, at = 0, 2
    while (found := _MARKER.search(data, at)) and found[0][1] != _END:
        at = found.end()
        n_scans += found[0][1] == _SCAN
        if found[0][1] not in _ALONE:
            at += int.from_bytes(data[at : at + 2])
        if n_scans > most:
            raise ImageError(f"a JPEG file of more than {most} scans: made to take for ever?")


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


quiet_pillow = _QuietPillow()
