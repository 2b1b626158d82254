"""Files made by a stranger, with a valid seal, are refused for their structure."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from store_helpers import fill, make_rows, make_spec, reseal

from featx.errors import CacheError
from featx.store import Cache
from featx.store.header import HeaderBlock

Change = Callable[[h5py.File], Any]
UTF8 = h5py.string_dtype("utf-8", 4)


class Builder:
    """Makes a cache with plain h5py, so that single parts can be made otherwise."""

    def __init__(self, source: Path) -> None:
        with h5py.File(source) as file:
            self.arrays = {name: (file[name][()], file[name].id.get_type()) for name in file}
            self.attributes = {
                name: (file.attrs[name], h5py.h5a.open(file.id, name.encode()).get_type())
                for name in file.attrs
            }

    def build(
        self, path: Path, change: Change | None, leave_out: str = "", attribute: str = ""
    ) -> None:
        with h5py.File(path, "w", userblock_size=4096) as file:
            for name, (array, kind) in self.arrays.items():
                if name != leave_out:
                    self._dataset(file, name, array, kind)
            for name, (value, kind) in self.attributes.items():
                if name != attribute:
                    space = h5py.h5s.create(h5py.h5s.SCALAR)
                    made = h5py.h5a.create(file.id, name.encode(), kind, space)
                    made.write(np.asarray(value), mtype=kind)
            if change is not None:
                change(file)
            offset, n_bytes = 4096, 1
            if isinstance(file.get("features"), h5py.Dataset):
                dataset = file["features"]
                if dataset.id.get_storage_size():
                    offset = dataset.id.get_offset() or offset
                    n_bytes = min(dataset.nbytes, 560)
        reseal(path, offset, n_bytes)

    @staticmethod
    def _dataset(file: h5py.File, name: str, array: np.ndarray, kind: Any) -> None:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        space = h5py.h5s.create_simple(array.shape)
        dataset = h5py.h5d.create(file.id, name.encode(), kind, space, plan)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(array), mtype=kind)


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    target = tmp_path_factory.mktemp("builder") / "a.h5"
    fill(target, make_spec(), make_rows(make_spec()), failed={5: "truncated"})
    return Builder(target)


def refused(path: Path, reason: str) -> None:
    with pytest.raises(CacheError, match=reason):
        Cache.open(path)


def test_the_builder_makes_a_cache_that_is_accepted(tmp_path: Path, builder: Builder) -> None:
    builder.build(tmp_path / "a.h5", None)
    with Cache.open(tmp_path / "a.h5") as cache:
        assert cache.verify() == []
        assert cache.errors == {5: "truncated"}


def external_link(file: h5py.File) -> None:
    file["labels"] = h5py.ExternalLink("/etc/passwd", "/labels")


def soft_link(file: h5py.File) -> None:
    file["labels"] = h5py.SoftLink("/status")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((40, 7), "<f2")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (40, 7))
    file.create_virtual_dataset("features", layout)


def external_storage(file: h5py.File) -> None:
    file.create_dataset("features", (40, 7), "<f2", external=[("/etc/passwd", 0, 560)])


def shape_bomb(file: h5py.File) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    space = h5py.h5s.create_simple((40, 2**40))
    h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F16LE, space, plan)


def chunked_bomb(file: h5py.File) -> None:
    file.create_dataset("features", (40, 2**40), "<f2", chunks=(1, 1024), compression="gzip")


def nested(file: h5py.File) -> None:
    group = file.create_group("labels")
    for _ in range(2000):
        group = group.create_group("g")


def loop(file: h5py.File) -> None:
    file["labels"] = file["/"]


def hard_link(file: h5py.File) -> None:
    file["status"] = file["digests"]


def many(file: h5py.File) -> None:
    for i in range(1000):
        file.create_group(f"g{i}")


def late(file: h5py.File) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    space = h5py.h5s.create_simple((40,))
    h5py.h5d.create(file.id, b"labels", h5py.h5t.STD_I64LE, space, plan)


def variable(file: h5py.File) -> None:
    file.create_dataset("paths", data=["x"] * 40, dtype=h5py.string_dtype())


CASES: dict[str, tuple[str, Change | None, str]] = {
    "external link": ("labels", external_link, "'labels' is a link"),
    "soft link": ("labels", soft_link, "'labels' is a link"),
    "virtual": ("features", virtual, "not stored in one piece"),
    "external storage": ("features", external_storage, "in another file"),
    "shape bomb": ("features", shape_bomb, "but other storage"),
    "chunked bomb": ("features", chunked_bomb, "not stored in one piece"),
    "deep nesting": ("labels", nested, "'labels' is not a dataset"),
    "loop": ("labels", loop, "'labels' is not a dataset"),
    "hard link": ("status", hard_link, "'status' has the shape"),
    "many objects": ("", many, "unexpected objects: 1008 in place of 8"),
    "one more": ("", lambda f: f.create_dataset("x", data=1), "unexpected objects: 9"),
    "one less": ("errors", None, "missing objects: 'errors'"),
    "renamed": (
        "errors",
        lambda f: f.create_dataset("x", data=1),
        "objects: 'errors', 'x'",
    ),
    "named type": ("labels", lambda f: f.__setitem__("labels", np.dtype("i8")), "not a dataset"),
    "no storage": ("labels", late, "'labels' has .* but other storage"),
    "variable strings": ("paths", variable, "'paths' has another type"),
    "scalar": ("labels", lambda f: f.create_dataset("labels", data=3), "'labels'"),
    "empty": ("labels", lambda f: f.create_dataset("labels", dtype="<i8", shape=None), "'labels'"),
    "big-endian": (
        "features",
        lambda f: f.create_dataset("features", data=np.zeros((40, 7), ">f2")),
        "'features' has another type",
    ),
    "double": (
        "features",
        lambda f: f.create_dataset("features", data=np.zeros((40, 7), "<f8")),
        "'features' has another type",
    ),
    "one axis": (
        "features",
        lambda f: f.create_dataset("features", data=np.zeros(40, "<f2")),
        "features have the shape",
    ),
    "fewer labels": (
        "labels",
        lambda f: f.create_dataset("labels", data=np.zeros(39, "<i8")),
        "'labels' has the shape",
    ),
    "labels of no class": (
        "labels",
        lambda f: f.create_dataset("labels", data=np.full(40, 3)),
        r"labels do not lie in -1\.\.2",
    ),
    "missing rows": (
        "status",
        lambda f: f.create_dataset("status", data=np.zeros(40, "u1")),
        "rows are missing",
    ),
    "failed rows without reason": (
        "status",
        lambda f: f.create_dataset("status", data=np.full(40, 2, "u1")),
        "errors are not those",
    ),
    "more digests": (
        "digests",
        lambda f: f.create_dataset("digests", data=np.zeros((2, 32), "u1")),
        "'digests' has the shape",
    ),
    "fewer images": (
        "image_sha256",
        lambda f: f.create_dataset("image_sha256", data=np.zeros((39, 32), "u1")),
        "'image_sha256' has the shape",
    ),
    "attributes on a dataset": (
        "",
        lambda f: f["labels"].attrs.create("x", 1),
        "'labels' has attributes",
    ),
    "more attributes": ("", lambda f: f.attrs.create("x", 1), "7 attributes in place of 6"),
}


@pytest.mark.parametrize("name", CASES)
def test_structures_that_featx_never_writes(tmp_path: Path, builder: Builder, name: str) -> None:
    leave_out, change, reason = CASES[name]
    builder.build(tmp_path / "a.h5", change, leave_out)
    refused(tmp_path / "a.h5", reason)


ATTRIBUTES: dict[str, tuple[str, Any, str]] = {
    "incomplete": ("complete", np.uint8(0), "'complete' is 0"),
    "other type": ("encoding-type", np.array(b"zarr", UTF8), "encoding-type is 'zarr'"),
    "newer": ("encoding-version", np.array(b"2", UTF8), "encoding-version is '2': update featx"),
    "variable": ("encoding-type", "featx-cache", "'encoding-type' has"),
    "array": ("block_rows", np.ones(3, "i8"), "not one value"),
    "large": ("block_rows", np.ones(60_000, "u1"), "not one value"),
    "zero": ("block_rows", np.int64(0), "features have the shape"),
    "large blocks": ("block_rows", np.int64(1 << 40), "blocks of 1,099,511,627,776 rows"),
    "text": ("complete", np.array(b"yes", UTF8), "'complete' has another type"),
    "not JSON": ("meta", np.array(b"{", UTF8), "meta is not JSON"),
    "list": ("meta", np.array(b"[]", UTF8), "names no identity"),
    "nested": ("meta", np.array(b"[" * 50_000, h5py.string_dtype("utf-8", 50_000)), "not JSON"),
    "not UTF-8": ("meta", np.array(b"\xff\xfe", UTF8), "HDF5 cannot read it|utf-8"),
    "other identity": (
        "meta",
        np.array(b'{"identity":{}}', h5py.string_dtype("utf-8", 15)),
        "fingerprint is not that of its identity",
    ),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_that_featx_never_writes(tmp_path: Path, builder: Builder, name: str) -> None:
    attribute, value, reason = ATTRIBUTES[name]

    def change(file: h5py.File) -> None:
        file.attrs.create(attribute, value, dtype=getattr(value, "dtype", None))

    builder.build(tmp_path / "a.h5", change, attribute=attribute)
    refused(tmp_path / "a.h5", reason)


def test_features_elsewhere_than_the_seal_says(tmp_path: Path, builder: Builder) -> None:
    builder.build(tmp_path / "a.h5", None)
    with h5py.File(tmp_path / "a.h5") as file:
        offset = file["features"].id.get_offset()
    for start, n_bytes in ((offset - 1, 560), (offset, 559), (4096, 5)):
        reseal(tmp_path / "a.h5", start, n_bytes)
        refused(tmp_path / "a.h5", "features lie elsewhere")


def test_storage_beyond_the_end_of_the_file(tmp_path: Path, builder: Builder) -> None:
    def bomb(file: h5py.File) -> int:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((40, 2**28))
        made = h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F16LE, space, plan)
        return int(made.get_offset())

    builder.build(tmp_path / "a.h5", None)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["features"]
        start = bomb(file)
    assert (tmp_path / "a.h5").stat().st_size > 20 << 30  # a hole, no blocks
    os.truncate(tmp_path / "a.h5", start + 1000)
    reseal(tmp_path / "a.h5", start, 1000)
    refused(tmp_path / "a.h5", r"HDF5 cannot read it: .*truncated")


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (lambda seal: seal.features_offset, "'(labels|features)' overlaps '(labels|features)'"),
        (
            lambda seal: seal.file_bytes - 8,
            "'labels' does not lie inside the file|HDF5 cannot read it",
        ),
        (lambda seal: 2**63, "'labels' .*inside the file|other storage|cannot read"),
    ],
)
def test_places_that_overlap_or_lie_outside(tmp_path: Path, place: Any, reason: str) -> None:
    target = tmp_path / "a.h5"
    fill(target, make_spec(), make_rows(make_spec()))
    content = target.read_bytes()
    seal = HeaderBlock.parse(content[:4096])
    with h5py.File(target) as file:
        offset = file["labels"].id.get_offset()
    # In the file, places count from the end of the user block.
    old, new = (struct.pack("<Q", at - 4096) for at in (offset, place(seal)))
    assert content.count(old) == 1
    target.write_bytes(content.replace(old, new))
    reseal(target, seal.features_offset, seal.features_bytes)
    refused(target, reason)


def test_a_user_block_of_another_size(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=8192) as file:
        file["features"] = np.zeros((4, 4), "<f2")
    reseal(tmp_path / "a.h5", 10_000, 1)
    refused(tmp_path / "a.h5", "user block has 8192 bytes")


def test_a_seal_around_no_hdf5_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(bytes(20_000))
    reseal(tmp_path / "a.h5", 5000, 100)
    refused(tmp_path / "a.h5", "HDF5 cannot read it")
