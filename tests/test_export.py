"""Exports are read back by the programs that they are for."""

from __future__ import annotations

import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featx.errors import CacheError, MissingExtraError, UsageError
from featx.export import FORMATS, export_cache
from featx.store import Cache, CacheSpec, CacheWriter, disk

NAMES = ["cat", "a\tb\nc", "élan\\"]


def make_cache(path, n_rows=30, n_features=5, dtype="float16", failed=(4, 7)):
    rng = np.random.default_rng(0)
    labels = np.arange(n_rows) % 4 - 1
    paths = [f"i/{i}.png" for i in range(n_rows)]
    paths[1:2] = ["odd\udcff\n.png"][: len(paths[1:2])]
    spec = CacheSpec({"n": n_rows}, {"data": "x"}, labels, NAMES, paths, n_features, dtype)
    rows = rng.normal(size=(n_rows, n_features)).astype(np.float32)
    with CacheWriter.open(path, spec) as writer:
        writer.write(0, rows, {row: "broken" for row in failed if row < n_rows})
        writer.finish()
    return path


@pytest.fixture
def cache_file(tmp_path):
    return make_cache(tmp_path / "a.h5")


def good_rows(cache):
    return np.flatnonzero(cache.status == 1)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_npz_is_read_by_numpy_without_pickle(tmp_path, dtype):
    path = make_cache(tmp_path / "a.h5", dtype=dtype)
    report = export_cache(path, "npz", dtype=dtype)
    assert (report.path, report.n_rows, report.n_left_out) == (tmp_path / "a.npz", 28, 2)
    assert report.n_bytes == report.path.stat().st_size
    with Cache.open(path) as cache, np.load(report.path, allow_pickle=False) as found:
        good = good_rows(cache)
        assert sorted(found) == ["class_names", "features", "labels", "paths"]
        assert found["features"].dtype == dtype
        np.testing.assert_array_equal(found["features"], cache.X[good])
        np.testing.assert_array_equal(found["labels"], cache.labels[good])
        assert found["class_names"].tolist() == NAMES
        assert found["paths"].tolist() == [cache.paths[row] for row in good]
        assert np.isfinite(found["features"]).all()


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(n_rows=st.integers(1, 12), n_features=st.integers(1, 4), data=st.data())
def test_npz_of_any_rows(tmp_path, n_rows, n_features, data):
    path = tmp_path / f"{n_rows}-{n_features}.h5"
    if not path.exists():
        make_cache(path, n_rows, n_features, failed=())
    rows = data.draw(st.lists(st.integers(0, n_rows - 1), min_size=1, max_size=8))
    out = export_cache(path, "npz", rows=rows, overwrite=True).path
    with Cache.open(path) as cache, np.load(out, allow_pickle=False) as found:
        np.testing.assert_array_equal(found["features"], cache.X[rows])
        np.testing.assert_array_equal(found["labels"], cache.labels[rows])
        assert found["paths"].tolist() == [cache.paths[row] for row in rows]


def test_features_are_float32_unless_their_own_type_is_asked_for(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet", reason="the extra parquet is not installed")
    path = make_cache(tmp_path / "a.h5")
    with Cache.open(path) as cache:
        wanted = cache.X[good_rows(cache)]
    for dtype, name in ((None, "float32"), ("float16", "float16"), ("float64", "float64")):
        with np.load(export_cache(path, "npz", dtype=dtype, overwrite=True).path) as found:
            assert found["features"].dtype == name
            np.testing.assert_array_equal(found["features"], wanted)
        table = pq.read_table(export_cache(path, "parquet", dtype=dtype, overwrite=True).path)
        values = table["features"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        assert values.dtype == name
        np.testing.assert_array_equal(values.reshape(wanted.shape), wanted)


def test_types_that_do_not_fit_leave_nothing_behind(tmp_path):
    path = make_cache(tmp_path / "a.h5", dtype="float32")
    with pytest.raises(UsageError, match="lose digits"):
        export_cache(path, "npz", dtype="float16")
    with pytest.raises(UsageError, match="no type"):
        export_cache(path, "projector", dtype="float32")
    assert list(tmp_path.iterdir()) == [path]


def test_equal_caches_give_equal_npz(cache_file, tmp_path):
    one = export_cache(cache_file, "npz", tmp_path / "1.npz").path.read_bytes()
    assert export_cache(cache_file, "npz", tmp_path / "2.npz").path.read_bytes() == one


def test_memory_stays_flat(tmp_path):
    path = make_cache(tmp_path / "a.h5", 2_000, 20_000, failed=())  # 80 MB
    tracemalloc.start()
    export_cache(path, "npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_parquet_is_read_by_pyarrow(tmp_path, dtype, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet", reason="the extra parquet is not installed")
    path = make_cache(tmp_path / "a.h5", dtype=dtype)
    monkeypatch.setattr("featx.export._ROW_GROUP_BYTES", 100)
    report = export_cache(path, "parquet", keep_failed=True, dtype=dtype)
    assert (report.n_rows, report.n_left_out) == (30, 0)
    file = pq.ParquetFile(report.path)
    assert file.num_row_groups > 1
    table = file.read()
    assert table.column_names == ["path", "label", "class_name", "features"]
    assert table.schema.field("features").type.list_size == 5
    with Cache.open(path) as cache:
        values = table["features"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        np.testing.assert_array_equal(values.reshape(30, 5), cache.X[:])
        assert values.dtype == dtype
        assert table["label"].to_pylist() == cache.labels.tolist()
        names = [None if i < 0 else NAMES[i] for i in cache.labels.tolist()]
        assert table["class_name"].to_pylist() == names
        assert table["path"].to_pylist() == ["i/0.png", "odd\\xff\n.png", *cache.paths[2:]]
        assert cache.fingerprint.encode() in table.schema.metadata[b"featx"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_projector_is_text_that_reads_back_exactly(tmp_path, dtype):
    path = make_cache(tmp_path / "a.h5", dtype=dtype)
    report = export_cache(path, "projector", rows=slice(0, 10))
    assert (report.n_rows, report.n_left_out) == (8, 2)
    assert sorted(p.name for p in report.path.iterdir()) == [
        "metadata.tsv",
        "projector_config.pbtxt",
        "tensors.tsv",
    ]
    with Cache.open(path) as cache:
        good = good_rows(cache)[:8]
        # As TensorBoard reads it.
        lines = (report.path / "tensors.tsv").read_text().splitlines()
        found = np.array([list(map(float, line.split("\t"))) for line in lines], dtype)
        np.testing.assert_array_equal(found, cache.X[good])
    lines = (report.path / "metadata.tsv").read_text(encoding="utf-8").split("\n")
    assert lines[:3] == ["path\tlabel\tclass_name", "i/0.png\t-1\t", "odd\\\\xff\\n.png\t0\tcat"]
    assert lines[3] == "i/2.png\t1\ta\\tb\\nc"
    assert len(lines) == 1 + 8 + 1
    assert all(line.count("\t") == 2 for line in lines[:-1])
    text = (report.path / "projector_config.pbtxt").read_text()
    for part in ('"tensors.tsv"', '"metadata.tsv"', "tensor_shape: 8", "tensor_shape: 5"):
        assert part in text


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_replaced_unasked(cache_file, format):
    if format == "parquet":
        pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    first = export_cache(cache_file, format)
    with pytest.raises(CacheError, match="--overwrite"):
        export_cache(cache_file, format, rows=slice(0, 3))
    again = export_cache(cache_file, format, rows=slice(0, 3), overwrite=True)
    assert again.n_bytes < first.n_bytes
    assert len(list(cache_file.parent.iterdir())) == 2
    for target in (cache_file, cache_file.parent):
        with pytest.raises(CacheError, match="is a cache|not a f|other files"):
            export_cache(cache_file, format, target, overwrite=True)


def test_a_folder_of_others_is_never_replaced(cache_file, tmp_path):
    (tmp_path / "a.projector").mkdir()
    (tmp_path / "a.projector" / "thesis.tex").write_text("x")
    with pytest.raises(CacheError, match=r"other files too \(thesis.tex\)"):
        export_cache(cache_file, "projector", overwrite=True)


@pytest.mark.parametrize("format", FORMATS)
def test_a_failure_leaves_nothing(cache_file, format, monkeypatch):
    if format == "parquet":
        pytest.importorskip("pyarrow", reason="the extra parquet is not installed")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "fsync", fail)
    with pytest.raises(CacheError, match=r"cannot write .*No space left"):
        export_cache(cache_file, format)
    assert [p.name for p in cache_file.parent.iterdir()] == ["a.h5"]


def test_bad_choices_are_errors(cache_file, monkeypatch):
    with pytest.raises(UsageError, match="did you mean parquet"):
        export_cache(cache_file, "parqet")
    with pytest.raises(UsageError, match="row 30 does not exist"):
        export_cache(cache_file, "npz", rows=[1, 30])
    with pytest.raises(UsageError, match="numbers of rows"):
        export_cache(cache_file, "npz", rows=["a"])
    with pytest.raises(CacheError, match="none of the 1 rows has features"):
        export_cache(cache_file, "npz", rows=[4])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'featx\[parquet\]'"):
        export_cache(cache_file, "parquet")
    assert [p.name for p in cache_file.parent.iterdir()] == ["a.h5"]
