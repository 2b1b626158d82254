"""A picture of the pairs of images that the search for leaks found."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from featx.evaluate import CacheLike, Leaks
from featx.evaluate.leaks import one_per_test_image
from featx.progress import SILENT, Reporter
from featx.sheet import contact_sheet, save_sheet
from featx.sources.album import Albums

__all__ = ["save_leak_sheet"]

_DRAWN = 40


def save_leak_sheet(many: Iterable[Leaks], path: Path, reporter: Reporter = SILENT) -> int:
    """Draw the pairs side by side: the test image, then the training image."""
    albums = Albums()
    cells: dict[tuple[str, ...], list[tuple[Image.Image | None, str]]] = {}
    for leaks in many:
        for leak in one_per_test_image(leaks.found):
            test, train = (leaks.pair.test, leak.test), (leaks.pair.train, leak.train)
            key = tuple(cache.paths[row] for cache, row in (test, train))
            if key in cells or len(cells) == _DRAWN:
                continue
            how = leak.kind if leak.kind != "near" else f"near {leak.cosine:.2f}"
            cells[key] = [
                (_picture(albums, *test, reporter), how),
                (_picture(albums, *train, reporter), leaks.name("train", leak.train)),
            ]
    if cells:
        save_sheet(contact_sheet([c for two in cells.values() for c in two], columns=8), path)
    return len(cells)


def _picture(albums: Albums, cache: CacheLike, row: int, reporter: Reporter) -> Image.Image | None:
    def tell(problem: str) -> None:
        reporter.warn(f"images of {Path(cache.path).name} cannot be drawn: {problem}")

    return albums.of(cache.meta, tell).picture(cache.paths[row])
