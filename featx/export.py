"""Copies of cached features for other programs: npz, Parquet, TensorBoard's projector.

Rows stream from the cache, so that memory stays flat however large it is. The
new file or folder appears whole or not at all.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from featx.errors import CacheError, MissingExtraError, UsageError, unknown_name
from featx.progress import SILENT, Reporter
from featx.store import Cache, disk, layout, open_any
from featx.store.features import FeatureArray
from featx.store.new_file import PROJECTOR_FILES, file_beside, folder_beside
from featx.text import as_utf8

__all__ = ["FORMATS", "ExportReport", "export_cache", "exported_path"]

FORMATS: Final = {"npz": ".npz", "parquet": ".parquet", "projector": ".projector"}
_BLOCK_BYTES: Final = 8 << 20
_ROW_GROUP_BYTES: Final = 64 << 20
_NAMES_IN_BLOCK: Final = 16_384
# Enough digits that the text reads back as the stored value.
_DIGITS: Final = {"float16": "%.5g", "float32": "%.9g"}
_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # equal features give equal files


@dataclass(frozen=True)
class ExportReport:
    """What was exported."""

    path: Path
    n_rows: int
    n_left_out: int
    n_bytes: int


@dataclass(frozen=True)
class _Selection:
    cache: Cache
    features: FeatureArray
    rows: np.ndarray
    reporter: Reporter

    @property
    def row_bytes(self) -> int:
        return self.features.shape[1] * self.features.dtype.itemsize

    def blocks(self, block_bytes: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Give row numbers and their features, a few at a time."""
        n = max(1, block_bytes // self.row_bytes)
        with self.reporter.bar(len(self.rows), f"export {self.cache.path.name}", "row") as bar:
            for start in range(0, len(self.rows), n):
                rows = self.rows[start : start + n]
                yield rows, self.features[rows]
                bar.update(len(rows))

    def paths(self, rows: np.ndarray) -> list[str]:
        paths = self.cache.paths
        return [paths[row] for row in rows.tolist()]

    def classes(self, rows: np.ndarray) -> list[str | None]:
        """Class names; None where the class is not known."""
        names = self.cache.class_names
        return [names[i] if i >= 0 else None for i in self.cache.labels[rows].tolist()]


def exported_path(source: str | os.PathLike[str], format: str) -> Path:
    """Where `export_cache` writes by default: beside the cache."""
    return Path(source).with_suffix(FORMATS[format])


def export_cache(  # noqa: PLR0913 - options of a command, all by name
    source: str | os.PathLike[str],
    format: str,
    target: str | os.PathLike[str] | None = None,
    *,
    rows: slice | Sequence[int] | np.ndarray | None = None,
    dtype: Any = None,
    keep_failed: bool = False,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> ExportReport:
    """Write the features of a cache in another format."""
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    out = Path(exported_path(source, format) if target is None else target)
    with open_any(source) as cache:
        chosen = _chosen(cache, rows)
        good = chosen if keep_failed else chosen[cache.status[chosen] == layout.DONE]
        if len(good) == 0:
            raise CacheError(f"{cache.path}: none of the {len(chosen):,} rows has features")
        selection = _Selection(cache, _typed(cache, format, dtype), good, reporter)
        if format == "projector":
            with folder_beside(out, PROJECTOR_FILES, overwrite=overwrite) as folder:
                _write_projector(selection, folder)
        else:
            _write_file(selection, format, out, overwrite=overwrite)
    files = list(out.iterdir()) if out.is_dir() else [out]
    n_bytes = sum(path.stat().st_size for path in files)
    return ExportReport(out, len(good), len(chosen) - len(good), n_bytes)


def _typed(cache: Cache, format: str, dtype: Any) -> FeatureArray:
    if format != "projector":
        return cache.X if dtype is None else cache.X.astype(dtype)
    if dtype is not None:
        raise UsageError("projector is text, which has no type: leave --dtype out")
    return cache.X.stored  # with as many digits as it has


def _chosen(cache: Cache, rows: slice | Sequence[int] | np.ndarray | None) -> np.ndarray:
    if rows is None or isinstance(rows, slice):
        return np.arange(len(cache))[rows or slice(None)]
    chosen = np.asarray(rows)
    if chosen.ndim != 1 or (len(chosen) and chosen.dtype.kind not in "iu"):
        raise UsageError(f"rows must be numbers of rows, not {rows!r:.60}")
    chosen = chosen.astype(np.int64)
    is_outside = (chosen < 0) | (chosen >= len(cache))
    if is_outside.any():
        raise UsageError(
            f"row {chosen[is_outside][0]} does not exist: {cache.path} has rows 0-{len(cache) - 1}"
        )
    return chosen


def _write_file(selection: _Selection, format: str, out: Path, *, overwrite: bool) -> None:
    write = _write_npz if format == "npz" else _parquet_writer()
    with file_beside(out, overwrite=overwrite) as (_, fd):
        if format == "npz":
            disk.require_space(out.parent, len(selection.rows) * selection.row_bytes, out.name)
        with os.fdopen(os.dup(fd), "r+b") as stream:
            write(selection, stream)


def _write_npz(selection: _Selection, stream: Any) -> None:
    cache, rows = selection.cache, selection.rows
    shape = (len(rows), cache.n_features)
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        features = (block for _, block in selection.blocks(_BLOCK_BYTES))
        _add_array(archive, "features", shape, selection.features.dtype, features)
        labels = cache.labels[rows]
        _add_array(archive, "labels", labels.shape, labels.dtype, [labels])
        _add_names(archive, "class_names", cache.class_names)
        _add_names(archive, "paths", selection.paths(rows))


def _add_names(archive: zipfile.ZipFile, name: str, values: Sequence[str]) -> None:
    dtype = np.dtype(f"<U{max(map(len, values), default=0) or 1}")
    blocks = (
        np.array(values[i : i + _NAMES_IN_BLOCK], dtype)
        for i in range(0, len(values), _NAMES_IN_BLOCK)
    )
    _add_array(archive, name, (len(values),), dtype, blocks)


def _add_array(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    blocks: Iterable[np.ndarray],
) -> None:
    header = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    member = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
    with archive.open(member, "w", force_zip64=True) as stream:
        stream.write(header.getvalue())
        for block in blocks:
            stream.write(disk.bytes_of(np.ascontiguousarray(block)))


def _parquet_writer() -> Callable[[_Selection, Any], None]:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet", "the format parquet") from error
    return _write_parquet


def _write_parquet(selection: _Selection, stream: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    cache = selection.cache
    kind = pa.list_(
        pa.field("item", pa.from_numpy_dtype(selection.features.dtype)), cache.n_features
    )
    schema = pa.schema(
        [
            ("path", pa.string()),
            ("label", pa.int64()),
            ("class_name", pa.string()),
            ("features", kind),
        ],
        metadata={"featx": json.dumps({"fingerprint": cache.fingerprint, "meta": cache.meta})},
    )
    with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        for rows, block in selection.blocks(_ROW_GROUP_BYTES):
            classes = [None if name is None else as_utf8(name) for name in selection.classes(rows)]
            columns = [
                pa.array([as_utf8(path) for path in selection.paths(rows)], pa.string()),
                pa.array(cache.labels[rows], pa.int64()),
                pa.array(classes, pa.string()),
                pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), type=kind),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _write_projector(selection: _Selection, folder: Path) -> None:
    cache = selection.cache
    digits = _DIGITS[selection.features.dtype.name]
    line = "\t".join([digits] * cache.n_features) + "\n"
    # Text, because TensorBoard takes a binary file for text unless it happens not to be UTF-8.
    with (folder / "tensors.tsv").open("w", encoding="ascii", newline="\n") as stream:
        for _, block in selection.blocks(_BLOCK_BYTES):
            stream.writelines(line % tuple(row) for row in block.tolist())
    with (folder / "metadata.tsv").open("w", encoding="utf-8", newline="\n") as stream:
        stream.write("path\tlabel\tclass_name\n")
        names = selection.classes(selection.rows)
        labels = cache.labels[selection.rows].tolist()
        paths = selection.paths(selection.rows)
        for path, label, name in zip(paths, labels, names, strict=True):
            stream.write(f"{_escaped(path)}\t{label}\t{_escaped(name or '')}\n")
    name = json.dumps(as_utf8(cache.path.stem), ensure_ascii=False)
    text = (
        f"embeddings {{\n  tensor_name: {name}\n"
        f"  tensor_shape: {len(selection.rows)}\n  tensor_shape: {cache.n_features}\n"
        '  tensor_path: "tensors.tsv"\n  metadata_path: "metadata.tsv"\n}\n'
    )
    (folder / "projector_config.pbtxt").write_text(text, encoding="utf-8")


def _escaped(name: str) -> str:
    return as_utf8(name).translate(_ESCAPES)
