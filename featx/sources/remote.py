"""A folder of images behind a URL: listed once, read image by image."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from featx.errors import SourceError
from featx.progress import SILENT, Reporter
from featx.sources.archives import open_streamed
from featx.sources.archives.members import TAR_ENDINGS, clean_name
from featx.sources.base import Source
from featx.sources.chosen import LayoutChoice
from featx.sources.folder import MOST_IMAGE_BYTES
from featx.sources.layout import ENDINGS, ending, list_images
from featx.sources.places import Stamp
from featx.sources.tree import MemberTree, some
from featx.urls import Stat, join, name_of, read_url, shown, walk

__all__ = ["UrlSource", "open_url_folder"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class UrlSource(Source):
    """A split of a folder of images behind a URL."""

    per_row = (*Source.per_row, "stats")

    root: str
    stats: np.ndarray
    """Shape (N, 2), int64: sizes in bytes, and tags of contents; -1 where the server says none."""

    @property
    def place(self) -> str:
        """The folder; see `Source.place`."""
        return shown(self.root)

    def stamp(self, row: int) -> Stamp | None:
        """Give the size and the tag of one file, as they were listed; see `Source.stamp`."""
        n_bytes, tag = self.stats[row].tolist()
        return None if tag < 0 else (n_bytes, 0, tag)

    def read(self, row: int) -> bytes:
        """Read the bytes of one file; see `Source.read`."""
        return read_url(join(self.root, self.paths[row]), MOST_IMAGE_BYTES)


def open_url_folder(
    url: str,
    *,
    layout: LayoutChoice | None = None,
    wanted: Collection[str] = (),
    reporter: Reporter = SILENT,
) -> dict[str, Source]:
    """List a folder of images, or of WebDataset shards; see `open_folder`."""
    files = _files(url, reporter)
    shards = sorted(name for name in files if name.lower().endswith(TAR_ENDINGS))
    if shards and not layout and not any(ending(name) in ENDINGS for name in files):
        return open_streamed(url, shards, reporter=reporter)
    tree = MemberTree(name_of(url) or "data", shown(url), files)
    return {
        split: UrlSource(
            name=tree.name,
            split=split,
            class_names=found.class_names,
            labels=found.labels,
            paths=found.paths,
            root=url,
            stats=np.array([files[path] for path in found.paths], np.int64).reshape(-1, 2),
        )
        for split, found in list_images(tree, layout, wanted=wanted, reporter=reporter).items()
    }


def _files(url: str, reporter: Reporter) -> dict[str, tuple[int, int]]:
    """Give the files of a folder: their sizes and tags as numbers."""
    files: dict[str, tuple[int, int]] = {}
    strange = []
    with reporter.bar(0, f"listing {shown(url)}", "file") as bar:
        for name, stat in walk(url):
            if clean_name(name) == name:
                files[name] = _numbers(stat)
            else:
                strange.append(name)
            bar.update()
    if strange:
        reporter.warn(f"{shown(url)}: names that no folder can have left out: {some(strange)}")
    if not files:
        raise SourceError(
            f"{shown(url)!r} has no files: check its name; over http, the server must list its "
            "folders, or give a table with the columns path and label"
        )
    return files


def _numbers(stat: Stat) -> tuple[int, int]:
    return -1 if stat.n_bytes is None else stat.n_bytes, stat.number
