"""From what a person types after ``--data`` to the splits of a data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from featx.errors import SourceError, UsageError, nearest, unknown_name
from featx.progress import SILENT, Reporter
from featx.sources.archives import (
    ARCHIVE_ENDINGS,
    is_archive,
    is_pattern,
    is_webdataset,
    open_archive,
    open_pattern,
    open_webdataset,
)
from featx.sources.base import Source
from featx.sources.beside import check_tables, tables_in
from featx.sources.chosen import LayoutChoice
from featx.sources.folder import ENDINGS, DiskTree, open_folder
from featx.sources.hub import HUB, fetch_dataset, is_hub_dataset, open_hub
from featx.sources.manifest import open_manifest
from featx.sources.official import is_official, open_official
from featx.sources.places import default_data_dir
from featx.sources.remote import open_url_folder
from featx.sources.tables import TABLE_ENDINGS
from featx.sources.torchvision_sets import SETS, open_digits, open_torchvision
from featx.sources.transfer import fetch_file
from featx.sources.tree import View, some
from featx.urls import check_url, is_url, local_path, name_of, parent

__all__ = ["FORMS", "available_data", "open_data"]

_FILE_ENDINGS = (*TABLE_ENDINGS, *ARCHIVE_ENDINGS)
_DIGITS = "1,797 handwritten digits of 8 x 8, 10 classes (part of scikit-learn)"

FORMS = {
    "FOLDER": "class-per-folder tree, with or without train/, val/ and test/ above",
    "FILE.csv|.tsv|.jsonl|.parquet": "manifest: columns path, label and perhaps split",
    "FILE.zip|.tar|.tar.gz": "archive with such a tree, read in place",
    "'train-{0000..0099}.tar'": "WebDataset shards, or a folder of them",
    "FOLDER|FILE.parquet": "Hugging Face data: save_to_disk, or Parquet with images",
    "s3://, gs://, http(s)://": "a folder, a manifest, an archive or shards behind a URL",
    "hf://OWNER/NAME": "data set of the Hugging Face Hub, fetched once",
    "FOLDER with *_batch, *.bin": "official files of CIFAR-10, CIFAR-100 or STL-10",
}
"""What `open_data` takes beside names, with a description of one line each."""


def available_data() -> dict[str, str]:
    """List the built-in data sets."""
    return {name: known.description for name, known in SETS.items()} | {"digits": _DIGITS}


def open_data(
    spec: str | os.PathLike[str],
    *,
    layout: LayoutChoice | None = None,
    wanted: Collection[str] = (),
    data_dir: Path | None = None,
    download: bool = True,
    reporter: Reporter = SILENT,
) -> dict[str, Source]:
    """Open a built-in data set, or one that lies in a folder, an archive or a table.

    Parameters
    ----------
    spec : str or path-like
        A name of `available_data`, ``hf://owner/name`` (a data set of the Hugging Face Hub, see
        `fetch_dataset`), a URL (``s3://``, ``gs://``, ``http://``, ``https://``, ``file://``) of
        what a path may be, or a path: a folder with a folder for each class
        (`open_folder`), a manifest (`open_manifest`), an archive (`open_archive`),
        WebDataset shards (`open_webdataset`), data of Hugging Face (`open_hub`) or the official
        files of CIFAR or STL-10 (`open_official`). A name wins over a folder that is called
        the same; ``./name`` or a `Path` means the folder. Where a folder has class folders with
        images and something else that could be read, the class folders are, with a warning.
    layout : LayoutChoice, optional
        Where in a folder or an archive of folders the splits and classes are, in place of what
        is recognised: ``LayoutChoice(train_folder="training_set", test_folder="test_set")``.
    wanted : collection of str, optional
        The splits that are needed: if others of a folder or an archive cannot be read, they are
        left out, with a warning.
    data_dir : Path, optional
        Where built-in data sets, and compressed archives unpacked, are kept;
        `default_data_dir` if not given.
    download : bool, default=True
        Whether a built-in data set may be downloaded.
    reporter : Reporter, optional
        Is told about downloads and about files that are left out.

    Returns
    -------
    dict of str to Source
        The splits, in the order train, val, test, unlabeled, or ``"all"`` alone; all with
        the same `class_names`.

    Raises
    ------
    UsageError
        If `spec` is neither a name nor a path, or has no folders and `layout` names some.
    SourceError
        If the data are missing, damaged, or not laid out as featx reads them.

    Examples
    --------
    >>> {split: len(source) for split, source in open_data("digits").items()}
    {'train': 1201, 'test': 596}
    """
    folder = default_data_dir() if data_dir is None else data_dir
    check_url(spec)
    if is_url(spec):
        return _open_url(spec, layout, wanted, folder, reporter)
    path, is_known = Path(spec).expanduser(), isinstance(spec, str) and spec in available_data()
    _check_choice(spec, path, layout or LayoutChoice(), is_known)
    if is_known:
        if path.is_dir():
            reporter.say(f"{spec}: the built-in data set (for the folder, say ./{spec})")
        known = partial(open_torchvision, str(spec), folder, download=download, reporter=reporter)
        return open_digits() if spec == "digits" else known()
    if isinstance(spec, str) and _looks_like_a_name(spec):
        error = unknown_name("data set", spec, available_data(), see="featx list data")
        raise UsageError(f"{error}; and there is no folder {spec!r}")
    if layout and layout.is_of_table:
        return open_manifest(path, layout=layout, reporter=reporter)
    other = None if layout else _other_form(path, folder)
    if path.is_dir() and (other is None or _has_class_folders(path)):
        return _open_folder(path, layout, wanted, other is not None, reporter)
    if other is None and path.is_file() and is_archive(path):
        return open_archive(path, layout=layout, wanted=wanted, data_dir=folder, reporter=reporter)
    if path.is_dir() and next(View(DiskTree(path), ENDINGS).images(""), ""):
        reporter.say(f"{path}: images that lie in it as single files not read")
    return (other or _opener(path))(path, reporter=reporter)


def _open_url(
    url: str,
    layout: LayoutChoice | None,
    wanted: Collection[str],
    data_dir: Path,
    reporter: Reporter,
) -> dict[str, Source]:
    """Open data behind a URL: tables and archives are fetched whole, images as they are needed."""
    opened = partial(open_data, layout=layout, wanted=wanted, data_dir=data_dir, reporter=reporter)
    if url.startswith(HUB):
        place, name = fetch_dataset(url, reporter)
        return {split: replace(source, name=name) for split, source in opened(place).items()}
    if (path := local_path(url)) is not None:
        return opened(path)
    if is_pattern(url):
        return open_pattern(url, reporter=reporter)
    name = name_of(url).lower()
    if name.endswith(_FILE_ENDINGS):
        file = fetch_file(url, data_dir, reporter=reporter)
        if name.endswith(TABLE_ENDINGS) and not is_hub_dataset(file):
            return open_manifest(file, layout=layout, base=parent(url), reporter=reporter)
        return opened(file)
    return open_url_folder(url, layout=layout, wanted=wanted, reporter=reporter)


def _check_choice(
    spec: str | os.PathLike[str], path: Path, layout: LayoutChoice, is_known: bool
) -> None:
    """Refuse what is said about folders of a table, or about a table that is none."""
    if layout.has_folders and (is_known or (path.is_file() and not is_archive(path))):
        raise UsageError(
            f"{spec} is neither a folder nor an archive of folders: leave out --train-folder, "
            "--val-folder, --test-folder and --classes-at"
        )
    if layout.is_of_table and (is_known or path.suffix.lower() not in TABLE_ENDINGS):
        raise UsageError(f"{spec} is no table: leave out --images-root and --columns")


def _looks_like_a_name(spec: str) -> bool:
    if not spec:
        return True
    return not any(mark in spec for mark in "/\\~{") and not Path(spec).exists()


def _other_form(path: Path, data_dir: Path) -> Callable[..., dict[str, Source]] | None:
    """Choose what reads a path that may be neither class folders nor an archive of them."""
    if is_webdataset(path):
        return partial(open_webdataset, data_dir=data_dir)
    if path.is_dir() and is_official(path):
        return open_official
    return open_hub if is_hub_dataset(path) else None


def _open_folder(
    path: Path,
    layout: LayoutChoice | None,
    wanted: Collection[str],
    is_other: bool,
    reporter: Reporter,
) -> dict[str, Source]:
    """Open class folders, and say which data beside them are not read."""
    files = [entry.name for entry in DiskTree(path).entries("") if entry.kind == "file"]
    beside = sorted(name for name in files if name.lower().endswith(_FILE_ENDINGS))
    try:
        found = open_folder(path, layout=layout, wanted=wanted, reporter=reporter)
    except SourceError as error:
        tables = [table.relative_to(path).as_posix() for table in tables_in(path)]
        if readable := sorted({*beside, *tables}):
            error.add_note(f"to read {some(readable)} in it, give the file after --data")
        raise
    if not layout:
        check_tables(path.absolute(), found, reporter)
    if is_other:
        names = some(beside) if beside else "other data"
        reporter.warn(f"{path}: the class folders are read, and not {names} beside them")
    elif beside:
        reporter.say(f"{path}: {some(beside)} beside the class folders not read")
    return found


def _has_class_folders(path: Path) -> bool:
    """Whether at least two folders have images: a single one may be a preview of other data."""
    view = View(DiskTree(path), ENDINGS)
    holding = (prefix for prefix in view.below("") if prefix and view.n_images(prefix))
    return len([*islice(holding, 2)]) == 2


def _opener(path: Path) -> Callable[..., dict[str, Source]]:
    """Choose what reads a table; or say why nothing reads a path."""
    if path.is_file() and path.suffix.lower() in TABLE_ENDINGS:
        return open_manifest
    if path.is_file():
        raise SourceError(
            f"{str(path)!r} is a file that featx cannot read as data: a manifest ends in "
            f"{', '.join(TABLE_ENDINGS)}, an archive in {', '.join(ARCHIVE_ENDINGS)}; "
            "otherwise give a folder"
        )
    if path.name.lower().endswith(_FILE_ENDINGS):
        raise SourceError(f"no file {str(path)!r}: check its name and folder")
    close = nearest(path.name, available_data())
    hints = [f"the built-in data set {' or '.join(close)}"] if close else []
    if len(path.parts) == 2 and not path.is_absolute() and not path.parent.exists():
        hints.append(f"{HUB}{path.as_posix()} of the Hugging Face Hub")
    if hints:
        raise SourceError(f"no folder {str(path)!r}: did you mean {', or '.join(hints)}?")
    return open_folder
