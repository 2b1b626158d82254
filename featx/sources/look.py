"""What is in a source, seen without decoding all of it: counts, sizes, and a few pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

import numpy as np
from PIL import Image

from featx.depth import describe_dim
from featx.errors import ImageError, ReadError, UsageError
from featx.images import LARGEST, measure
from featx.sheet import contact_sheet
from featx.sources.base import Source

__all__ = ["SourceSummary", "common_size", "find_dim", "preview", "summarise"]

_MOST_CELLS = 400
_MOST_HEADERS = 100_000
_MOST_DECODED = 32


@dataclass(frozen=True)
class SourceSummary:
    """Counts of one split, and what the headers of some of its images say."""

    split: str
    n_images: int
    per_class: dict[str, int]
    n_unlabelled: int
    n_measured: int
    kinds: dict[str, int]
    n_bytes: int
    widths: tuple[int, ...]
    heights: tuple[int, ...]
    bad: dict[str, str]
    deep: tuple[int, ...] = ()

    def describe_sizes(self) -> str:
        """Say how large the measured images are, in pixels; empty where none could be read."""
        if not self.widths:
            return ""
        sides = (self.widths, self.heights)
        if all(min(side) == max(side) for side in sides):
            return f"{self.widths[0]} x {self.heights[0]} px"
        least, middle, most = (
            " x ".join(f"{f(side):.0f}" for side in sides) for f in (min, median, max)
        )
        return f"{least} to {most} px, median {middle}"


def summarise(source: Source, *, n_measured: int = 500) -> SourceSummary:
    """Count a source's images and look at the headers of some.

    Parameters
    ----------
    source : Source
        One split.
    n_measured : int, default=500
        The most headers to read.

    Returns
    -------
    SourceSummary
    """
    counts = np.bincount(source.labels[source.labels >= 0], minlength=len(source.class_names))
    kinds: Counter[str] = Counter()
    sizes: list[tuple[int, int]] = []
    bad: dict[str, str] = {}
    n_bytes = 0
    deep: list[int] = []
    rows = np.unique(np.linspace(0, len(source) - 1, min(n_measured, len(source))).astype(int))
    for row in rows.tolist():
        try:
            data = source.read(row)
            kind, width, height, is_deep = measure(data)
        except (ImageError, ReadError) as error:
            bad[source.paths[row]] = str(error)
            continue
        n_bytes += data.nbytes if isinstance(data, np.ndarray) else len(data)
        kinds[kind] += 1
        deep += [row] if is_deep else []
        sizes.append((width, height))
    return SourceSummary(
        split=source.split,
        n_images=len(source),
        per_class=dict(zip(source.class_names, counts.tolist(), strict=True)),
        n_unlabelled=int((source.labels < 0).sum()),
        n_measured=len(rows),
        kinds=dict(kinds.most_common()),
        n_bytes=n_bytes,
        widths=tuple(width for width, _ in sizes),
        heights=tuple(height for _, height in sizes),
        bad=bad,
        deep=tuple(deep),
    )


def find_dim(source: Source, summary: SourceSummary) -> str:
    """Decode some images of 16 bits a value, and say so where they use fewer; else empty."""
    largest = []
    for row in summary.deep[:_MOST_DECODED]:
        with suppress(ImageError):
            largest += [n] if (n := source.image(row).info.get(LARGEST)) else []
    return describe_dim(largest, None)


def common_size(sources: Sequence[Source]) -> tuple[int, int]:
    """Find the one size of all images."""
    sizes: Counter[tuple[int, int]] = Counter()
    for source in sources:
        seen = summarise(source, n_measured=_MOST_HEADERS)
        sizes.update(zip(seen.widths, seen.heights, strict=True))
    if len(sizes) == 1:
        return next(iter(sizes))
    if not sizes:
        raise UsageError("no image can be read, so that there is no native size: give pixels")
    shown = ", ".join(f"{w} x {h} ({n:,})" for (w, h), n in sizes.most_common(4))
    raise UsageError(
        f"the images are of {len(sizes):,} sizes ({shown}): the native size needs all equal, since "
        "every row of a cache has as many values; give pixels, as in  --input-size 224"
    )


def preview(splits: Mapping[str, Source], *, per_class: int = 10) -> Image.Image:
    """Draw a contact sheet: a row for each class, with images spread over its rows."""
    source = next(iter(splits.values()))
    labels = np.unique(source.labels).tolist()
    n = max(1, min(per_class, _MOST_CELLS // max(1, len(labels))))
    cells: list[tuple[Image.Image | None, str]] = []
    for label in labels[:_MOST_CELLS]:
        rows = np.flatnonzero(source.labels == label)
        name = source.class_names[label] if label >= 0 else "(no label)"
        chosen = rows[np.linspace(0, len(rows) - 1, n).astype(int)] if len(rows) >= n else rows
        drawn = [(_image(source, row), name) for row in chosen.tolist()]
        cells += drawn + [(Image.new("RGB", (1, 1), "white"), "")] * (n - len(drawn))
    return contact_sheet(cells, columns=n)


def _image(source: Source, row: int) -> Image.Image | None:
    try:
        return source.image(row)
    except (ImageError, ReadError):
        return None
