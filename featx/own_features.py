"""Caches of features that featx did not compute: arrays of other programs.

Such a cache has labels, paths and digests of images like any other, so that fits, the search for
leaks and comparisons are the same; what it lacks is a network, so that nothing of it can be
computed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from featx.catalog import DEFAULT_FOLDER
from featx.errors import CacheError, UsageError
from featx.feature_files import FeatureFile
from featx.progress import SILENT, Reporter
from featx.sources.base import content_of
from featx.sources.folder import FolderSource
from featx.sources.labels import label_text, number_labels
from featx.sources.splits import SPLIT_ORDER, read_split, split_of
from featx.store import Cache, CacheSpec, CacheWriter, disk
from featx.store.layout import feature_dtype
from featx.store.recognise import name_cache
from featx.store.spec import as_stored

__all__ = [
    "BLOCK_BYTES",
    "SCHEMA",
    "Block",
    "cache_file",
    "check_names",
    "fill_cache",
    "import_features",
    "is_own",
    "plain_record",
    "write_cache",
]

BLOCK_BYTES = 16 << 20
SCHEMA = 1
_NO_VALUES = "no features were given: all its values are NaN"

Block = tuple[int, np.ndarray, dict[int, str]]


def write_cache(  # noqa: PLR0913 - an array each, as the file has them
    X: Any,
    y: Any,
    paths: Sequence[str] | None = None,
    *,
    backbone: str,
    data: str,
    split: str = "all",
    class_names: Sequence[str] | None = None,
    images: str | Path | None = None,
    image_digests: np.ndarray | None = None,
    made_by: str | None = None,
    dtype: str | None = None,
    folder: str | Path = DEFAULT_FOLDER,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> Cache:
    """Make a cache of features that another program computed.

    Parameters
    ----------
    X : array-like of shape (N, D)
        Features, of any type of number: an array, a memory map, an HDF5 dataset. A row of NaN
        alone is an image without features.
    y : array-like of shape (N,)
        Class of each row: names, or numbers. None, NaN, ``""`` and -1 mean that it is not known.
    paths : sequence of N str, optional
        Different names of the images; ``SPLIT/00000`` and so on by default.
    backbone : str
        What the features are called in tables, and by `featx.load`.
    data : str
        Name of the data set. The splits of one data set with the same `backbone` and `made_by`
        are fitted and tested together.
    split : {"all", "train", "val", "test", "unlabeled"}, default="all"
        Which part it is; of ``all``, a part is held out as test images.
    class_names : sequence of str, optional
        All classes, in order; numbers in `y` are positions among them. By default those that come
        in `y`; give them where a split lacks some.
    images : path-like, optional
        Folder that `paths` are relative to. The files are hashed, so that the same image is known
        again in other splits, draws and caches.
    image_digests : ndarray of uint8, shape (N, 32), optional
        SHA-256 of the bytes of each image, in place of `images`; zeros where it is not known.
    made_by : str, optional
        The program or network that made the features; part of what they are.
    dtype : {"float16", "float32"}, optional
        How features are stored: float16 where `X` is that, else float32.
    folder : path-like, default="cache"
        Where the file is written, as ``DATA-SPLIT-BACKBONE.h5``.
    overwrite : bool, default=False
        Replace a cache of other features.
    reporter : Reporter, optional
        Shows the progress.

    Returns
    -------
    Cache
        The finished file, open; nothing is written where it is there already.

    Raises
    ------
    UsageError
        If the parts do not fit together.
    CacheError
        If a value is infinite, or a row partly NaN, or does not fit the stored type; if there is
        another cache of that name, or the disk fails.
    SourceError
        If an image is missing under `images`.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> X, y = np.random.default_rng(0).normal(size=(6, 4)), ["cat", "dog"] * 3
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = write_cache(X, y, backbone="clip", data="pets", folder=folder)
    ...     cache.class_names, cache.X[:2].shape
    (['cat', 'dog'], (2, 4))
    """
    X = _numbers(X)
    check_names(backbone=backbone, data=data)
    split = read_split(split)
    n = X.shape[0]
    names, labels = _labels(y, n, class_names, f"y of {data}", reporter)
    given = paths is not None
    paths = [str(path) for path in paths] if paths is not None else _numbered(split, n)
    if len(paths) != n or len(set(paths)) != n:
        raise UsageError(f"paths must be {n:,} different names, one for each row of X")
    digests = _digests(image_digests, n)
    if images is not None:
        if not given or image_digests is not None:
            raise UsageError("images needs paths, and takes the place of image_digests")
        digests = _hashed(images, paths, labels, names, (data, split), reporter)
    stored = feature_dtype(dtype or ("float16" if X.dtype == np.float16 else "float32"))
    blocks = _Blocks(X, stored)
    identity = {
        "schema": SCHEMA,
        "source": {
            "content": _content(digests, paths, labels, names),
            "n_images": n,
            "class_names": list(names),
            "values_sha256": blocks.digest(),
        },
        "own_features": {"name": backbone, "made_by": made_by, "n_features": int(X.shape[1])},
        "store_dtype": stored.name,
    }
    meta = plain_record(data, split, backbone, int(X.shape[1]), stored.name) | {"made_by": made_by}
    spec = CacheSpec(identity, meta, labels, names, paths, int(X.shape[1]), stored.name, digests)
    target = cache_file(folder, data, split, backbone)
    return fill_cache(target, spec, blocks, overwrite=overwrite, reporter=reporter)


def _numbers(X: Any) -> Any:
    X = X if hasattr(X, "shape") and hasattr(X, "dtype") else np.asarray(X)
    if len(X.shape) != 2 or not all(X.shape) or np.dtype(X.dtype).kind not in "fiub":
        raise UsageError(f"X must be numbers of shape (N, D), not {X.dtype} {tuple(X.shape)}")
    return X


def _digests(given: np.ndarray | None, n: int) -> np.ndarray:
    digests = np.zeros((n, 32), np.uint8) if given is None else np.asarray(given)
    if digests.shape != (n, 32) or digests.dtype != np.uint8:
        raise UsageError(f"image_digests must be uint8 of shape ({n}, 32)")
    return digests


def is_own(identity: Mapping[str, Any]) -> bool:
    """Whether features were not computed by a backbone of featx, by what made them."""
    return "own_features" in identity or "side_by_side" in identity


def import_features(
    found: FeatureFile, *, data: str, split: str | None = None, **options: Any
) -> Iterator[Cache]:
    """Make a cache of each split of a file of features."""
    if found.labels is None:
        raise UsageError(
            "the file has no labels: name their array or file with --labels, as in  "
            "--labels labels.npy"
        )
    if split is not None or found.splits is None:
        yield write_cache(
            found.X,
            found.labels,
            found.paths,
            data=data,
            split=split or "all",
            class_names=found.class_names,
            **options,
        )
        return
    n = len(found.splits)
    reporter = options.get("reporter", SILENT)
    names, labels = _labels(found.labels, n, found.class_names, f"labels of {data}", reporter)
    word_of = {str(word): split_of(str(word)) for word in found.splits}
    if unknown := [word for word, split in word_of.items() if split is None]:
        raise UsageError(
            f"the split {unknown[0]!r} is unknown: choose from {', '.join(SPLIT_ORDER[:-1])}, or "
            "give one --split for all rows"
        )
    of_row = np.array([word_of[str(word)] for word in found.splits])
    for each in SPLIT_ORDER:
        rows = np.flatnonzero(of_row == each)
        if len(rows):
            yield write_cache(
                _Taken(found.X, rows),
                labels[rows],
                None if found.paths is None else [found.paths[row] for row in rows.tolist()],
                data=data,
                split=each,
                class_names=names,
                **options,
            )


def fill_cache(
    target: Path, spec: CacheSpec, blocks: Iterable[Block], *, overwrite: bool, reporter: Reporter
) -> Cache:
    """Write the rows that a cache file lacks; blocks come in order."""
    with CacheWriter.open(target, spec, overwrite=overwrite, reporter=reporter) as writer:
        missing = writer.missing()
        for notice in writer.notices:
            reporter.say(notice)
        label = f"{target.name}"
        with reporter.bar(spec.n_rows, label, "row", initial=int((~missing).sum())) as bar:
            for start, rows, failed in blocks if missing.any() else ():
                lacking = np.flatnonzero(missing[start : start + len(rows)])
                if len(lacking):  # a run that was interrupted left whole rows from the start on
                    at = int(lacking[0])
                    reasons = {row: why for row, why in failed.items() if row >= start + at}
                    writer.write(start + at, rows[at:], reasons)
                bar.update(len(lacking))
        writer.finish()
    return Cache.open(target)


class _Blocks:
    """Rows of an array as they are stored, some at a time, as often as they are asked for."""

    def __init__(self, X: Any, dtype: np.dtype[Any]) -> None:
        self._X, self._dtype = X, dtype
        self._height = max(1, BLOCK_BYTES // (4 * X.shape[1]))

    def __iter__(self) -> Iterator[Block]:
        for start in range(0, self._X.shape[0], self._height):
            rows = np.asarray(self._X[start : start + self._height])
            rows = rows if rows.dtype.kind == "f" else rows.astype(np.float64)
            empty = np.flatnonzero(np.isnan(rows).all(axis=1)) + start
            failed = dict.fromkeys(empty.tolist(), _NO_VALUES)
            yield start, self._stored(rows, start, failed), failed

    def _stored(self, rows: np.ndarray, start: int, failed: Mapping[int, str]) -> np.ndarray:
        is_bad = ~np.isfinite(rows).all(axis=1)
        is_bad[[row - start for row in failed]] = False
        if is_bad.any():
            raise CacheError(
                f"row {start + int(np.flatnonzero(is_bad)[0])} of X holds NaN or infinity: give "
                "finite values, or a row of NaN alone for an image without features"
            )
        return as_stored(rows, self._dtype, start, failed)

    def digest(self) -> str:
        """SHA-256 of all values as they are stored; a row that failed counts as NaN."""
        state = hashlib.sha256()
        for _, rows, _ in self:
            state.update(disk.bytes_of(rows))
        return state.hexdigest()


class _Taken:
    """Some rows of an array, in order, read when they are asked for."""

    def __init__(self, X: Any, rows: np.ndarray) -> None:
        self._X, self._rows = X, rows
        self.shape, self.dtype = (len(rows), X.shape[1]), X.dtype

    def __getitem__(self, which: slice) -> np.ndarray:
        return np.asarray(self._X[self._rows[which]])


def plain_record(data: str, split: str, name: str, n_features: int, dtype: str) -> dict[str, Any]:
    """Give what every cache records, here without a network or a command to be given again."""
    return {
        "data": data,
        "split": split,
        "sample": None,
        "backbone": name,
        "weights": {"label": ""},
        "layer": "imported",
        "pool": "none",
        "input_size": 0,
        "n_features": n_features,
        "precision": "",
        "store_dtype": dtype,
        "versions": {name: version(name) for name in ("featx", "numpy", "h5py")},
        "request": {},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _labels(
    y: Any, n: int, class_names: Sequence[str] | None, where: str, reporter: Reporter
) -> tuple[tuple[str, ...], np.ndarray]:
    values = list(y.tolist() if hasattr(y, "tolist") else y)
    if len(values) != n:
        raise UsageError(f"y must have {n:,} entries, one for each row of X, not {len(values):,}")
    texts = [label_text(_plain(value)) for value in values]
    if None in texts:
        wrong = values[texts.index(None)]
        raise UsageError(f"y must hold names or numbers of classes, not {type(wrong).__name__}")
    known = [text for text in texts if text is not None]
    found, numbers = number_labels({where: known}, where, reporter)
    if class_names is None:
        return found, numbers[where]
    names = tuple(str(name) for name in class_names)
    if len(set(names)) != len(names):
        raise UsageError("class_names must be different")
    index = {name: i for i, name in enumerate(names)}
    if not set(found) <= set(names) and all(name.isdecimal() for name in found):
        index = {str(i): i for i in range(len(names))}
    if lost := [name for name in found if name not in index]:
        raise UsageError(f"y has the class {lost[0]!r}, which class_names ({len(names)}) lacks")
    places = np.array([*(index[name] for name in found), -1], np.int64)
    return names, places[numbers[where]]


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _hashed(
    images: str | Path,
    paths: Sequence[str],
    labels: np.ndarray,
    names: tuple[str, ...],
    of: tuple[str, str],
    reporter: Reporter,
) -> np.ndarray:
    root = Path(images).absolute()
    lost = [path for path in paths if not (root / path).is_file()]
    if lost:
        shown = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
        raise UsageError(
            f"{len(lost):,} of {len(paths):,} images are not in {root}: {shown}. Paths must be "
            "relative to the folder of the images"
        )
    source = FolderSource(
        name=of[0],
        split=of[1],
        class_names=names,
        labels=labels,
        paths=tuple(paths),
        root=str(root),
    )
    return source.image_digests(reporter=reporter)


def _content(
    digests: np.ndarray, paths: Sequence[str], labels: np.ndarray, names: Sequence[str]
) -> str:
    """Content of images and classes; an image that is not known counts by its path."""
    known = digests.copy()
    for row in np.flatnonzero(~digests.any(axis=1)).tolist():
        name = hashlib.sha256(b"path " + _bytes(paths[row])).digest()
        known[row] = np.frombuffer(name, np.uint8)
    return content_of(known, labels, names)


def _bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogatepass")


def _numbered(split: str, n: int) -> list[str]:
    return [f"{split}/{row:0{max(5, len(str(n - 1)))}}" for row in range(n)]


def check_names(**names: str) -> None:
    """Refuse what names neither a file nor a line of a table."""
    for what, name in names.items():
        if not name.strip() or "\n" in name or "\0" in name:
            raise UsageError(f"{what} must be a name, as in  clip-vit-b32, not {name!r}")


def cache_file(folder: str | Path, data: str, split: str, name: str) -> Path:
    """Name a cache file as an extraction does."""
    return name_cache(folder, (data, split, name))
