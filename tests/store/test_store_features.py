"""Rows on the disk are indexed as NumPy indexes an array, which is the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_helpers import fill, make_rows, make_spec, stored

from featx.store import Cache

N_ROWS = 40
rows_any = st.integers(-N_ROWS, N_ROWS - 1)
step = st.integers(-5, 5).filter(bool)
bound = st.none() | st.integers(-60, 60)
keys = st.one_of(
    rows_any,
    st.builds(slice, bound, bound, st.none() | step),
    st.lists(rows_any, max_size=80),
    st.lists(rows_any, max_size=80).map(lambda r: np.array(r, dtype=np.int64)),
    st.lists(st.integers(0, N_ROWS - 1), max_size=9).map(lambda r: np.array(r, dtype=np.uint8)),
    st.lists(st.booleans(), min_size=N_ROWS, max_size=N_ROWS).map(np.array),
    rows_any.map(np.int32),
    st.just(range(3, 9)),
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    path = tmp_path_factory.mktemp("features") / "a.h5"
    spec = make_spec(N_ROWS)
    fill(path, spec, make_rows(spec))
    return Cache.open(path)


@pytest.fixture(scope="module")
def oracle() -> np.ndarray:
    spec = make_spec(N_ROWS)
    return stored(spec, make_rows(spec))


@given(key=keys)
@settings(max_examples=300, deadline=None)
def test_indexing_is_numpys(cache: Cache, oracle: np.ndarray, key) -> None:
    key_for_numpy = np.array(key, dtype=int) if isinstance(key, list) else key
    found, expected = cache.X[key], oracle[key_for_numpy]
    np.testing.assert_array_equal(found, expected)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert type(found) is np.ndarray
    assert found.flags.writeable


@pytest.mark.parametrize(
    "key",
    [N_ROWS, -N_ROWS - 1, [0, N_ROWS], [True], True, 1.0, [0.5], "a", (1, 2), None, ..., [[1]]],
)
def test_other_indices_are_refused(cache: Cache, key) -> None:
    with pytest.raises(IndexError):
        cache.X[key]


@pytest.mark.parametrize("n_rows", [1, 7, 40, 1000])
def test_blocks(cache: Cache, oracle: np.ndarray, n_rows: int) -> None:
    parts = list(cache.X.iter_blocks(n_rows))
    assert [start for start, _ in parts] == list(range(0, N_ROWS, n_rows))
    np.testing.assert_array_equal(np.concatenate([block for _, block in parts]), oracle)
    with pytest.raises(ValueError, match="at least 1"):
        next(cache.X.iter_blocks(0))


def test_as_array(cache: Cache, oracle: np.ndarray) -> None:
    mapped = np.asarray(cache.X)
    assert isinstance(mapped.base, np.memmap)
    assert not mapped.flags.writeable
    np.testing.assert_array_equal(mapped, oracle)
    copied = np.array(cache.X)
    assert copied.flags.writeable
    assert copied.flags.owndata
    assert np.asarray(cache.X, dtype=np.float64).dtype == np.float64
    np.testing.assert_array_equal(np.stack(list(cache.X)), oracle)
    assert (len(cache.X), cache.X.ndim, cache.X.shape) == (40, 2, (40, 7))
    assert cache.X.nbytes == oracle.nbytes
    assert cache.X.size == oracle.size
    assert repr(cache.X) == "<features 40 x 7 float16, on disk>"


def test_sklearn_takes_it(cache: Cache) -> None:
    from sklearn.neighbors import NearestCentroid

    head = NearestCentroid().fit(cache.X, cache.y)
    assert head.predict(cache.X[:5]).shape == (5,)


def test_features_outlive_the_cache(tmp_path: Path) -> None:
    spec = make_spec()
    fill(tmp_path / "a.h5", spec, make_rows(spec))
    features = Cache.open(tmp_path / "a.h5").X
    assert features[3].shape == (7,)
