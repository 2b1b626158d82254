"""Fits of many rows hold no copy of them: rows are converted block by block."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from head_data import features

from featx.heads import FitOptions, RowSpace, get_head
from featx.heads.linear import space as linear_space


@pytest.mark.parametrize("scale", ["none", "l2"])
@pytest.mark.parametrize("head", ["svm", "logreg", "ridge"])
def test_a_fit_of_float16_rows_needs_less_than_twice_their_bytes(head, scale, monkeypatch):
    monkeypatch.setattr(linear_space, "_BLOCK_BYTES", 8 * 256 * 256)
    X, y = features(6000, 256, 2, dtype=np.float16)
    options = FitOptions(C=1e-2, scale=scale)
    tracemalloc.start()
    try:
        get_head(head).fit(RowSpace.of(X), y, options)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * X.nbytes
