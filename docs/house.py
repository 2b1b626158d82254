"""Draw the rooms of featx and the arrows between them into docs/architecture.md.

    python docs/house.py            # print the picture
    python docs/house.py --write    # put it into the page

Floors are the layers that import-linter holds (pyproject.toml); arrows are imports.
"""

from __future__ import annotations

import re
import sys
import textwrap
import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BLOCK = re.compile(r"(<!-- house -->\n```\n).*?(```\n<!-- end of house -->)", re.DOTALL)
WIDTH = 100


def floors() -> list[list[str]]:
    """Names of the rooms, floor by floor from the roof down."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    return [[room.strip().removeprefix("featx.") for room in layer.split("|")] for layer in layers]


def arrows() -> dict[str, set[str]]:
    """Which rooms each room imports."""
    graph = grimp.build_graph("featx", exclude_type_checking_imports=True)
    found: dict[str, set[str]] = {}
    for module in graph.modules - {"featx"}:
        room = module.split(".")[1]
        imported = graph.find_modules_directly_imported_by(module) - {"featx"}
        found.setdefault(room, set()).update(other.split(".")[1] for other in imported)
    return {room: others - {room} for room, others in found.items()}


def picture() -> str:
    """Floors as boxes; in each, its rooms and the rooms of other floors that they import."""
    imports, every_floor = arrows(), floors()
    order = [room for floor in every_floor for room in floor]
    line = f"+{'-' * (WIDTH - 2)}+"
    lines = [line]
    for floor in every_floor:
        for room in floor:
            targets = ", ".join(sorted(imports.get(room, ()), key=order.index)) or "nothing"
            lines += [
                f"| {text:{WIDTH - 4}} |"
                for text in textwrap.wrap(
                    f"{room:13} -> {targets}", WIDTH - 4, subsequent_indent=" " * 17
                )
            ]
        lines.append(line)
    return "\n".join(lines) + "\n"


def page_with(drawn: str) -> str:
    """Put a picture into the text of the page."""
    text = PAGE.read_text(encoding="utf-8")
    return BLOCK.sub(lambda found: found[1] + drawn + found[2], text)


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page_with(picture()), encoding="utf-8")
    else:
        sys.stdout.write(picture())
