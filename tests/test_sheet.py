"""Contact sheets of pictures of any shape, saved without harm."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featx.errors import UsageError
from featx.sheet import contact_sheet, save_sheet

RED, GREY, WHITE = (255, 0, 0), (224, 224, 224), (255, 255, 255)


def red(size, mode="RGB"):
    return Image.new("RGB", size, RED).convert(mode)


def area(sheet, colour):
    return int((np.asarray(sheet) == colour).all(axis=2).sum())


@pytest.mark.parametrize(
    ("size", "shown"),
    [((32, 32), 96 * 96), ((40, 20), 80 * 40), ((96, 96), 96 * 96), ((400, 200), 96 * 48)],
)
def test_pictures_fill_their_cell_and_keep_their_shape(size, shown):
    assert area(contact_sheet([(red(size), "")]), RED) == shown


def test_small_pictures_grow_by_whole_pixels():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    sheet = np.asarray(contact_sheet([(picture, "")]))
    cell = sheet[6 : 6 + 96, 6 : 6 + 96]
    assert np.array_equal(cell, np.asarray(picture).repeat(12, axis=0).repeat(12, axis=1))


@settings(max_examples=60)
@given(st.integers(1, 3_000), st.integers(1, 3_000), st.integers(1, 150))
def test_any_shape_can_be_drawn(width, height, cell_px):
    sheet = contact_sheet([(Image.new("1", (width, height)), "x")], cell_px=cell_px)
    assert sheet.size[0] >= cell_px


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16", "F"])
def test_any_mode_can_be_drawn(mode):
    picture = Image.new(mode, (10, 10))
    assert contact_sheet([(picture, "")]).mode == "RGB"


def test_what_is_transparent_shows_the_paper():
    picture = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    assert area(contact_sheet([(picture, "")]), RED) == 0


def test_an_unreadable_picture_is_grey():
    assert area(contact_sheet([(None, "gone")]), GREY) == 96 * 96


@pytest.mark.parametrize(
    ("n", "columns", "grid"), [(1, 10, (1, 1)), (7, 3, (3, 3)), (6, 3, (3, 2))]
)
def test_the_grid(n, columns, grid):
    sheet = contact_sheet([(red((32, 32)), "")] * n, columns=columns)
    step_x, step_y = 96 + 6, 96 + 12 + 12
    assert sheet.size == (6 + grid[0] * step_x, 6 + grid[1] * step_y)
    assert area(sheet, RED) == n * 96 * 96


def test_no_pictures_are_a_sheet_too():
    assert area(contact_sheet([]), WHITE) > 0


@pytest.mark.parametrize(
    "text", ["", "cat", "a very long caption " * 20, "猫 \udce9 \n tab\t", "i" * 500]
)
def test_captions_stay_in_their_cell(text):
    sheet = np.asarray(contact_sheet([(red((96, 96)), text), (None, "")]))
    gap = sheet[:, 6 + 96 : 6 + 96 + 6]
    assert (gap == 255).all()
    assert (sheet[-3:] == 255).all()


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.jpeg", "a.webp"])
def test_saved_sheets_open_again_and_leave_nothing_else(tmp_path, name):
    sheet = contact_sheet([(red((32, 32)), "red")])
    for _ in "ab":
        save_sheet(sheet, tmp_path / name)
    with Image.open(tmp_path / name) as again:
        assert again.size == sheet.size
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_nothing_but_a_picture_is_overwritten(tmp_path):
    sheet = contact_sheet([])
    for name in ("notes.png", "folder.png"):
        (tmp_path / "folder.png").mkdir(exist_ok=True)
        (tmp_path / "notes.png").write_text("mine", encoding="utf-8")
        with pytest.raises(UsageError, match="is there and is no picture"):
            save_sheet(sheet, tmp_path / name)
    assert (tmp_path / "notes.png").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["a.gif", "a", "a.png.txt"])
def test_other_endings_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match=r"must end in .png, .jpg or .webp"):
        save_sheet(contact_sheet([]), tmp_path / name)


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(UsageError, match="cannot write .*there is no folder"):
        save_sheet(contact_sheet([]), tmp_path / "no" / "a.png")


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_a_sheet_too_large_for_its_format_is_told(tmp_path, ending):
    with pytest.raises(UsageError, match="cannot write"):
        save_sheet(Image.new("RGB", (4, 70_000)), tmp_path / f"a.{ending}")
    assert list(tmp_path.iterdir()) == []


def test_a_huge_picture_is_a_picture(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_sheet(Image.new("RGB", (64, 64)), path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_sheet(Image.new("RGB", (8, 8)), path)
    monkeypatch.undo()
    with Image.open(path) as again:
        assert again.size == (8, 8)
