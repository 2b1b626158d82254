"""Where images come from: built-in data sets and folders, all behind `Source`."""

from __future__ import annotations

import os
from pathlib import Path

from featx.errors import SourceError, UsageError, nearest, unknown_name
from featx.progress import SILENT, Reporter
from featx.sources.base import ArraySource, Source
from featx.sources.digits import open_digits
from featx.sources.folder import FolderSource, open_folder
from featx.sources.places import default_data_dir
from featx.sources.select import ClassChoice
from featx.sources.torchvision_sets import SETS, open_torchvision

__all__ = [
    "ArraySource",
    "ClassChoice",
    "FolderSource",
    "Source",
    "available_data",
    "default_data_dir",
    "open_data",
]

_DIGITS = "1,797 handwritten digits of 8 x 8, 10 classes (part of scikit-learn)"


def available_data() -> dict[str, str]:
    """List the built-in data sets.

    Returns
    -------
    dict of str to str
        A description of one line for each name that `open_data` takes.
    """
    return {name: known.description for name, known in SETS.items()} | {"digits": _DIGITS}


def open_data(
    spec: str | os.PathLike[str],
    *,
    data_dir: Path | None = None,
    download: bool = True,
    reporter: Reporter = SILENT,
) -> dict[str, Source]:
    """Open a built-in data set or a folder of images.

    Parameters
    ----------
    spec : str or path-like
        A name of `available_data`, or a folder (see `open_folder`). A name
        wins over a folder that is called the same; ``./name`` or a `Path` means the folder.
    data_dir : Path, optional
        Where built-in data sets are kept; `default_data_dir` if not given.
    download : bool, default=True
        Whether a built-in data set may be downloaded.
    reporter : Reporter, optional
        Is told about downloads and about files that are left out.

    Returns
    -------
    dict of str to Source
        The splits, in the order train, val, test, or ``"all"`` alone; all with the same
        `class_names`.

    Raises
    ------
    UsageError
        If `spec` is neither a name nor a path.
    SourceError
        If the data are missing, damaged, or not laid out as featx reads them.

    Examples
    --------
    >>> {split: len(source) for split, source in open_data("digits").items()}
    {'train': 1201, 'test': 596}
    """
    if isinstance(spec, str) and spec in available_data():
        if Path(spec).is_dir():
            reporter.say(f"{spec}: the built-in data set (for the folder, say ./{spec})")
        if spec == "digits":
            return open_digits()
        folder = default_data_dir() if data_dir is None else data_dir
        return open_torchvision(spec, folder, download=download, reporter=reporter)
    if isinstance(spec, str) and _looks_like_a_name(spec):
        error = unknown_name("data set", spec, available_data(), see="featx list data")
        raise UsageError(f"{error}; and there is no folder {spec!r}")
    path = Path(spec).expanduser()
    close = nearest(path.name, available_data())
    if close and not path.exists():
        raise SourceError(
            f"no folder {str(path)!r}: did you mean the built-in data set {' or '.join(close)}?"
        )
    return open_folder(path, reporter=reporter)


def _looks_like_a_name(spec: str) -> bool:
    if not spec:
        return True
    return not any(mark in spec for mark in "/\\~") and not Path(spec).exists()
