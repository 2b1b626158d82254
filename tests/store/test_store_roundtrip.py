"""What is written is read back, by featx and by plain h5py."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_helpers import fill, make_rows, make_spec, stored, write_missing

import featx.store
from featx.errors import CacheError, ProtocolError
from featx.store import (
    Cache,
    CacheSpec,
    CacheWriter,
    find_caches,
    find_partials,
    read_summary,
    verify_file,
)

odd_names = st.binary(min_size=0, max_size=12).filter(lambda b: b"\0" not in b).map(os.fsdecode)


@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 40)),
    dtype=st.sampled_from(["float16", "float32"]),
    source=st.sampled_from([np.float16, np.float32, np.float64]),
    batch=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_everything_comes_back(tmp_path_factory, shape, dtype, source, batch, seed, data) -> None:
    n_rows, n_features = shape
    rng = np.random.default_rng(seed)
    names = data.draw(st.lists(odd_names, min_size=1, max_size=5))
    paths = data.draw(st.lists(odd_names, min_size=n_rows, max_size=n_rows))
    failed = data.draw(
        st.dictionaries(st.integers(0, n_rows - 1), st.text(max_size=20), max_size=4)
    )
    labels = rng.integers(-1, len(names), n_rows)
    spec = make_spec(n_rows, n_features, dtype, labels=labels, class_names=names, paths=paths)
    rows = rng.normal(size=shape).astype(source)
    target = tmp_path_factory.mktemp("round") / "a.h5"
    fill(target, spec, rows, batch=batch, failed=failed, commit_each=False)
    expected = stored(spec, rows)
    expected[list(failed)] = np.nan
    with Cache.open(target) as cache:
        np.testing.assert_array_equal(np.asarray(cache.X), expected)
        np.testing.assert_array_equal(cache.X[:], expected)
        np.testing.assert_array_equal(cache.labels, labels)
        assert cache.X.stored_dtype == np.dtype(dtype)
        assert (cache.class_names, cache.paths) == (names, paths)
        assert cache.errors.keys() == failed.keys()
        assert {row: why.replace("\0", " ").rstrip() for row, why in failed.items()} == {
            row: why.rstrip() for row, why in cache.errors.items()
        }
        assert (cache.status == np.where(np.isin(np.arange(n_rows), list(failed)), 2, 1)).all()
        assert cache.meta["identity"] == spec.identity
        assert cache.fingerprint == spec.fingerprint
        assert cache.verify() == []


def test_plain_h5py_reads_it(tmp_path: Path) -> None:
    spec = make_spec(100, 9)
    order = np.random.default_rng(3).permutation(100)
    rows = make_rows(spec)
    with CacheWriter.open(tmp_path / "a.h5", spec) as writer:
        for row in order.tolist():
            writer.write(row, rows[row : row + 1], {row: "truncated"} if row == 4 else None)
        writer.finish()
        h5py.File(tmp_path / "a.h5").close()  # no lock is left on it
    with h5py.File(tmp_path / "a.h5") as file:
        features, paths = file["features"], file["paths"].asstr()[:]
        assert features.chunks is None
        assert features.compression is None
        assert features.dtype == np.dtype("<f2")
        assert features.id.get_offset() % 4096 == 0
        for i in range(100):
            assert paths[i] == f"images/{i:05d}.png"
            assert np.isnan(features[i]).all() if i == 4 else features[i, 0] == i
        assert file.attrs["encoding-type"].decode() == "featx-cache"
        assert file.attrs["encoding-version"].decode() == "1"
        assert file.attrs["complete"] == 1
        assert file.attrs["fingerprint"].decode() == spec.fingerprint
        assert file["errors"][0].item() == (4, b"truncated")
        assert file["class_names"].asstr()[2] == "élan"


def test_partial_is_hdf5_and_says_so(tmp_path: Path) -> None:
    spec = make_spec()
    with CacheWriter.open(tmp_path / "a.h5", spec) as writer:
        writer.write(0, make_rows(spec)[:10])
        writer.commit()
        (partial,) = find_partials(tmp_path / "a.h5")
        with h5py.File(partial, locking=False) as file:
            assert file.attrs["complete"] == 0
            assert file["labels"].shape == (40,)
            assert file["features"][9, 0] == 9
        assert partial.stat().st_blocks * 512 >= partial.stat().st_size
        found = read_summary(partial)
        assert (found["complete"], found["n_done"], found["n_failed"]) == (False, 10, 0)
        for path in (partial, tmp_path / "a.h5"):
            with pytest.raises(CacheError, match=r"10 of 40 rows .* run the same featx extract"):
                Cache.open(path)


def test_interrupted_and_resumed_is_bit_equal(tmp_path: Path) -> None:
    spec, rows = make_spec(50), make_rows(make_spec(50))
    failed = {3: "bad", 47: "worse"}
    fill(tmp_path / "whole.h5", spec, rows, failed=failed)

    def interrupted() -> None:
        with CacheWriter.open(tmp_path / "a.h5", spec) as writer:
            write_missing(writer, rows, n_batches=2, commit_each=False, failed=failed)
            writer.write(30, rows[30:45])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with CacheWriter.open(tmp_path / "a.h5", spec) as writer:
        assert np.flatnonzero(~writer.missing()).tolist() == [*range(16), *range(30, 45)]
        assert "31 of 50 rows" in writer.notices[0]
        write_missing(writer, rows, failed=failed)
        writer.finish()
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "whole.h5"]


def test_blocks_larger_than_a_digest_block(tmp_path: Path) -> None:
    spec = make_spec(70, 20_000, "float32")  # 13 rows a block
    rows = make_rows(spec)
    fill(tmp_path / "a.h5", spec, rows, batch=9, commit_each=False)
    with CacheWriter.open(tmp_path / "b.h5", spec) as writer:  # out of order: blocks read back
        for start in (60, 0, 20, 10, 50, 30, 40):
            writer.write(start, rows[start : start + 10])
        writer.finish()
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert verify_file(tmp_path / "a.h5") == []


def test_sample_skips_failed_rows(tmp_path: Path) -> None:
    spec = make_spec(30)
    failed = dict.fromkeys(range(0, 24, 3), "bad")  # class 0 keeps rows 24 and 27
    fill(tmp_path / "a.h5", spec, make_rows(spec), failed=failed)
    with Cache.open(tmp_path / "a.h5") as cache:
        features, labels = cache.sample(2, seed=5)
        assert np.isfinite(features).all()
        assert features[labels == 0, 0].tolist() == [24, 27]
        assert np.bincount(labels).tolist() == [2, 2, 2]
        with pytest.raises(ProtocolError):
            cache.sample(3, seed=5)


def test_cache_is_picklable_readable_and_closable(tmp_path: Path) -> None:
    spec = make_spec()
    fill(tmp_path / "a.h5", spec, make_rows(spec), failed={1: "bad"})
    cache = Cache.open(tmp_path / "a.h5")
    assert repr(cache) == (
        f"<Cache a.h5: 40 x 7 float16, 3 classes, 1 failed, fingerprint {spec.fingerprint[:12]}>"
    )
    page = cache._repr_html_()
    assert "<caption>a.h5</caption>" in page
    assert "<tr><th>images that could not be read</th><td>1</td></tr>" in page
    assert len(cache) == 40
    assert cache.n_features == 7
    assert cache.y is cache.labels
    copy = pickle.loads(pickle.dumps(cache))
    np.testing.assert_array_equal(copy.X[5], cache.X[5])
    with pytest.raises(ValueError, match="read-only"):
        cache.labels[0] = 2
    packed = pickle.dumps(cache)
    cache.close()
    cache.close()
    with pytest.raises(CacheError, match="closed"):
        _ = cache.X[0]
    fill(tmp_path / "a.h5", make_spec(identity={"b": 1}), make_rows(spec), overwrite=True)
    with pytest.raises(CacheError, match="replaced"):
        pickle.loads(packed)


def test_reader_keeps_the_old_file_while_it_is_replaced(tmp_path: Path) -> None:
    spec, other = make_spec(), make_spec(identity={"b": 1}, paths=["new"] * 40)
    rows = make_rows(spec)
    fill(tmp_path / "a.h5", spec, rows)
    cache = Cache.open(tmp_path / "a.h5")
    mapped = np.asarray(cache.X)
    fill(tmp_path / "a.h5", other, -rows, overwrite=True)
    np.testing.assert_array_equal(cache.X[:], stored(spec, rows))
    np.testing.assert_array_equal(mapped, stored(spec, rows))
    assert cache.paths[0] == "images/00000.png"
    assert cache.verify() == []
    assert Cache.open(tmp_path / "a.h5").paths[0] == "new"


def test_summaries_and_lists(tmp_path: Path) -> None:
    spec = make_spec()
    fill(tmp_path / "deep" / "a.h5", spec, make_rows(spec), failed={1: "bad"})
    (tmp_path / "other.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    (tmp_path / "folder.h5").mkdir()
    assert find_caches(tmp_path) == [tmp_path / "deep" / "a.h5"]
    assert find_caches(tmp_path / "none") == find_partials(tmp_path / "none" / "a.h5") == []
    found = read_summary(tmp_path / "deep" / "a.h5")
    assert (found["n_done"], found["n_failed"], found["n_classes"]) == (39, 1, 3)
    assert found["complete"]
    assert found["meta"]["split"] == "train"
    with pytest.raises(CacheError, match=r"no cache at .*featx extract"):
        read_summary(tmp_path / "none.h5")
    with pytest.raises(CacheError, match="not a file"):
        Cache.open(tmp_path / "folder.h5")


def test_long_reasons_are_cut_between_characters(tmp_path: Path) -> None:
    spec = make_spec()
    fill(tmp_path / "a.h5", spec, make_rows(spec), failed={2: "é" * 500, 3: "a\0b\ud800"})
    errors = Cache.open(tmp_path / "a.h5").errors
    assert errors[2].endswith("é...")
    assert len(errors[2].encode()) <= 400
    assert errors[3] == "a b?"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CacheError, match="Permission denied: choose a folder"):
        CacheWriter.open(tmp_path / "a.h5", make_spec())


def test_public_surface() -> None:
    assert featx.store.__all__ == sorted(featx.store.__all__)
    assert set(featx.store.__all__) >= {"Cache", "CacheSpec", "CacheWriter", "verify_file"}
    assert CacheSpec.__module__.startswith("featx.store")
