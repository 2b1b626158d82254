"""Near-duplicates, against all pairs in float64; sketches that keep cosines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.errors import ProtocolError
from featx.evaluate import near as near_module
from featx.evaluate.near import DEFAULT_RATIO, WIDTH, find_near, mean_row, sketch_rows
from featx.heads.base import RowsView

F32 = np.dtype("float32")


def search(train, test, ratio=None):
    centre = mean_row(train, test)
    parts = [(X, sketch_rows(X, F32, centre)) for X in (train, test)]
    return find_near(*parts, ratio)


def by_hand(train, test, ratio, k=10):
    """All pairs with d < ratio * usual distance, in float64."""
    centre = np.concatenate([train, test]).mean(axis=0, dtype=np.float64)
    a, b = (np.asarray(x, np.float64) - centre for x in (train, test))
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in (a, b))
    distance = 1 - a @ b.T
    usual_a = np.sort(distance, axis=1)[:, :k].mean(axis=1)
    usual_b = np.sort(distance, axis=0)[:k].mean(axis=0)
    share = distance / ((usual_a[:, None] + usual_b[None]) / 2)
    return distance, share, {tuple(pair) for pair in np.argwhere(share < ratio).tolist()}


def pairs_of(found):
    return set(zip(found.train.tolist(), found.test.tolist(), strict=True))


def clusters(n_train, n_test, d, seed):
    """Sparse features, as behind a ReLU, of a few kinds."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, d))
    make = lambda n: np.maximum(0, centres[rng.integers(0, 5, n)] + rng.normal(size=(n, d)))  # noqa: E731
    return make(n_train).astype(np.float32), make(n_test).astype(np.float32), rng


def plant(train, test, rng, noise, n=6):
    rows, columns = (
        rng.choice(len(train), n, replace=False),
        rng.choice(len(test), n, replace=False),
    )
    test[columns] = train[rows] + noise * rng.normal(size=(n, train.shape[1]))
    return set(zip(rows.tolist(), columns.tolist(), strict=True))


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10_000), st.floats(0.2, 0.95))
def test_short_rows_give_what_all_pairs_give(n_train, n_test, seed, ratio):
    train, test, rng = clusters(n_train, n_test, 60, seed)
    n = min(3, n_train, n_test)
    plant(train, test, rng, 0.1, n)
    found = search(train, test, ratio)
    distance, share, expected = by_hand(train, test, ratio)
    at_the_edge = {tuple(p) for p in np.argwhere(np.abs(share - ratio) < 1e-4).tolist()}
    assert pairs_of(found) - at_the_edge == expected - at_the_edge
    assert np.allclose(found.cosine, 1 - distance[found.train, found.test], atol=1e-6)
    assert (np.diff(found.cosine) <= 0).all()


@pytest.mark.parametrize("d", [300, 3_000, 20_000])
@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_planted_twins_are_found_and_nothing_else(d, noise):
    train, test, rng = clusters(400, 150, d, seed=d)
    planted = plant(train, test, rng, noise)
    found = search(train, test)
    assert pairs_of(found) == planted == by_hand(train, test, found.rule.ratio)[2]
    distance = by_hand(train, test, 0.5)[0]
    assert np.allclose(found.cosine, 1 - distance[found.train, found.test], atol=1e-6)
    assert found.rule.is_default
    assert found.n_sketched == 0


def test_where_neighbours_differ_much_the_default_is_tightened():
    rng = np.random.default_rng(3)
    flat = [rng.normal(size=(n, 4)).astype(np.float32) for n in (500, 200)]
    found = search(*flat)
    assert found.rule.ratio < 0.15
    assert len(set(found.test.tolist())) <= 3
    assert len(set(search(*flat, ratio=DEFAULT_RATIO).test.tolist())) > 50
    wide = [rng.normal(size=(n, 3_000)).astype(np.float32) for n in (500, 200)]
    assert search(*wide).rule.ratio == DEFAULT_RATIO
    assert not len(search(*wide).train)


@pytest.mark.parametrize("m", [2, 5, 9])
def test_one_in_a_thousand_unrelated_rows_is_flagged_in_any_dimension(m):
    """Poisson neighbours: the nearest of 10, by what the 2nd to 10th tell."""
    rng = np.random.default_rng(m)
    n = 4_000
    # Squared distances of Poisson neighbours in m dimensions, scaled into cosines.
    distance = np.cumsum(rng.exponential(size=(n, 10)), axis=1) ** (2 / m)
    ratio = near_module._rule(1 - distance * 1e-3, None).ratio
    share = (distance[:, 0] / distance[:, -1] < ratio).mean()
    assert share < 0.003
    loose = (distance[:, 0] / distance[:, -1] < ratio**0.5).mean()
    assert 0.01 < loose < 0.3 or ratio == DEFAULT_RATIO


def test_twins_of_most_rows_do_not_hide_one_another():
    train, test, rng = clusters(300, 100, 2_000, seed=5)
    planted = plant(train, test, rng, 0.1, n=90)
    assert pairs_of(search(train, test)) == planted


def test_blocks_give_what_one_block_gives(monkeypatch):
    train, test, rng = clusters(200, 80, 500, seed=6)
    plant(train, test, rng, 0.2)
    whole = search(train, test, 0.9)
    monkeypatch.setattr(near_module, "_BLOCK_BYTES", 4 * 80 * 7)
    parts = search(train, test, 0.9)
    assert pairs_of(whole) == pairs_of(parts)
    assert np.allclose(whole.cosine, parts.cosine, atol=1e-6)


def test_beyond_a_number_of_pairs_the_sketch_decides_and_that_is_counted(monkeypatch):
    train, test, rng = clusters(200, 80, 3_000, seed=7)
    planted = plant(train, test, rng, 0.1)
    monkeypatch.setattr(near_module, "_MOST_VERIFIED", 2)
    found = search(train, test)
    assert pairs_of(found) == planted
    assert found.n_sketched == 4


def test_what_does_not_differ_from_the_mean_is_like_nothing():
    train, test, _ = clusters(30, 30, 50, seed=8)
    train[:3] = np.nan
    assert not set(search(train, test, 0.9).train.tolist()) & {0, 1, 2}
    same = np.full((30, 50), 7.0, np.float32)
    assert not len(search(same, same[:9]).train)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("d", [200, 3_000])
@pytest.mark.parametrize("offset", [0, 1_000])
def test_an_offset_that_all_share_makes_no_two_alike(offset, d, dtype):
    """In float16, values about 1,000 are halves."""
    rng = np.random.default_rng(0)
    train, test = ((rng.normal(size=(n, d)) / 2 + offset).astype(dtype) for n in (300, 100))
    assert not len(search(train, test).train)
    test[4], test[7] = train[11], train[20] + (0.5 * (rng.random(d) < 0.1)).astype(dtype)
    assert pairs_of(search(train, test)) == {(11, 4), (20, 7)}


def test_one_row_on_a_side():
    train, test, _ = clusters(20, 1, 50, seed=9)
    test[0] = train[4] * 1.001
    assert pairs_of(search(train, test)) == {(4, 0)}
    assert pairs_of(search(test, train)) == {(0, 4)}


@pytest.mark.parametrize("n_cores", [3, 64])
def test_neighbours_are_the_same_on_any_number_of_cores(monkeypatch, n_cores):
    train, test, _ = clusters(50, 31, 20, 3)
    monkeypatch.setattr(near_module, "N_CORES", 1)
    wanted = near_module._neighbours(train, test)
    monkeypatch.setattr(near_module, "N_CORES", n_cores)
    found = near_module._neighbours(train, test)
    for ours, theirs in zip(found, wanted, strict=True):
        assert all(np.array_equal(*pair) for pair in zip(ours, theirs, strict=True))


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
