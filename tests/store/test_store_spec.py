"""Nothing that is not finite is ever stored in a row that did not fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from store_helpers import make_rows, make_spec

from featx.errors import CacheError
from featx.store import Cache, CacheWriter
from featx.store.spec import as_stored

F2, F4 = np.dtype("<f2"), np.dtype("<f4")


@pytest.mark.parametrize(
    ("dtype", "value", "text"),
    [
        ("float16", 65520.0, r"do not fit in float16.*largest is 65520.*--store-dtype float32"),
        ("float16", -1e30, "do not fit in float16"),
        ("float16", np.inf, "NaN or infinity as the network gave them"),
        ("float32", np.nan, "NaN or infinity as the network gave them"),
        ("float32", 1e39, "do not fit in float32.*scale them down"),
    ],
)
def test_rows_are_named_and_nothing_is_stored(tmp_path: Path, dtype, value, text) -> None:
    spec = make_spec(dtype=dtype)
    rows = make_rows(spec).astype(np.float64)
    bad = rows.copy()
    bad[[11, 12, 14, 15, 17, 19], 3] = value
    with CacheWriter.open(tmp_path / "a.h5", spec) as writer:
        with pytest.raises(CacheError, match=text) as caught:
            writer.write(10, bad[10:20])
        assert "6 rows (11, 12, 14, 15, 17, ...)" in str(caught.value)
        writer.write(0, rows[:38])
        with pytest.raises(CacheError, match=r"1 row \(38\)"):
            writer.write(38, np.where([[1], [0]], value, rows[38:]))
        writer.write(38, np.full((2, 7), value), {38: "bad", 39: "bad"})
        writer.finish()
    with Cache.open(tmp_path / "a.h5") as cache:
        assert np.isfinite(cache.X[:38]).all()
        assert np.isnan(cache.X[38:]).all()


def test_infinity_in_float16_is_an_overflow() -> None:
    rows = np.array([[1, np.inf], [2, 3]], dtype=np.float16)
    with pytest.raises(CacheError, match=r"1 row \(9\) .* fits: store float32"):
        as_stored(rows, F2, 9, {})
    rows[0, 1] = np.nan
    with pytest.raises(CacheError, match=r"1 row \(9\) .* NaN or infinity"):
        as_stored(rows, F2, 9, {})


@given(
    rows=hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=5),
        elements=st.floats(width=16),
    ),
    dtype=st.sampled_from([F2, F4]),
    data=st.data(),
)
def test_casts_as_numpy_or_refuses(rows, dtype, data) -> None:
    failed = {5 + r: "" for r in data.draw(st.sets(st.integers(0, len(rows) - 1)))}
    before = rows.copy()
    good = [r for r in range(len(rows)) if r + 5 not in failed]
    is_finite = np.isfinite(rows[good]).all()
    if not is_finite:
        with pytest.raises(CacheError):
            as_stored(rows, dtype, 5, failed)
    else:
        found = as_stored(rows, dtype, 5, failed)
        assert found.dtype == dtype
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found[good], rows[good].astype(dtype))
        assert np.isnan(found[[r - 5 for r in failed]]).all()
    np.testing.assert_array_equal(rows, before)  # the caller's rows are never changed


def test_views_that_are_not_contiguous_or_big_endian() -> None:
    rows = np.arange(24, dtype=">f4").reshape(4, 6)[::-1, ::2]
    np.testing.assert_array_equal(as_stored(rows, F2, 0, {}), rows.astype("<f2"))
    np.testing.assert_array_equal(as_stored(rows, F4, 0, {}), rows.astype("<f4"))
