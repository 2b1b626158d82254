"""Images of the data sets that caches were made from, by their paths."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from featx.errors import FeatxError, ImageError
from featx.sources.base import Source
from featx.sources.chosen import LAYOUT_FIELDS, LayoutChoice
from featx.sources.hub import HUB
from featx.sources.opening import open_data
from featx.urls import is_url

__all__ = ["Album", "Albums", "thumbnail_url"]

_QUALITY = 80


class Album:
    """Pictures to show beside results; an image that is gone is None, never an error."""

    def __init__(self, rows: Mapping[str, tuple[Source, int]], problem: str = "") -> None:
        self.rows, self.problem = rows, problem

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> Album:
        """Open the data that a cache's ``meta`` names; `problem` says why there are none."""
        request = meta.get("request", {})
        try:
            if not request.get("data"):
                raise ImageError("the cache does not say where its images are")
            if is_url(data := str(request["data"])) and not data.startswith(HUB):
                # A cache may be a stranger's: only what the user typed makes a request.
                raise ImageError(
                    f"its images are behind a URL, {data}, which is not asked for them"
                )
            layout = LayoutChoice.of(request)
            splits = open_data(data, layout=layout, download=False)
        except FeatxError as error:
            return cls({}, str(error))
        every = [(p, s, i) for s in splits.values() for i, p in enumerate(s.paths)]
        return cls({path: (source, row) for path, source, row in every})

    def picture(self, path: str) -> Image.Image | None:
        """Give the upright image of a path, if it is there."""
        if path not in self.rows:
            return None
        source, row = self.rows[path]
        try:
            return source.image(row)
        except FeatxError:  # also a file of pixels that is gone
            return None


class Albums:
    """Opens each data set once, for any number of caches of it."""

    def __init__(self) -> None:
        self._opened: dict[str, Album] = {}

    def of(self, meta: Mapping[str, Any], tell: Callable[[str], object]) -> Album:
        """Give the album of a cache's ``meta``; `tell` is told once why it has no images."""
        request = meta.get("request", {})
        data = str({name: request.get(name) for name in ("data", *LAYOUT_FIELDS)})
        if data not in self._opened:
            self._opened[data] = Album.of(meta)
            if self._opened[data].problem:
                tell(self._opened[data].problem)
        return self._opened[data]


def thumbnail_url(image: Image.Image, px: int) -> str:
    """Give an image as a ``data:`` URL; it is made smaller, to `px` pixels a side at most."""
    image.thumbnail((px, px), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
