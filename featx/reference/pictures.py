"""What the two ways are compared on: pictures made by code, and photographs of the user's."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from featx.errors import SourceError

__all__ = ["Picture", "find_photographs", "fit_native", "made_pictures", "read_labels"]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_ORIENTATION = 0x0112  # the EXIF tag


@dataclass(frozen=True)
class Picture:
    """One image, as stored."""

    name: str
    data: bytes | Path
    label: int | None = None

    def open(self, bits: int | None = None) -> Image.Image:
        """Decode it with Pillow alone, upright."""
        stream = io.BytesIO(self.data) if isinstance(self.data, bytes) else self.data
        with Image.open(stream) as image:
            if bits and ";16" in str(image.tile) and not image.mode.startswith("I"):
                raise ValueError("it has 16-bit colours, and Pillow gives the high bytes alone")
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                grey = np.asarray(upright) * (255.0 / (2 ** (bits or 16) - 1))
                upright = Image.fromarray(np.rint(grey).astype(np.uint8))
            return upright.convert("RGB")

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height as stored; zeros where they cannot be read."""
        stream = io.BytesIO(self.data) if isinstance(self.data, bytes) else self.data
        try:
            with Image.open(stream) as image:
                return image.size
        except Exception:  # Pillow's parsers raise nearly anything on bad bytes
            return 0, 0


def made_pictures() -> tuple[Picture, ...]:
    """Seven JPEG files with hard edges, odd sizes, a grey one and a rotated one.

    They are drawings, not photographs: they show a wrong resize, crop, order of
    colours or scale, and say nothing about how well a network classifies.
    """
    return (
        Picture("made: gradients, 640 x 480", _jpeg(_gradients(640, 480))),
        Picture("made: stripes, 333 x 500", _jpeg(_stripes(333, 500))),
        Picture("made: shapes, 500 x 375", _jpeg(_shapes(500, 375))),
        Picture("made: checks, 211 x 640", _jpeg(_checks(211, 640))),
        Picture("made: tiny, 97 x 31", _jpeg(_shapes(97, 31))),
        Picture("made: grey, 375 x 500", _jpeg(_shapes(375, 500).convert("L"))),
        Picture("made: EXIF-rotated, 480 x 320", _jpeg(_shapes(480, 320), orientation=6)),
    )


def _jpeg(image: Image.Image, *, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90, exif=exif)
    return stream.getvalue()


def _gradients(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards, blue falls to the right; with waves on it.

    Without them a network sees hardly anything, and whatever it then makes of the last bit of
    its arithmetic says nothing about photographs.
    """
    across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)
    pixels = np.empty((height, width, 3))
    pixels[:, :, 0], pixels[:, :, 1], pixels[:, :, 2] = across, down[:, None], across[::-1]
    waves = 40 * np.sin(np.arange(width) / 9) * np.sin(np.arange(height) / 13)[:, None]
    return Image.fromarray((pixels + waves[:, :, None]).clip(0, 255).round().astype(np.uint8))


def _stripes(width: int, height: int) -> Image.Image:
    """Stripes from three pixels wide to forty: each filter of a resize blurs them differently."""
    across = np.arange(width) // np.linspace(3, 40, height)[:, None]
    pixels = np.where(across[:, :, None] % 2 == 0, (230, 40, 20), (10, 60, 200))
    return Image.fromarray(pixels.astype(np.uint8))


def _checks(width: int, height: int) -> Image.Image:
    """Squares of eight pixels; the top half is warm and the bottom half cold."""
    rows, columns = np.indices((height, width)) // 8
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[(rows + columns) % 2 == 0] = (240, 180, 30)
    pixels[height // 2 :, :, ::-1] = pixels[height // 2 :]
    return Image.fromarray(pixels)


def _shapes(width: int, height: int) -> Image.Image:
    """Lines of text-like bars, a red disc near the left edge, a blue box near the right."""
    image = Image.new("RGB", (width, height), (245, 240, 225))
    draw = ImageDraw.Draw(image)
    unit = max(2, min(width, height) // 24)
    for line, y in enumerate(range(unit, height - unit, 3 * unit)):
        for word, x in enumerate(range(unit, width - unit, 5 * unit)):
            draw.rectangle((x, y, x + (2 + (line + word) % 3) * unit, y + unit), fill=(30, 30, 40))
    draw.ellipse((0, height // 4, width // 3, 3 * height // 4), fill=(215, 30, 25))
    draw.rectangle((2 * width // 3, height // 3, width, 2 * height // 3), fill=(20, 60, 210))
    draw.line((0, height, width, 0), fill=(20, 150, 60), width=unit)
    return image


def find_photographs(
    places: Sequence[Path], labels: Mapping[Path, int] | None = None
) -> tuple[Picture, ...]:
    """Photographs that a person names."""
    found: list[Path] = []
    for place in places:
        if not place.exists():
            raise SourceError(f"no photographs at {place}: there is no such file or folder")
        inside = sorted(p for p in place.rglob("*") if p.suffix.lower() in _SUFFIXES)
        if place.is_dir() and not inside:
            raise SourceError(f"no photographs in {place}: it has no {', '.join(_SUFFIXES)}")
        found += inside if place.is_dir() else [place]
    known = labels or {}
    return tuple(Picture(path.name, path, known.get(path.resolve())) for path in found)


def read_labels(table: Path) -> dict[Path, int]:
    """Read which photograph shows which class."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            return {
                (table.parent / row["path"]).resolve(): int(row["imagenet_index"])
                for row in csv.DictReader(stream)
            }
    except OSError as error:
        raise SourceError(f"the labels {table} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(
            f"the labels {table} must be CSV with the columns path and imagenet_index, the "
            f"latter whole numbers: {' '.join(str(error).split())}"
        ) from error


def fit_native(
    made: Sequence[Picture], photographs: Sequence[Picture]
) -> tuple[int, tuple[Picture, ...]]:
    """Bring pictures to one size without resizing any."""
    sides = [min(p.size_px) for p in photographs if min(p.size_px)]
    if photographs and not sides:
        raise SourceError("no photograph can be read, so that there is no native size: give pixels")
    side = min(sides or [min(p.size_px) for p in made if min(p.size_px) >= LEAST_NATIVE_PX])
    chosen = [*(picture for picture in made if min(picture.size_px) >= side), *photographs]
    # Oblong ones too: some weights squash an image to a square, which is a resize.
    return side, tuple(_cropped(p, side) if max(p.size_px) > side else p for p in chosen)


LEAST_NATIVE_PX = 64
"""Smaller pictures are no native size unless a person gives them: few networks run on those."""


def _cropped(picture: Picture, side: int) -> Picture:
    try:
        image = picture.open()
    except Exception:  # told later, as of any picture that cannot be read
        return picture
    left, top = (image.width - side) // 2, (image.height - side) // 2
    stream = io.BytesIO()
    image.crop((left, top, left + side, top + side)).save(stream, "PNG")
    return replace(picture, data=stream.getvalue())
