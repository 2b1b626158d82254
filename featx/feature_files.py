"""Files of features that other programs wrote: npz, npy, Parquet, HDF5; nothing in them is run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx.errors import MissingExtraError, SourceError, UsageError, unknown_name
from featx.memory import available_bytes
from featx.sources.tables import TABLE_ENDINGS, find_column, read_table
from featx.store.layout import ENCODING_TYPE

__all__ = ["FeatureFile", "open_features"]

_FEATURES = ("features", "x", "embeddings", "embedding", "feats", "feature")
_LABELS = ("labels", "label", "y", "targets", "target", "class_name", "class")
_PATHS = ("paths", "path", "file", "files", "filename", "filenames", "image")
_SPLITS = ("split", "splits", "subset", "partition")
_CLASSES = ("class_names", "classes")
_NAMED = "class_name"
_ENDINGS = (".npz", ".npy", ".parquet", ".h5", ".hdf5")
_TEXT_KINDS = "SUO"
_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class FeatureFile:
    """What a file holds; each row is an image."""

    X: Any
    labels: Sequence[Any] | None = None
    paths: Sequence[str] | None = None
    splits: Sequence[str] | None = None
    class_names: Sequence[str] | None = None


@contextmanager
def open_features(
    path: Path,
    *,
    features: str | None = None,
    labels: str | None = None,
    paths: str | None = None,
    splits: str | None = None,
) -> Iterator[FeatureFile]:
    """Open a file of features."""
    kind = path.suffix.lower()
    if kind not in _ENDINGS:
        raise UsageError(f"{path} is none of {', '.join(_ENDINGS)}: save the features as one")
    if not path.is_file():
        raise SourceError(f"there is no file {path}")
    named = {"labels": labels, "paths": paths, "splits": splits}
    in_groups = [name for name in (features, *named.values()) if name and "/" in name]
    readers = {".npz": _open_npz, ".npy": _open_npy, ".parquet": _open_parquet}
    with readers[kind](path) if kind in readers else _open_hdf5(path, in_groups) as arrays:
        yield _found(path, arrays, features, named)


def _found(
    path: Path, arrays: Mapping[str, Any], features: str | None, named: Mapping[str, str | None]
) -> FeatureFile:
    matrices = [name for name, array in arrays.items() if len(array.shape) == 2]
    by_name = features is None and find_column(str(path), matrices, _FEATURES)
    by_name = by_name or _pick(path, arrays, features, _FEATURES)
    X = arrays[by_name or _only_matrix(path, arrays, matrices)]
    if len(X.shape) != 2:
        raise SourceError(f"the features of {path} have the shape {tuple(X.shape)}, not (N, D)")
    n = X.shape[0]
    usual = {"labels": _LABELS, "paths": _PATHS, "splits": _SPLITS}
    columns = {what: _column(path, arrays, what, named[what], usual[what], n) for what in usual}
    classes = _pick(path, arrays, None, _CLASSES)
    names = None
    if classes is not None and not named["labels"]:
        names = _values(f"{path}: {classes}", arrays[classes], None)
    return FeatureFile(X=X, class_names=names, **columns)


def _pick(
    path: Path, arrays: Mapping[str, Any], name: str | None, usual: Sequence[str]
) -> str | None:
    if name is None:
        return find_column(str(path), arrays, usual)
    if name not in arrays:
        raise unknown_name(f"file, or array of {path.name},", name, arrays)
    return name


def _only_matrix(path: Path, arrays: Mapping[str, Any], matrices: Sequence[str]) -> str:
    if len(matrices) != 1:
        has = [f"{name} {tuple(array.shape)}" for name, array in arrays.items()]
        shown = ", ".join(has[:_SHOWN]) + (", ..." if len(has) > _SHOWN else "")
        raise SourceError(
            f"{path} has no array of features, it has {shown or 'nothing'}: give --features NAME"
        )
    return matrices[0]


def _column(
    path: Path,
    arrays: Mapping[str, Any],
    what: str,
    name: str | None,
    usual: Sequence[str],
    n: int,
) -> Sequence[Any] | None:
    if name is not None and name not in arrays and Path(name).is_file():
        values = _read_column(Path(name), usual)
    elif (found := _pick(path, arrays, name, usual)) is None:
        return None
    else:
        return _values(f"{path}: {found}", arrays[found], n)
    if len(values) != n:
        raise SourceError(f"{name}: {len(values):,} {what} for {n:,} rows of features")
    return values


def _values(where: str, array: Any, n: int | None) -> list[Any]:
    """Read an array of one dimension, of `n` entries where a number is given."""
    if len(array.shape) != 1 or n not in (None, array.shape[0]):
        shape = tuple(array.shape)
        raise SourceError(f"{where} has the shape {shape}: it must be ({'N' if n is None else n},)")
    values = np.asarray(array)
    return _texts(values) if values.dtype.kind in _TEXT_KINDS else list(values.tolist())


def _read_column(file: Path, usual: Sequence[str]) -> Sequence[Any]:
    """Read a file that holds nothing but a column, or a table that has it."""
    if file.suffix.lower() == ".npy":
        with _open_npy(file) as arrays:
            (array,) = arrays.values()
            return _values(str(file), array, None)
    if file.suffix.lower() in TABLE_ENDINGS:
        table = read_table(file)
        column = find_column(str(file), table, usual)
        if column is None:
            raise SourceError(f"{file} has no column {usual[0]}: it has {', '.join(table)}")
        return table[column]
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
        return lines[:-1] if lines[-1] == "" else lines
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"cannot read {file} as UTF-8 text: {error}") from error


def _texts(values: Iterable[Any]) -> list[Any]:
    return [v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else v for v in values]


@contextmanager
def _open_npy(path: Path) -> Iterator[Mapping[str, Any]]:
    with _read_as(path, "an array of NumPy"), np.errstate(over="ignore"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    yield {"features": array}


@contextmanager
def _open_npz(path: Path) -> Iterator[Mapping[str, Any]]:
    with (
        _read_as(path, "arrays of NumPy"),
        path.open("rb") as stream,
        np.load(stream, allow_pickle=False) as archive,
    ):
        sizes = sum(item.file_size for item in archive.zip.infolist())
        _require_memory(path, sizes)
        arrays = {}
        for name in archive.files:
            with _read_as(f"{path}: {name}", "an array of NumPy"):
                arrays[name] = archive[name]
    yield arrays


@contextmanager
def _open_parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet", f"reading {path.name}") from error
    with _read_as(path, "a Parquet file"):
        meta = pq.read_metadata(path)
        groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
        _require_memory(path, sum(group.total_byte_size for group in groups))
        table = pq.read_table(path)
        lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        arrays: dict[str, Any] = {}
        for name in table.column_names:
            column = table[name].combine_chunks()
            if any(is_list(column.type) for is_list in lists):
                arrays[name] = _matrix(path, name, column)
            elif not pa.types.is_nested(column.type):
                arrays[name] = np.array(column.to_pylist(), object)
    yield _named_first(arrays)


def _matrix(path: Path, name: str, column: Any) -> np.ndarray:
    """Stack lists of one length."""
    n = len(column)
    flat = column.flatten()
    width = len(flat) // n if n else 0
    lengths = {len(column[i]) if column[i].is_valid else None for i in range(n)}
    if lengths - {width} or column.null_count or flat.null_count:
        raise SourceError(f"{path}: lists of the column {name!r} differ in length, or are missing")
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(n, width)


@contextmanager
def _open_hdf5(path: Path, in_groups: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    import h5py

    with _read_as(path, "an HDF5 file"):
        file = h5py.File(path, "r")
    with file:
        if file.attrs.get("encoding-type") in (ENCODING_TYPE, ENCODING_TYPE.encode()):
            raise UsageError(f"{path} is a cache of featx already: copy it into the cache folder")
        with _read_as(path, "an HDF5 file"):
            found = {name: _inside(file, name) for name in (*file, *in_groups)}
            arrays = {name: d for name, d in found.items() if isinstance(d, h5py.Dataset)}
            groups = [name for name, d in found.items() if isinstance(d, h5py.Group)]
        if outside := [n for n, d in arrays.items() if d.is_virtual or d.external]:
            raise SourceError(
                f"{path}: {', '.join(outside)} lie in other files, which are not opened: write "
                "the values themselves into the file"
            )
        arrays = {name: d for name, d in arrays.items() if d.shape}
        if groups and not arrays:
            raise SourceError(
                f"{path} has its arrays in groups ({', '.join(groups[:_SHOWN])}): name them with "
                f"the group, as in  --features {groups[0]}/features --labels {groups[0]}/labels"
            )
        yield arrays


def _inside(file: Any, name: str) -> Any:
    """Give what lies in an HDF5 file itself, along hard links; None where nothing does."""
    import h5py

    item = file
    for part in filter(None, name.split("/")):
        is_here = isinstance(item, h5py.Group) and part in item
        if not is_here or not isinstance(item.get(part, getlink=True), h5py.HardLink):
            return None
        item = item[part]
    return item


def _named_first(arrays: dict[str, Any]) -> dict[str, Any]:
    """Put the column of class names, which says more than their numbers, in the labels' place."""
    if _NAMED in arrays and {"label", "labels"} & arrays.keys():
        return {name: a for name, a in arrays.items() if name not in ("label", "labels")}
    return arrays


@contextmanager
def _read_as(path: Path | str, what: str) -> Iterator[None]:
    """Say in words that a file is no such file, whatever its reader raises."""
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        if "allow_pickle" in reason:  # also of a file that is no array at all
            reason = (
                "it holds Python objects, which are never loaded: save texts or numbers, as in  "
                "np.array(values.tolist())"
            )
        raise SourceError(f"{path} cannot be read as {what}: {reason}") from error


def _require_memory(path: Path, n_bytes: int) -> None:
    if n_bytes > available_bytes():
        raise SourceError(
            f"{path} holds {n_bytes / 1e9:.1f} GB of values, and {available_bytes() / 1e9:.1f} GB "
            "of memory are available: save the features as .npy or .h5, which are read in parts"
        )
