"""A contact sheet: many small pictures in a grid, each with a line of text."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from featx.atomic import replace_file
from featx.errors import UsageError

__all__ = ["contact_sheet", "save_sheet"]

_GAP_PX = 6
_TEXT_PX = 12
_PAPER, _INK, _VOID = "white", "black", (224, 224, 224)


def contact_sheet(
    cells: Sequence[tuple[Image.Image | None, str]], *, columns: int = 10, cell_px: int = 96
) -> Image.Image:
    """Draw pictures in a grid, row by row."""
    columns = max(1, min(columns, len(cells)))
    n_rows = -(-len(cells) // columns)
    step_x, step_y = cell_px + _GAP_PX, cell_px + _TEXT_PX + 2 * _GAP_PX
    sheet = Image.new("RGB", (_GAP_PX + columns * step_x, _GAP_PX + n_rows * step_y), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_TEXT_PX - 2)
    for i, (picture, caption) in enumerate(cells):
        left, top = _GAP_PX + i % columns * step_x, _GAP_PX + i // columns * step_y
        if picture is None:
            draw.rectangle((left, top, left + cell_px - 1, top + cell_px - 1), fill=_VOID)
        else:
            fitted = _fit(picture, cell_px)
            at = left + (cell_px - fitted.width) // 2, top + (cell_px - fitted.height) // 2
            sheet.paste(fitted, at)
        draw.text((left, top + cell_px + 2), _cut(caption, draw, font, cell_px), _INK, font)
    return sheet


def _fit(picture: Image.Image, cell_px: int) -> Image.Image:
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        paper = Image.new("RGBA", picture.size, _PAPER)
        picture = Image.alpha_composite(paper, picture)
    picture = picture.convert("RGB")
    longest = max(picture.size)
    if longest <= cell_px // 2:
        factor = cell_px // longest
        size = picture.width * factor, picture.height * factor
        return picture.resize(size, Image.Resampling.NEAREST)
    width, height = (max(1, round(cell_px * side / longest)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _cut(
    text: str,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width_px: int,
) -> str:
    # Names of files may hold what no font can draw: line breaks, bytes that are not UTF-8.
    text = text.encode("latin-1", "replace").decode("latin-1")
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    if draw.textlength(text, font) <= width_px:
        return text
    while text and draw.textlength(text + "...", font) > width_px:
        text = text[:-1]
    return text + "..."


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a picture; a file that is there is replaced only if it is a picture too."""
    ending = path.suffix.lower()
    if ending not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UsageError(f"{path}: the picture's name must end in .png, .jpg or .webp")
    if path.exists() and not _is_picture(path):
        raise UsageError(f"{path} is there and is no picture: it is not overwritten")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no folder {path.parent}")
    try:
        replace_file(path, partial(sheet.save, format=Image.registered_extensions().get(ending)))
    except (OSError, ValueError) as error:  # ValueError: too many pixels for the format
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot write {path}: {reason}") from error


def _is_picture(path: Path) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path):
                return True
    except Image.DecompressionBombError:  # its header was read: a picture, and a large one
        return True
    except (OSError, ValueError):
        return False
