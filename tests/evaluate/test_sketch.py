"""Sketches keep cosines; digests tell equal rows."""

from __future__ import annotations

import numpy as np
import pytest

from featx.errors import ProtocolError
from featx.evaluate.near import WIDTH, sketch_rows
from featx.heads.base import RowsView

F16, F32 = np.dtype("float16"), np.dtype("float32")
NO_CENTRE = np.float32(0)


def cosines(a, b):
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return np.einsum("nd,nd->n", a, b)


def test_short_rows_are_their_own_sketch():
    X = np.random.default_rng(0).normal(size=(7, 30)).astype(np.float16)
    sketch = sketch_rows(X, F16, NO_CENTRE)
    assert sketch.is_exact
    assert sketch.error == 0
    exact = X.astype(float) / np.linalg.norm(X.astype(float), axis=1, keepdims=True)
    assert np.allclose(sketch.unit, exact, atol=1e-6)


@pytest.mark.parametrize("d", [WIDTH + 1, 5_000, 20_000])
@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.9, 0.99])
def test_a_sketched_cosine_errs_as_much_as_is_said(d, cosine):
    rng = np.random.default_rng(d)
    a = rng.normal(size=(400, d))
    b = cosine * a + np.sqrt(1 - cosine**2) * rng.normal(size=(400, d))
    first, second = (sketch_rows(x.astype(np.float32), F32, NO_CENTRE) for x in (a, b))
    error = np.einsum("nd,nd->n", first.unit, second.unit) - cosines(a, b)
    expected = first.error * (1 - cosine**2)
    assert not first.is_exact
    # Runs of one or two values lose little or nothing.
    assert abs(error.mean()) < 4 * expected / np.sqrt(400)
    assert error.std() < 1.15 * expected
    if d > 10 * WIDTH:
        assert error.std() > 0.8 * expected


def test_equal_rows_have_equal_digests_and_others_have_not():
    X = np.random.default_rng(1).normal(size=(50, 3_000)).astype(np.float16)
    X[30] = X[3]
    X[40] = X[3]
    X[40, 2_999] += np.float16(0.01)
    digests = sketch_rows(X, F16, NO_CENTRE).digests
    assert [i for i in range(50) if digests[i] == digests[3]] == [3, 30]
    wide = sketch_rows(X.astype(np.float32), F32, NO_CENTRE).digests
    assert sketch_rows(X, F32, NO_CENTRE).digests == wide
    assert sketch_rows(X, F16, NO_CENTRE, with_sketch=False).digests == digests
    assert sketch_rows(X, F16, NO_CENTRE, with_sketch=False).unit.shape == (50, 0)


def test_a_row_does_not_depend_on_its_neighbours():
    X = np.random.default_rng(2).normal(size=(300, 40_000)).astype(np.float16)
    whole = sketch_rows(X, F16, NO_CENTRE)
    some = sketch_rows(RowsView(X, np.array([7, 250])), F16, NO_CENTRE)
    assert some.digests == [whole.digests[7], whole.digests[250]]
    assert np.allclose(some.unit, whole.unit[[7, 250]], atol=1e-6)


@pytest.mark.parametrize("d", [10, 2_000])
def test_rows_without_a_direction_are_like_nothing(d):
    X = np.ones((4, d), np.float32)
    X[1], X[2, 3], X[3, 0] = 0, np.nan, np.inf
    length = np.linalg.norm(sketch_rows(X, F32, NO_CENTRE).unit, axis=1)
    assert length.tolist() == [pytest.approx(1, abs=1e-5), 0, 0, 0]
    table = np.ones((20, d), np.float32)
    table[10:14] = X
    view = RowsView(table, np.array([1, 10, 11, 12, 13]))
    with pytest.raises(ProtocolError, match=r"2 rows hold NaN or infinity \(rows 12, 13\)"):
        sketch_rows(view, F32, NO_CENTRE, must_be_finite=True)
