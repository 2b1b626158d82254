"""WebDataset: tar archives (shards) with the files of one sample under one key, read in place.

Shards are given by a pattern with braces or by a folder; their names may say the split.
"""

from __future__ import annotations

import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from featx.errors import SourceError
from featx.progress import SILENT, Reporter
from featx.sources.archives.members import TAR_ENDINGS, ArchiveFile, Index, archive_stem
from featx.sources.archives.shard_labels import (
    read_label,
    read_split_cells,
    resolve_labels,
)
from featx.sources.archives.tar import TarSource, index_tar
from featx.sources.archives.unpacked import plain_tar
from featx.sources.base import Source
from featx.sources.layout import ENDINGS, ending, is_shown, some
from featx.sources.split_columns import divide, find_split
from featx.sources.splits import in_order, split_of, split_of_shard

__all__ = [
    "Shard",
    "SplitOfShards",
    "choose_shards",
    "expand_braces",
    "find_shards",
    "is_pattern",
    "is_webdataset",
    "looks_like_webdataset",
    "open_indexed",
    "open_webdataset",
    "shards_in",
    "sources_of",
]


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
        return replace(cls.called(path.relative_to(root).as_posix()), path=path)

    @classmethod
    def called(cls, name: str) -> Shard:
        """Name a shard by its path below the root."""
        path = Path(name)
        stem = (path.parent / archive_stem(path)).as_posix()
        return cls(path, stem, split_of_shard(stem))


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


_PEEK = 256  # members that tell what kind a shard is of
_N_COMPARED = 100  # samples of a shard whose JSON files may not name another split than it
_UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, SourceError)


@dataclass
class SplitOfShards:
    """What the shards of one split hold, in their order."""

    archives: list[ArchiveFile] = field(default_factory=list)
    rows: list[tuple[int, ...]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    cells: list[dict[str, str]] = field(default_factory=list)
    n_without_image: int = 0
    second_images: list[tuple[str, str]] = field(default_factory=list)

    def add(self, shard: Shard, index: Index) -> None:
        """Take the samples of one shard."""
        number, n_before = len(self.archives), len(self.paths)
        self.archives.append(index.archive)
        with index.archive.open() as stream:
            for key, files in _samples(index).items():
                image, *others = _images(files, key, shard.path) or [""]
                if not image:
                    self.n_without_image += 1
                    continue
                self.second_images += [(other, image) for other in others]
                _, *where = index.rows[index.files[image]]
                self.rows.append((number, *where))
                self.paths.append(f"{shard.name}/{image}")
                self.labels.append(read_label(stream, index, files))
                if shard.split is None:
                    self.cells.append(read_split_cells(stream, index, files))
                elif len(self.paths) - n_before <= _N_COMPARED:
                    _check_split(shard, image, read_split_cells(stream, index, files))


def _check_split(shard: Shard, image: str, cells: dict[str, str]) -> None:
    inside = split_of(cells.get("split", "").strip())
    if inside not in (None, shard.split):
        raise SourceError(
            f"the shard {shard.name!r} is called {shard.split!r}, but the JSON file of {image!r} "
            f"says {inside!r}: rename the shard, or correct its files"
        )


def is_webdataset(spec: str | os.PathLike[str]) -> bool:
    """Whether a path leads to shards."""
    path = Path(spec).expanduser()
    if not path.exists():
        return is_pattern(str(spec)) and str(spec).lower().endswith(TAR_ENDINGS)
    shards = shards_in(path) if path.is_dir() else [path]
    if not shards or not shards[0].name.lower().endswith(TAR_ENDINGS):
        return False
    if shards[0].name.lower().endswith(".tar"):
        with suppress(SourceError):
            return looks_like_webdataset(index_tar(ArchiveFile.of(shards[0]), most=_PEEK))
        return False
    return path.is_dir() and looks_like_webdataset(_index_packed(shards[0]))


def _index_packed(path: Path) -> Index:
    """List the first members of a compressed tar archive, as far as it can be read."""
    index = Index(ArchiveFile.of(path))
    with suppress(*_UNREADABLE), tarfile.open(path, "r|*") as tar:
        for member in islice(tar, _PEEK):
            if member.isfile():
                index.add_file(member.name, ())
    return index


def looks_like_webdataset(index: Index) -> bool:
    """Whether an archive is a shard, and no tree of class folders."""
    images, labels = set(), dict[str, set[str]]()
    for name in index.files:
        key, extension = _split_name(name)
        if ending(name) in ENDINGS:
            images.add(key)
        else:
            labels.setdefault(extension, set()).add(key)
    if len({key.rpartition("/")[0] for key in images}) > 1:
        return 2 * len(images & labels.get("cls", set())) > len(images)
    return any(images & labels.get(extension, set()) for extension in ("cls", "json", "txt"))


def open_webdataset(
    spec: str | os.PathLike[str], *, data_dir: Path | None = None, reporter: Reporter = SILENT
) -> dict[str, Source]:
    """List the samples of shards.

    The split is the word of a shard's name that names one (``imagenet-val-00.tar``,
    ``train/00.tar``; see `split_of_shard`). The label is in ``<key>.cls``, in ``<key>.json``
    under ``label``, ``cls`` or ``class``, or in ``<key>.txt``: a number, or the name of a class.
    The names of numbers are the lines of ``classes.txt`` or ``classnames.txt`` beside the shards.
    """
    paths, root = find_shards(spec)
    shards = choose_shards([Shard.of(path, root) for path in paths], root.name, reporter)
    splits: dict[str, SplitOfShards] = {}
    with (reporter if len(shards) > 1 else SILENT).bar(
        len(shards), f"listing {root.name}", "shard"
    ) as bar:
        for shard in shards:
            tar = plain_tar(shard.path, data_dir, reporter=reporter)
            index = index_tar(ArchiveFile.of(tar))
            index.tell(reporter)
            splits.setdefault(shard.split or "all", SplitOfShards()).add(shard, index)
            bar.update()
    is_one = len(paths) == 1 and not Path(spec).expanduser().is_dir()
    return sources_of(
        archive_stem(paths[0]) if is_one else root.name or "data", root, splits, reporter
    )


def open_indexed(path: Path, index: Index, *, reporter: Reporter = SILENT) -> dict[str, Source]:
    """Open one shard whose members are listed already; see `open_webdataset`."""
    index.tell(reporter)
    shard, split = Shard.of(path, path.parent), SplitOfShards()
    split.add(shard, index)
    return sources_of(shard.name, path.parent, {shard.split or "all": split}, reporter)


def sources_of(
    name: str, root: Path, splits: dict[str, SplitOfShards], reporter: Reporter
) -> dict[str, Source]:
    """Make the sources of what the shards of each split hold."""
    splits = in_order(splits)
    _tell(name, splits, reporter)
    empty = [split for split, found in splits.items() if not found.rows]
    if empty:
        raise SourceError(
            f"the shards of {name!r} have no images in the split {some(empty)}: "
            f"image files end in {', '.join(sorted(ENDINGS))}"
        )
    class_names, labels = resolve_labels(
        {split: found.labels for split, found in splits.items()},
        {split: found.paths for split, found in splits.items()},
        root,
        reporter,
    )
    sources: dict[str, Source] = {
        split: TarSource(
            name=name,
            split=split,
            class_names=class_names,
            labels=labels[split],
            paths=tuple(found.paths),
            archives=tuple(found.archives),
            members=TarSource.table(found.rows),
        )
        for split, found in splits.items()
    }
    if [*splits] != ["all"]:
        return sources
    cells = splits["all"].cells
    names = dict.fromkeys(name for row in cells for name in row)
    columns = {name: [row.get(name, "") for row in cells] for name in names}
    split_column = find_split(columns, f"{name!r}, JSON files", reporter)
    if split_column is None:
        return sources
    reporter.say(f"{name!r}: split from {split_column[0]} of the JSON files")
    return divide(sources["all"], split_column[1])


def _tell(name: str, splits: dict[str, SplitOfShards], reporter: Reporter) -> None:
    n_without_image = sum(split.n_without_image for split in splits.values())
    if n_without_image:
        reporter.warn(f"{name!r}: {n_without_image:,} samples without an image left out")
    second = [pair for split in splits.values() for pair in split.second_images]
    if second:
        other, image = second[0]
        reporter.warn(
            f"{name!r}: {len(second):,} images left out, since their sample has another image "
            f"({other!r} beside {image!r}): the files of a sample have the same name up to its "
            "first dot"
        )
    n_unknown = sum(split.labels.count("") for split in splits.values())
    if n_unknown:
        reporter.warn(f"{name!r}: {n_unknown:,} images without a label, their class is unknown")


def _samples(index: Index) -> dict[str, dict[str, str]]:
    """Map the key of each sample to its files: the extension, in lower case, to the name."""
    samples: dict[str, dict[str, str]] = {}
    for name in index.files:
        if not all(map(is_shown, name.split("/"))):
            continue
        key, extension = _split_name(name)
        files = samples.setdefault(key, {})
        if extension in files:
            both = some([files[extension], name])
            raise SourceError(f"{index.archive.path!r} has both {both}: keep one")
        files[extension] = name
    return samples


def _split_name(name: str) -> tuple[str, str]:
    """Split at the first dot behind the folders, as WebDataset does."""
    start = name.rfind("/") + 1
    stem, _, extension = name[start:].partition(".")
    return name[:start] + stem, extension.lower()


def _images(files: dict[str, str], key: str, path: Path) -> list[str]:
    """List the images of a sample, first the one to take: not ``<key>.mask.png``."""
    images = [extension for extension, name in files.items() if ending(name) in ENDINGS]
    plain = [extension for extension in images if "." not in extension] or images
    if len(plain) > 1:
        both = some(files[extension] for extension in plain)
        raise SourceError(f"{str(path)!r} has more than one image of the sample {key!r}: {both}")
    return [files[extension] for extension in sorted(images, key=lambda end: end not in plain)]
