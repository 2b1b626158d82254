"""From files, folders and archives that are typed to sources of images without labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from featx.errors import SourceError
from featx.progress import SILENT, Reporter
from featx.sources import Source, from_arrays
from featx.sources.archives import is_archive, open_unlabelled
from featx.sources.layout import ENDINGS, ending, is_shown
from featx.sources.manifest import list_paths
from featx.sources.tables import TABLE_ENDINGS

__all__ = ["open_images"]


@dataclass
class _Found:
    """Files in the order in which they were found, each once."""

    files: dict[str, Path] = field(default_factory=dict)
    n_left_out: int = 0

    def add(self, path: Path) -> None:
        # Links are not followed: two names are two images.
        self.files.setdefault(os.path.abspath(path), path)  # noqa: PTH100

    def add_folder(self, folder: Path) -> None:
        for path in _walk(folder):
            if ending(path.name) in ENDINGS and is_shown(path.name):
                self.add(path)
            else:
                self.n_left_out += 1


def open_images(
    words: Sequence[str | os.PathLike[str]], *, reporter: Reporter = SILENT
) -> list[tuple[str, Source]]:
    """Find the images that are meant."""
    found = _Found()
    others: list[tuple[str, Source]] = []
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir():
            found.add_folder(path)
        elif not path.exists():
            raise SourceError(f"there is no file or folder {str(word)!r}: check its name")
        elif is_archive(path):
            others.append((f"{path}/", open_unlabelled(path, reporter=reporter)))
        elif path.name.lower().endswith(TABLE_ENDINGS):
            for listed in list_paths(path):
                found.add(listed)
        else:
            found.add(path)
    if found.n_left_out:
        reporter.say(f"{found.n_left_out:,} files that are no images are left out")
    if found.files:
        others.insert(0, ("", from_arrays(list(found.files.values()), name="images")))
    if not others:
        raise SourceError(
            f"there are no images in {', '.join(map(str, words))}: files of folders count where "
            f"they end in {', '.join(sorted(ENDINGS))}"
        )
    return others


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder, sorted; hidden folders and links to folders are left out."""
    for root, folders, names in os.walk(folder, onerror=_fail):
        folders[:] = sorted(name for name in folders if is_shown(name))
        yield from (Path(root, name) for name in sorted(names))


def _fail(error: OSError) -> None:
    raise SourceError(f"cannot list {error.filename!r}: {error.strerror}") from error
