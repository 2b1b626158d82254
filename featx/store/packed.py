"""A packed cache, read as a stranger's file: nothing in it is believed unchecked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from featx.errors import CacheError
from featx.progress import SILENT, Reporter
from featx.store import archive, check, disk, layout
from featx.store.archive import Codec, Stamp, hash_archive, in_order
from featx.store.check import Extent
from featx.store.features import Handle
from featx.store.image import build_image
from featx.store.seal import read_block
from featx.store.spec import CacheSpec

__all__ = ["Archive", "is_same", "open_archive", "verify_archive"]

_ATTRIBUTES: Final = (
    "encoding-type",
    "encoding-version",
    "codec",
    "fingerprint",
    "block_rows",
    "meta",
)
# No data at all compress better: deflate's limit is 1,032, zstd's some 32,768 (blocks of one byte).
_MAX_RATIO: Final = {"gzip": 1_040, "zstd": 40_000}
_SPEC_NAMES: Final = {"image_sha256": "image_digests"}  # where dataset and field differ
_NAMES: Final = ("class_names", "paths")


def is_same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays have the same type, shape and bits."""
    return (one.dtype, one.shape) == (other.dtype, other.shape) and one.tobytes() == other.tobytes()


@contextmanager
def open_archive(path: str | os.PathLike[str], reporter: Reporter = SILENT) -> Iterator[Archive]:
    """Open an archive; its seal is checked before HDF5 parses anything."""
    full = Path(path).absolute()
    with disk.translated(f"cannot open {full}"):
        if not full.is_file():
            raise CacheError(f"no file {full}")
        handle = Handle(str(full))
    with ExitStack() as stack:
        stack.callback(handle.close)
        try:
            with disk.translated("cannot read it"):
                _check_seal(handle.fd, reporter, f"check {full.name}")
                packed = Archive(full, handle, _open_hdf5(handle.fd, stack))
        except CacheError as error:
            raise CacheError(f"{full}: {error}") from error
        yield packed


def _check_seal(fd: int, reporter: Reporter, label: str) -> None:
    stamp, n_bytes = Stamp.parse(read_block(fd)), os.fstat(fd).st_size
    mend = "take another copy of it, or pack the cache again"
    if n_bytes != stamp.file_bytes:
        raise CacheError(
            f"damaged: it has {n_bytes:,} bytes in place of {stamp.file_bytes:,}: {mend}"
        )
    if hash_archive(fd, reporter, label) != stamp.digest:
        raise CacheError(
            f"damaged: it changed since it was written (its seal does not match): {mend}"
        )


def _open_hdf5(fd: int, stack: ExitStack) -> h5py.File:
    def close() -> None:
        with suppress(Exception):
            file.close()

    stream = stack.enter_context(os.fdopen(os.dup(fd), "rb", buffering=0))
    with _hdf5_translated():
        file = h5py.File(stream, "r")
    stack.callback(close)
    return file


@contextmanager
def _hdf5_translated() -> Iterator[None]:
    try:
        yield
    except CacheError:
        raise
    except Exception as error:  # HDF5 raises nearly any type for a damaged file
        raise CacheError(f"HDF5 cannot read it: {error}") from error


class Archive:
    """A packed cache, opened by `open_archive` and checked as a stranger's file."""

    def __init__(self, path: Path, handle: Handle, file: h5py.File) -> None:
        self.path, self._file = path, file
        self.n_bytes = os.fstat(handle.fd).st_size
        with _hdf5_translated():
            values = self._attributes(file.id)
            extents = self._extents(file.id)
        self.codec = Codec(values["codec"], archive.CODECS[values["codec"]])
        self.arrays = {name: handle.read(extent) for name, extent in extents.items()}
        meta = check._meta(values["meta"], values["fingerprint"])
        with _hdf5_translated():
            self._open_features(file.id, values["block_rows"])
        self._build(meta)

    @property
    def unpacked_bytes(self) -> int:
        """Size of the cache that was packed."""
        status, digests = self.arrays["status"], self.arrays["digests"]
        image = build_image(self.spec, status=status, failed=self.failed, digests=digests)
        return image.file_bytes

    def _attributes(self, root: Any) -> dict[str, Any]:
        if self._file.userblock_size != layout.USERBLOCK_BYTES:
            raise CacheError(f"its user block has {self._file.userblock_size} bytes, not 4096")
        if h5py.h5a.get_num_attrs(root) != len(_ATTRIBUTES):
            raise CacheError(f"it has not just the attributes {', '.join(_ATTRIBUTES)}")
        values: dict[str, Any] = {}
        for name in _ATTRIBUTES:
            if not h5py.h5a.exists(root, name.encode()):
                raise CacheError(f"no attribute {name!r}")
            values[name] = check._read_attribute(h5py.h5a.open(root, name.encode()), name)
        if (values["encoding-type"], values["encoding-version"]) != (
            archive.ENCODING_TYPE,
            archive.ENCODING_VERSION,
        ):
            raise CacheError("not a packed cache of this version of featx")
        if values["codec"] not in archive.CODECS:
            raise CacheError(f"its codec is {values['codec']!r:.40}")
        return values

    def _extents(self, root: Any) -> dict[str, Extent]:
        names = check._names(root)
        if names != sorted(layout.DATASETS):
            odd = sorted(set(names) ^ set(layout.DATASETS))
            raise CacheError(f"unexpected or missing objects: {', '.join(map(repr, odd[:5]))}")
        small = {n: check._extent(root, n) for n in layout.DATASETS if n != "features"}
        check._check_places(small, self.n_bytes)
        return small

    def _open_features(self, root: Any, block_rows: int) -> None:
        if root.links.get_info(b"features").type != h5py.h5l.TYPE_HARD:
            raise CacheError("'features' is a link to somewhere else")
        if h5py.h5o.get_info(root, b"features").type != h5py.h5o.TYPE_DATASET:
            raise CacheError("'features' is not a dataset")
        dataset = h5py.h5d.open(root, b"features")
        dtype = check._dtype(dataset.get_type(), "features")
        shape = tuple(map(int, dataset.get_space().shape))
        n_rows = len(self.arrays["labels"])
        if len(shape) != 2 or shape[0] != n_rows or min(shape) < 1:
            raise CacheError(f"its features have the shape {shape}")
        row_bytes = shape[1] * dtype.itemsize
        if block_rows != layout.default_block_rows(row_bytes):
            raise CacheError(f"it has blocks of {block_rows:,} rows of {row_bytes:,} bytes")
        if n_rows * row_bytes > self.n_bytes * _MAX_RATIO[self.codec.name]:
            raise CacheError(f"{self.n_bytes:,} bytes cannot hold features of the shape {shape}")
        self._chunk_rows = min(block_rows, n_rows)
        _check_storage(dataset, (self._chunk_rows, shape[1]), self.codec)
        blocks = -(-n_rows // block_rows)
        if self.arrays["digests"].shape != (blocks, layout.DIGEST_BYTES):
            raise CacheError("'digests' does not fit its features")
        self._features = h5py.Dataset(dataset)

    def _build(self, meta: dict[str, Any]) -> None:
        values: dict[str, Any] = {
            _SPEC_NAMES.get(name, name): array for name, array in self.arrays.items()
        }
        table, status = values.pop("errors"), values.pop("status")
        del values["digests"]
        for name in _NAMES:
            values[name] = layout.decode_names(values[name])
        self.spec = CacheSpec(
            identity=meta["identity"],
            meta={name: value for name, value in meta.items() if name != "identity"},
            n_features=self._features.shape[1],
            dtype=self._features.dtype.name,
            **values,
        )
        reasons = layout.decode_names(table["reason"])
        self.failed = dict(zip(table["row"].tolist(), reasons, strict=True))
        # What the writer will make of all this must be what is here.
        expected = np.full(self.spec.n_rows, layout.DONE, "u1")
        if not all(0 <= row < len(expected) for row in self.failed):
            raise CacheError("its errors name rows that do not exist")
        expected[list(self.failed)] = layout.FAILED
        again = {
            "class_names": self.spec.encoded_class_names,
            "paths": self.spec.encoded_paths,
            "errors": layout.encode_errors(self.failed),
            "status": expected,
        }
        odd = [n for n, array in again.items() if not is_same(array, self.arrays[n])]
        if odd or len(status) != len(expected):
            raise CacheError(f"{', '.join(odd)}: not as featx writes them")

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Read the features in order, a digested block at a time."""
        self.codec.require()
        starts = range(0, self.spec.n_rows, self._chunk_rows)
        return in_order(self._decoded, ((start, self._stored(start)) for start in starts))

    def _stored(self, start: int) -> bytes | np.ndarray:
        n_values = self._chunk_rows * self.spec.n_features
        n_bytes = n_values * self._features.dtype.itemsize
        try:
            info = self._features.id.get_chunk_info_by_coord((start, 0))
            if info.byte_offset is None or info.filter_mask != 0:
                raise CacheError("is missing")
            if not 0 < info.size <= 2 * n_bytes + 1024:
                raise CacheError(f"is stored in {info.size:,} bytes")
            _, data = self._features.id.read_direct_chunk((start, 0))
            if self.codec.name == "gzip":
                return bytes(data)
            self.codec.check_frame(data, n_bytes)
            return np.asarray(self._features[start : start + self._chunk_rows])
        except Exception as error:  # HDF5 raises nearly any type for a damaged file
            raise self._damaged(start, error) from error

    def _decoded(self, item: tuple[int, bytes | np.ndarray]) -> tuple[int, np.ndarray]:
        start, stored = item
        n_rows = min(self._chunk_rows, self.spec.n_rows - start)
        if isinstance(stored, bytes):
            try:
                n_values = self._chunk_rows * self.spec.n_features
                flat = self.codec.decode(stored, n_values, self._features.dtype)
            except CacheError as error:
                raise self._damaged(start, error) from error
            stored = flat.reshape(self._chunk_rows, -1)[:n_rows]
        digest = hashlib.sha256(disk.bytes_of(stored)).digest()
        if digest != self.arrays["digests"][start // self._chunk_rows].tobytes():
            raise self._damaged(start, "its digest is another")
        return start, stored

    def _damaged(self, start: int, reason: object) -> CacheError:
        stop = min(start + self._chunk_rows, self.spec.n_rows)
        return CacheError(f"{self.path}: damaged: features rows {start}-{stop - 1}: {reason}")


def verify_archive(path: str | os.PathLike[str], reporter: Reporter = SILENT) -> None:
    """Check every byte of an archive, and that it can be unpacked."""
    with (
        open_archive(path, reporter) as packed,
        reporter.bar(packed.spec.n_rows, f"verify {packed.path.name}", "row") as bar,
    ):
        for _, rows in packed.blocks():
            bar.update(len(rows))


def _check_storage(dataset: Any, chunk: tuple[int, int], codec: Codec) -> None:
    plan = dataset.get_create_plist()
    if plan.get_layout() != h5py.h5d.CHUNKED or tuple(plan.get_chunk()) != chunk:
        raise CacheError(f"'features' is not stored in chunks of {chunk}")
    if plan.get_external_count() or h5py.h5a.get_num_attrs(dataset):
        raise CacheError("'features' is stored in another file, or has attributes")
    filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
    if filters != codec.filters:
        raise CacheError(f"'features' has the filters {filters}, not {codec.filters}")
