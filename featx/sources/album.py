"""Images of the data set that a cache was made from, by their paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from featx.errors import FeatxError, ImageError
from featx.sources.base import Source
from featx.sources.chosen import LayoutChoice
from featx.sources.opening import open_data

__all__ = ["Album"]


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
            layout = LayoutChoice.of(request)
            splits = open_data(str(request["data"]), layout=layout, download=False)
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
