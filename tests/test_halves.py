"""float16 to the wider types, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from featx import halves

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def same_bits(a, b):
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("shape", [(256, 256), (1, 1 << 16), (1 << 16, 1)])
def test_every_number_is_converted_as_numpy_does(dtype, shape):
    X, out = EVERY.reshape(shape), np.empty(shape, dtype)
    halves.convert(X, out)
    assert same_bits(out, X.astype(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_finite_numbers_take_the_quick_way_to_the_same_bits(dtype, monkeypatch):
    X = EVERY[np.isfinite(EVERY)].reshape(31 * 64, -1)
    wanted = X.astype(dtype)
    monkeypatch.setattr(halves, "_PIECE", 100)  # a row at a time
    out = np.empty_like(wanted)
    halves.convert(X, out)
    assert same_bits(out, wanted)


def test_columns_and_steps_of_rows_are_converted():
    X = EVERY[: 1 << 14].reshape(128, 128)[::3, 7:90:2]
    out = np.zeros((43, 60), np.float64)
    halves.convert(X, out[:, 5:47])
    assert same_bits(out[:, 5:47].copy(), X.astype(np.float64))
    assert not out[:, :5].any()
    assert not out[:, 47:].any()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_nothing_is_converted_to_nothing(shape):
    out = np.empty(shape, np.float32)
    halves.convert(np.empty(shape, np.float16), out)
    assert halves.is_finite(np.empty(shape, np.float16))


def test_each_number_is_finite_or_not_as_numpy_says():
    found = [halves.is_finite(EVERY[i : i + 1]) for i in range(len(EVERY))]
    assert found == np.isfinite(EVERY).tolist()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, -np.nan])
def test_one_bad_number_among_extremes_is_seen(bad):
    X = np.array([[65504, -65504, 0], [-0.0, 6e-8, 1]], np.float16)
    assert halves.is_finite(X)
    X[1, 1] = bad
    assert not halves.is_finite(X)
