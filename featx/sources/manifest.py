"""A table of images: CSV, TSV or Parquet with the columns path, label and perhaps split."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path, PurePosixPath

from featx.errors import SourceError, UsageError, nearest
from featx.images import ENDINGS
from featx.progress import SILENT, Reporter
from featx.sources.base import Source
from featx.sources.chosen import LayoutChoice
from featx.sources.folder import MOST_IMAGE_BYTES, read_file
from featx.sources.labels import number_labels
from featx.sources.places import Stamp, stamp_file
from featx.sources.split_columns import divide, find_split
from featx.sources.splits import split_of_folder
from featx.sources.tables import find_column, read_numbered_table
from featx.sources.tree import ending, some
from featx.urls import check_url, is_url, join, local_path, name_of, parent, read_url, shown

__all__ = ["LABEL_NAMES", "PATH_NAMES", "ManifestSource", "list_paths", "open_manifest"]

PATH_NAMES = (
    *("path", "image", "image_path", "file", "filename", "file_name", "filepath", "file_path"),
    *("img", "img_path", "img_name", "image_name", "image_file", "image_filename", "imagename"),
    *("paths", "images", "image_paths", "files", "filenames", "file_names", "filepaths"),
    *("file_paths", "fname", "photo", "picture", "image_id", "imageid", "img_id", "id"),
)
"""What a column of paths is called, in lower case, by preference."""

LABEL_NAMES = ("label", "class", "class_name", "category", "target")
_MORE_LABEL_NAMES = ("labels", "classes", "classname", "category_name", "targets", "label_name")
_LAYOUT = (
    "the first line must name the columns, such as  path,label  or  path,label,split; or say what "
    "they are, as in  --columns path=image_id label=breed"
)
_ONE, _ZERO = frozenset({"1", "1.0", "True", "true"}), frozenset({"0", "0.0", "False", "false"})
_GENERIC = re.compile(
    "(train|training|val|valid|validation|test|image|img|_)*"
    "(labels?|train|test|val|metadata|annotations?|data|dataset|images|index|classes)"
)
_N_TRIED = 100


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ManifestSource(Source):
    """The images of one split of a manifest."""

    root: str
    urls: Mapping[str, str] = field(default_factory=dict)
    """What the paths stand for that are URLs with a secret part, which `paths` lack."""

    @property
    def place(self) -> str:
        """The folder of the table; see `Source.place`."""
        return self.root

    def stamp(self, row: int) -> Stamp | None:
        """Stamp one file; see `Source.stamp`."""
        return stamp_file(os.path.join(self.root, self.paths[row]))  # noqa: PTH118 - fast

    def read(self, row: int) -> bytes:
        """Read the bytes of one file; see `Source.read`."""
        path = self.paths[row]
        if is_url(path):
            return read_url(self.urls.get(path, path), MOST_IMAGE_BYTES)
        return read_file(Path(self.root, path))


@dataclass(frozen=True)
class _Rows:
    """What a manifest says, and on which line: all of length N."""

    file: Path
    paths: list[str]
    labels: list[str]
    splits: list[str]
    numbers: Sequence[int]

    def at(self, row: int) -> str:
        """Say where a row stands."""
        unit = "row" if self.file.suffix.lower() == ".parquet" else "line"
        return f"{unit} {self.numbers[row]:,}"

    def keep(self, rows: Sequence[int]) -> _Rows:
        """Leave out all other rows."""

        def chosen(values: Sequence[str]) -> list[str]:
            return [values[row] for row in rows]

        numbers = [self.numbers[row] for row in rows]
        return _Rows(
            self.file, chosen(self.paths), chosen(self.labels), chosen(self.splits), numbers
        )


def open_manifest(
    path: str | os.PathLike[str],
    *,
    layout: LayoutChoice | None = None,
    base: str | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Source]:
    """Open a table that lists images.

    Paths are relative to the folder of the table or to ``layout.images_root``, or absolute, or
    URLs; relative to the URL `base` where it is given. Names of rows lack the secret part of a URL:
    of several that differ in it alone, the second is ``URL#2``. Labels
    are the names of classes, in natural order; an empty one and -1 are unknown (docs/data.md). A
    path that comes again is left out. A file that is missing is a row that fails when it is read.
    """
    layout = layout or LayoutChoice()
    file = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the links
    if is_url(layout.images_root):
        base, layout = layout.images_root, replace(layout, images_root=None)
    root = _images_root(file, layout)
    rows = _read(file, root, layout, reporter)
    rows = replace(rows, paths=[_address(path, base) for path in rows.paths])
    rows = _without_repeats(rows, reporter)
    _check_files(rows, root)
    class_names, labels = number_labels({"all": rows.labels}, file.name, reporter)
    if len(class_names) < 2:
        raise SourceError(
            f"{file} has {_count(class_names)}, and a classifier needs two: "
            "add images of another class"
        )
    folder = name_of(base) if base else file.parent.name
    is_generic = _GENERIC.fullmatch(file.stem.lower()) and folder
    paths, urls = _named_urls(rows.paths)
    source = ManifestSource(
        name=f"{folder}-{file.stem}" if is_generic else file.stem,
        split="all",
        class_names=class_names,
        labels=labels["all"],
        paths=paths,
        root=str(root),
        urls=urls,
    )
    return divide(source, rows.splits)


def _images_root(file: Path, layout: LayoutChoice) -> Path:
    if layout.images_root is None:
        return file.parent
    word = Path(layout.images_root).expanduser()
    for root in (Path(os.path.abspath(word)), file.parent / word):  # noqa: PTH100
        if root.is_dir():
            return root
    raise UsageError(f"--images-root {word}: there is no such folder")


def _address(path: str, base: str | None) -> str:
    """Give what a path means: a URL or a path on this machine."""
    if base and not is_url(path) and not path.startswith("/"):
        while path.startswith("../"):
            base, path = parent(base), path.removeprefix("../")
        return join(base, path)
    if not is_url(path):
        check_url(path)  # ftp:// and others
    local = local_path(path)
    return path if local is None else str(local)


def _named_urls(paths: Iterable[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Name URLs without what may be secret; and say what the names stand for."""
    n_of: Counter[str] = Counter()
    names, urls = [], {}
    for path in paths:
        name = plain = shown(path)
        n_of[plain] += 1
        if n_of[plain] > 1:
            name = f"{plain}#{n_of[plain]}"
        if name != path:
            urls[name] = path
        names.append(name)
    return tuple(names), urls


def list_paths(path: str | os.PathLike[str]) -> list[Path]:
    """Give the images that a table lists, whatever else it has."""
    file = Path(path)
    columns, numbers = read_numbered_table(file)
    name = _find(file, columns, PATH_NAMES)
    words = columns[name]
    rows = _Rows(Path(os.path.abspath(file)), words, [], [], numbers)  # noqa: PTH100
    root = rows.file.parent
    return [file.parent / word for word in _with_endings(file, root, _cleaned(rows, root))]


def _count(class_names: tuple[str, ...]) -> str:
    return f"one class only ({class_names[0]!r})" if class_names else "no label at all"


def _read(file: Path, root: Path, layout: LayoutChoice, reporter: Reporter) -> _Rows:
    columns, numbers = read_numbered_table(file, reporter)
    if not numbers:
        raise SourceError(f"{file} lists no images")
    path = _named(file, columns, layout, "path") or _find(file, columns, PATH_NAMES)
    label = _named(file, columns, layout, "label")
    named_split = _named(file, columns, layout, "split")
    label = label or find_column(str(file), columns, (*LABEL_NAMES, *_MORE_LABEL_NAMES))
    others = {name: cells for name, cells in columns.items() if name not in (path, label)}
    looked_at = {"split": columns[named_split]} if named_split else others
    split, splits = find_split(looked_at, str(file), reporter) or ("", ["all"] * len(numbers))
    if not split:
        _tell_folders_of_splits(file, columns[path], reporter)
    rest = {n: cells for n, cells in others.items() if n != named_split and repr(n) not in split}
    label, labels = (label, columns[label]) if label else _other_label(file, columns, rest)
    if (path, label, split or "'split'") != ("path", "label", "'split'"):
        split_taken = f", split from {split}" if split else ""
        reporter.say(f"{file.name}: path from {path!r}, label from {label!r}{split_taken}")
    rows = _Rows(file, columns[path], [word.strip() for word in labels], splits, numbers)
    return replace(rows, paths=_with_endings(file, root, _cleaned(rows, root)))


def _named(
    file: Path, columns: dict[str, list[str]], layout: LayoutChoice, what: str
) -> str | None:
    name = layout.column(what)
    if name is not None and name not in columns:
        close = nearest(name, columns)
        there = f"did you mean {' or '.join(close)}?" if close else f"it has {some(columns, 12)}"
        raise UsageError(f"--columns {what}={name}: {file} has no such column: {there}")
    return name


def _other_label(
    file: Path, columns: dict[str, list[str]], rest: dict[str, list[str]]
) -> tuple[str, list[str]]:
    """Take the classes from columns of 0 and 1, or from the only other column."""
    flags = {name: c for name, c in rest.items() if {x.strip() for x in c} <= _ONE | _ZERO}
    if len(flags) > 1:
        return ", ".join(flags), _from_one_hot(file, flags)
    if len(rest) == 1:
        [(name, cells)] = rest.items()
        if 2 * len({*cells}) <= len(cells):  # else captions, or names of files
            return name, cells
    return "", columns[_find(file, columns, LABEL_NAMES)]


def _from_one_hot(file: Path, flags: dict[str, list[str]]) -> list[str]:
    labels = []
    for number, cells in enumerate(zip(*flags.values(), strict=True), 1):
        found = [name for name, x in zip(flags, cells, strict=True) if x.strip() in _ONE]
        if len(found) > 1:
            raise SourceError(
                f"{file}, row {number:,} belongs to {len(found)} classes ({some(found)}): featx "
                "needs one class for each image. Name the column of the class, as in  --columns "
                "label=NAME"
            )
        labels.append(found[0] if found else "")
    return labels


def _with_endings(file: Path, root: Path, paths: list[str]) -> list[str]:
    """Add the ending of each file to paths that have none."""
    if any(_exists(root, path) for path in paths[:_N_TRIED]):
        return paths
    stems: dict[str, dict[str, list[str]]] = {}
    found = []
    for path in paths:
        folder, _, name = path.rpartition("/")
        if folder not in stems:
            stems[folder] = _images_by_stem(root / folder)
        names = stems[folder].get(name, [])
        if len(names) > 1:
            raise SourceError(f"{file}: {path!r} may be {some(names)}: write the whole name")
        found.append(path + names[0][len(name) :] if names else path)
    return found


def _images_by_stem(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with suppress(OSError, ValueError):
        for name in sorted(os.listdir(folder)):  # noqa: PTH208 - fast
            if ending(name) in ENDINGS:
                found.setdefault(name[: -len(ending(name))], []).append(name)
    return found


def _tell_folders_of_splits(file: Path, paths: list[str], reporter: Reporter) -> None:
    """Warn where paths lie in folders of several splits, and no column keeps these apart."""
    folders = {part for folder in set(map(_folder, paths)) for part in folder.split("/")}
    splits = {folder: split for folder in folders if (split := split_of_folder(folder))}
    if len({*splits.values()}) > 1:
        reporter.warn(
            f"{file.name}: no column gives the split, so all images are one set, though they lie "
            f"in {some(sorted(splits))}: add a column  split  to keep these apart"
        )


def _folder(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[0]


def _find(file: Path, columns: dict[str, list[str]], wanted: tuple[str, ...]) -> str:
    found = find_column(str(file), columns, wanted)
    if found is None:
        have = ", ".join(repr(name) for name in list(columns)[:12])
        raise SourceError(f"{file} has no column {wanted[0]!r} but {have}: {_LAYOUT}")
    return found


def _cleaned(rows: _Rows, root: Path) -> list[str]:
    """Write each path in one way only: relative where it can be, with single ``/``."""
    if "" in rows.paths:
        raise SourceError(f"{rows.file}, {rows.at(rows.paths.index(''))}: the path is empty")
    paths = [_tidy(path.removeprefix(f"{root}/")) for path in rows.paths]
    if any("\\" in path for path in paths) and _is_windows(root, paths):
        paths = [path.replace("\\", "/") for path in paths]
    return paths


def _tidy(path: str) -> str:
    is_tidy = is_url(path) or not (path.startswith("./") or "//" in path or "/./" in path)
    return path if is_tidy else str(PurePosixPath(path))


def _is_windows(root: Path, paths: list[str]) -> bool:
    """Tell from the first files whether a backslash separates folders."""
    tried = [path for path in paths if "\\" in path][:_N_TRIED]
    if any(_exists(root, path) for path in tried):
        return False
    return any(_exists(root, path.replace("\\", "/")) for path in tried)


def _exists(root: Path, path: str) -> bool:
    try:
        return (root / path).exists()
    except (OSError, ValueError):
        return False


def _without_repeats(rows: _Rows, reporter: Reporter) -> _Rows:
    first: dict[str, int] = {}
    kept = [row for row, path in enumerate(rows.paths) if first.setdefault(path, row) == row]
    if len(kept) == len(rows.paths):
        return rows
    for row, path in enumerate(rows.paths):
        other = first[path]
        for what, values in (("labels", rows.labels), ("splits", rows.splits)):
            if values[row] != values[other]:
                raise SourceError(
                    f"{rows.file}: {shown(path)!r} has two {what}, {values[other]!r} on "
                    f"{rows.at(other)} and {values[row]!r} on {rows.at(row)}: keep one"
                )
    n_repeats = len(rows.paths) - len(kept)
    reporter.warn(f"{rows.file.name}: {n_repeats:,} paths that come again left out")
    return rows.keep(kept)


def _check_files(rows: _Rows, root: Path) -> None:
    tried = [path for path in rows.paths[:_N_TRIED] if not is_url(path)]
    if not tried or any(_exists(root, path) for path in tried):
        return
    which = "the image" if len(tried) == 1 else f"any of the first {len(tried)} images"
    way = "move the table, correct the paths, or name their folder with --images-root FOLDER"
    if below := _folder_with(root, tried[0]):
        way = f"they are in {below}: add  --images-root {shlex.quote(str(below))}"
    raise SourceError(
        f"{rows.file} names files that are not there: looked for {which} relative to "
        f"{'its folder' if root == rows.file.parent else root}, first at {root / tried[0]}: {way}"
    )


def _folder_with(root: Path, path: str) -> Path | None:
    """Find a folder in the root, or in one of these, that has an image of a table."""
    folders = islice(chain(root.glob("*/"), root.glob("*/*/")), _N_TRIED)
    with suppress(OSError, ValueError):
        for folder in folders:
            if _exists(folder, path) or _with_endings(root, folder, [path]) != [path]:
                return folder
    return None
