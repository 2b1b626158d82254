"""Rows on the disk are indexed as NumPy indexes an array, which is the oracle."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_helpers import fill, make_rows, make_spec, stored

import featx
from featx.errors import UsageError
from featx.store import Cache

N_ROWS, N_FEATURES = 40, 7
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
column_any = st.integers(-N_FEATURES, N_FEATURES - 1)
columns = st.one_of(
    column_any,
    st.builds(slice, bound, bound, st.none() | step),
    st.lists(column_any, max_size=9).map(lambda c: np.array(c, dtype=np.int64)),
    st.lists(st.booleans(), min_size=N_FEATURES, max_size=N_FEATURES).map(np.array),
)
pairs = st.one_of(
    st.tuples(keys, st.just(...)),
    st.tuples(st.just(...), columns),
    st.tuples(keys, columns),
    st.tuples(st.lists(rows_any, max_size=9), st.lists(column_any, max_size=9)).map(
        lambda pair: np.ix_(np.array(pair[0], dtype=int), np.array(pair[1], dtype=int))
    ),
    st.sampled_from(
        [(), ..., (...,), (slice(None), slice(None)), (3, ..., 2), ([[1, 2], [3, 3]],)]
    ),
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
    return stored(spec, make_rows(spec)).astype(np.float32)


def with_typed_lists(key):
    """An empty list is one of floats to NumPy."""
    if isinstance(key, tuple):
        return tuple(with_typed_lists(part) for part in key)
    return np.array(key, dtype=int) if isinstance(key, list) else key


def indexed(array, key):
    try:
        return array[key]
    except IndexError:
        return None


@given(key=keys | pairs)
@settings(max_examples=500, deadline=None)
def test_indexing_is_numpys(cache: Cache, oracle: np.ndarray, key) -> None:
    found, expected = indexed(cache.X, key), indexed(oracle, with_typed_lists(key))
    np.testing.assert_array_equal(found, expected)
    if expected is not None and expected.ndim:
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert type(found) is np.ndarray
        assert found.flags.writeable


@pytest.mark.parametrize("piece_bytes", [1, 50, 1 << 20])
def test_pieces_make_no_difference(cache, oracle, piece_bytes, monkeypatch) -> None:
    monkeypatch.setattr("featx.store.features._PIECE_BYTES", piece_bytes)
    mask = oracle > 0
    np.testing.assert_array_equal(cache.X[mask], oracle[mask])
    np.testing.assert_array_equal(cache.X[5:31:3, 2:4], oracle[5:31:3, 2:4])
    np.testing.assert_array_equal(cache.X[[9, 1, 9], [0, 6, 1]], oracle[[9, 1, 9], [0, 6, 1]])
    np.testing.assert_array_equal(cache.X[np.ix_([3, 1], [1, 5])], oracle[np.ix_([3, 1], [1, 5])])
    np.testing.assert_array_equal(cache.X[[[3, 1], [0, 0]], 4], oracle[[[3, 1], [0, 0]], 4])
    np.testing.assert_array_equal(cache.X[:, 3], oracle[:, 3])
    np.testing.assert_array_equal(cache.X[4:30], oracle[4:30])


@pytest.mark.parametrize(
    "key",
    [
        *[N_ROWS, -N_ROWS - 1, [0, N_ROWS], [True], True, 1.0, [0.5], "a", None, (1, None)],
        *[(1, 2, 3), (..., ...), (0, N_FEATURES), (slice(None), N_FEATURES), ([0, 1], [True] * 3)],
        *[([0, 1], [0, 1, 2]), np.ones((3, 3), bool), (..., 0, 0, 0)],
    ],
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
    for copied in (np.asarray(cache.X), np.array(cache.X)):
        assert copied.dtype == np.float32
        assert copied.flags.writeable
        assert copied.flags.owndata
        np.testing.assert_array_equal(copied, oracle)
    assert np.asarray(cache.X, dtype=np.float64).dtype == np.float64
    np.testing.assert_array_equal(np.stack(list(cache.X)), oracle)
    assert (len(cache.X), cache.X.ndim, cache.X.shape) == (40, 2, (40, 7))
    assert cache.X.nbytes == oracle.nbytes
    assert cache.X.size == oracle.size
    assert repr(cache.X) == "<features 40 x 7 float32 (stored as float16), on disk>"


def test_the_stored_type_maps_the_file(cache: Cache, oracle: np.ndarray) -> None:
    features = cache.X.astype("float16")
    mapped = np.asarray(features)
    assert isinstance(mapped.base, np.memmap)
    assert not mapped.flags.writeable
    assert mapped.dtype == features.dtype == features.stored_dtype == np.float16
    assert features.nbytes == mapped.nbytes == cache.X.nbytes / 2
    np.testing.assert_array_equal(mapped, oracle)
    assert repr(features) == "<features 40 x 7 float16, on disk>"
    with pytest.raises(ValueError, match="by a copy"):
        np.array(cache.X, copy=False)


def test_more_than_memory_is_refused_with_a_way(cache, monkeypatch) -> None:
    monkeypatch.setattr("featx.store.features.available_bytes", lambda: 700)
    with pytest.raises(UsageError, match=r"np\.asarray\(X\.astype\('float16'\)\)"):
        np.asarray(cache.X)
    assert np.asarray(cache.X.astype("float16")).shape == (40, 7)


@pytest.mark.parametrize("stored_as", ["float16", "float32"])
@pytest.mark.parametrize("dtype", ["float16", "float32", np.float64, np.dtype("<f2")])
def test_types(tmp_path: Path, stored_as: str, dtype) -> None:
    spec = make_spec(30, dtype=stored_as)
    fill(tmp_path / "a.h5", spec, make_rows(spec))
    wanted, path = stored(spec, make_rows(spec)), tmp_path / "a.h5"
    with Cache.open(path) as cache:
        if np.dtype(dtype).itemsize < np.dtype(stored_as).itemsize:
            ways = (cache.X.astype, lambda t: cache.sample(2, dtype=t))
            for way in (*ways, lambda t: featx.load(path, dtype=t)):
                with pytest.raises(UsageError, match="lose digits"):
                    way(dtype)
            return
        assert cache.sample(2)[0].dtype == cache.X[:].dtype == np.float32
        rows = np.sort(np.concatenate([[4], np.arange(9)[::-2]]))
        found = [cache.X.astype(dtype)[rows], featx.load(path, dtype=dtype).X[rows]]
        found += [np.stack(list(cache.X.astype(dtype)))[rows]]
        found += [np.concatenate([b for _, b in cache.X.astype(dtype).iter_blocks(7)])[rows]]
        for features in found:
            assert features.dtype == dtype
            np.testing.assert_array_equal(features, wanted[rows])
        assert cache.sample(2, dtype=dtype)[0].dtype == dtype
        assert pickle.loads(pickle.dumps(Cache.open(path, dtype=dtype))).X.dtype == dtype
        for other in ("int8", "nonsense", object):
            with pytest.raises(UsageError, match="choose from float16, float32, float64"):
                cache.X.astype(other)


def test_sums_and_products_do_not_overflow(tmp_path: Path) -> None:
    """As on real maps: 86,528 values of up to 300."""
    spec = make_spec(9, n_features=20_000)
    rows = np.random.default_rng(0).uniform(0, 300, (9, 20_000)).astype(np.float32)
    fill(tmp_path / "a.h5", spec, rows)
    with Cache.open(tmp_path / "a.h5") as cache:
        exact = stored(spec, rows).astype(np.float64)
        for X, true in ((cache.X[:], exact), (cache.X[[4, 2]], exact[[4, 2]])):
            np.testing.assert_allclose(X @ X.T, true @ true.T, rtol=1e-4)
            np.testing.assert_allclose(np.linalg.norm(X, axis=1), np.linalg.norm(true, axis=1))
            np.testing.assert_allclose(X.std(), true.std(), rtol=1e-4)
        X, _ = cache.sample(2)
        assert np.isfinite([X.sum(), X.var(), np.linalg.norm(X)]).all()
        assert np.isfinite(np.linalg.norm(cache.X))


def test_sklearn_takes_it(cache: Cache) -> None:
    from sklearn.neighbors import NearestCentroid

    head = NearestCentroid().fit(cache.X, cache.y)
    assert head.predict(cache.X[:5]).shape == (5,)


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_sklearn_cuts_and_pickles_it(cache: Cache, oracle: np.ndarray, n_jobs) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    y = np.arange(N_ROWS) % 2
    model = make_pipeline(StandardScaler(), LogisticRegression())
    for head in (model, KNeighborsClassifier(3)):
        wanted = cross_val_score(head, oracle, y)
        assert cross_val_score(head, cache.X, y, n_jobs=n_jobs).tolist() == wanted.tolist()
    grid = {"logisticregression__C": [0.1, 10]}
    search = GridSearchCV(model, grid, n_jobs=n_jobs)
    found, wanted = (search.fit(X, y).cv_results_["mean_test_score"] for X in (cache.X, oracle))
    np.testing.assert_array_equal(found, wanted)
    halves = train_test_split(cache.X, y, random_state=0)[:2]
    for half, wanted in zip(halves, train_test_split(oracle, y, random_state=0)[:2], strict=True):
        np.testing.assert_array_equal(half, wanted)


def test_a_pickle_opens_the_same_file(tmp_path: Path) -> None:
    spec = make_spec()
    fill(tmp_path / "a.h5", spec, make_rows(spec))
    features = Cache.open(tmp_path / "a.h5").X
    packed = pickle.dumps((features, features.astype("float16")))
    plain, small = pickle.loads(packed)
    np.testing.assert_array_equal(plain[[3, 1]], features[[3, 1]])
    assert (plain.dtype, small[0].dtype) == (np.float32, np.float16)
    fill(tmp_path / "a.h5", make_spec(identity={"b": 1}), make_rows(spec), overwrite=True)
    with pytest.raises(featx.errors.CacheError, match="replaced"):
        pickle.loads(packed)


def test_features_outlive_the_cache(tmp_path: Path) -> None:
    spec = make_spec()
    fill(tmp_path / "a.h5", spec, make_rows(spec))
    features = Cache.open(tmp_path / "a.h5").X
    assert features[3].shape == (7,)
