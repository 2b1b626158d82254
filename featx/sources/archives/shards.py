"""Which shards a WebDataset has, from a pattern with braces or a folder, and their splits."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featx.errors import SourceError
from featx.progress import Reporter
from featx.sources.archives.members import TAR_ENDINGS, archive_stem
from featx.sources.layout import is_shown, some
from featx.sources.splits import split_of, split_of_shard

__all__ = ["Shard", "choose_shards", "expand_braces", "find_shards", "is_pattern", "shards_in"]

_MOST_SHARDS = 100_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class Shard:
    """One tar archive of a data set."""

    path: Path
    name: str
    split: str | None

    @classmethod
    def of(cls, path: Path, root: Path) -> Shard:
        """Name a shard."""
        name = (path.parent / archive_stem(path)).relative_to(root).as_posix()
        return cls(path, name, split_of_shard(name))


def choose_shards(shards: list[Shard], name: str, reporter: Reporter) -> list[Shard]:
    """Leave out the shards that name no split where others do."""
    chosen = [shard for shard in shards if shard.split] or shards
    strays = [shard.path.name for shard in shards if shard not in chosen]
    if strays:
        reporter.warn(f"{name!r}: shards that name no split left out: {some(strays)}")
    by_name: dict[str, Path] = {}
    for shard in chosen:
        other = by_name.setdefault(shard.name, shard.path)
        if other != shard.path:
            raise SourceError(
                f"two shards of one name, {some([other.name, shard.path.name])}: keep one"
            )
    return chosen


def find_shards(spec: str | os.PathLike[str]) -> tuple[list[Path], Path]:
    """Give the shards, and the folder that their names are relative to."""
    path = Path(spec).expanduser().absolute()
    if path.is_dir():
        paths = shards_in(path)
        if not paths:
            raise SourceError(f"{str(path)!r} has no tar archives: shards end in .tar")
        return paths, path
    if path.exists() or not is_pattern(str(path)):
        return [path], path.parent
    paths = [Path(name) for name in expand_braces(str(path))]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise SourceError(f"{len(missing):,} of {len(paths):,} shards are missing: {some(missing)}")
    return paths, Path(os.path.commonpath([path.parent for path in paths]))


def shards_in(folder: Path) -> list[Path]:
    """List the shards of a folder, and of the folders in it that are called like splits."""
    try:
        inside = sorted(folder.iterdir())
        below = [path for path in inside if split_of(path.name) and path.is_dir()]
        found = [*inside, *(path for each in below for path in sorted(each.iterdir()))]
    except OSError as error:
        raise SourceError(f"cannot list {str(folder)!r}: {error.strerror}") from error
    return [
        path
        for path in found
        if path.name.lower().endswith(TAR_ENDINGS) and is_shown(path.name) and path.is_file()
    ]


def is_pattern(spec: str) -> bool:
    """Whether there are braces in a name."""
    return bool(_BRACES.search(spec))


def expand_braces(pattern: str) -> list[str]:
    """Expand a pattern as a shell does.

    Examples
    --------
    >>> expand_braces("{train,val}-{08..10}.tar")[:4]
    ['train-08.tar', 'train-09.tar', 'train-10.tar', 'val-08.tar']
    """
    names = [""]
    for i, part in enumerate(_BRACES.split(pattern)):
        choices: Sequence[str] = _choices(part, pattern) if i % 2 else [part]
        if len(names) * len(choices) > _MOST_SHARDS:
            raise SourceError(f"{pattern!r} gives more than {_MOST_SHARDS:,} names")
        names = [name + choice for name in names for choice in choices]
    return names


def _choices(part: str, pattern: str) -> Sequence[str]:
    found = _RANGE.fullmatch(part)
    if found and len(found[2]) < 19 and int(found[1]) <= int(found[2]):
        numbers = range(int(found[1]), int(found[2]) + 1)
        width = len(found[1]) if found[1][0] == "0" else 0
        return [f"{n:0{width}}" for n in numbers[: _MOST_SHARDS + 1]]
    if "," in part:
        return part.split(",")
    raise SourceError(
        f"{{{part}}} in {pattern!r} is no range: write {{000..012}}, or {{train,val}}"
    )
