"""The picture in docs/architecture.md is that of the code."""

from __future__ import annotations

import importlib.util
from pathlib import Path

HOUSE = Path(__file__).parents[1] / "docs" / "house.py"


def test_the_picture_is_drawn_from_the_imports_of_today():
    spec = importlib.util.spec_from_file_location("house", HOUSE)
    house = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(house)
    page = house.PAGE.read_text(encoding="utf-8")
    assert house.BLOCK.search(page)
    assert page == house.page_with(house.picture()), "run  python docs/house.py --write"
