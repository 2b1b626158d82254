"""Training rows that do not fit into memory."""

from __future__ import annotations

import numpy as np
import pytest
from memory_cache import make_cache

from featx.errors import ProtocolError
from featx.evaluate import Pair, Settings, evaluate
from featx.evaluate import run as reading
from featx.heads import rowspace
from featx.heads.base import RowsView
from featx.heads.linear import space as linear_space


@pytest.fixture
def short_of_memory(monkeypatch):
    for module in (reading, rowspace, linear_space):
        monkeypatch.setattr(module, "available_bytes", lambda: 1_000)
    monkeypatch.setattr(linear_space, "_BLOCK_BYTES", 8 * 100 * 7)


def test_rows_stay_on_the_disk_and_fits_are_the_same(pair, request):
    settings = Settings(heads=("svm", "logreg", "ridge"), per_class=(5, "all"), repeats=2)
    within = evaluate(pair, settings)
    request.getfixturevalue("short_of_memory")
    assert isinstance(reading.hold_rows(pair.train.X, np.arange(9)), RowsView)
    without = evaluate(pair, settings)
    assert [fit.fit_id for fit in without] == [fit.fit_id for fit in within]
    assert [fit.acc1 for fit in without] == [fit.acc1 for fit in within]
    for found, expected in zip(without, within, strict=True):
        assert found.detail["cv"]["accuracy"] == expected.detail["cv"]["accuracy"]
        assert pytest.approx(expected.C) == found.C


def test_all_linear_heads_read_tall_rows_where_they_are(monkeypatch):
    pair = Pair(make_cache(300, 20, noise=9.0), make_cache(45, 20, split="test", noise=9.0))
    heads = ("svm", "logreg", "ridge", "lda", "ncm")
    settings = Settings(heads=heads, per_class=("all",), near="off")
    within = evaluate(pair, settings)
    monkeypatch.setattr(reading, "available_bytes", lambda: 1_000)
    without = evaluate(pair, settings)
    assert [fit.acc1 for fit in without] == [fit.acc1 for fit in within]
    assert [fit.C for fit in without] == pytest.approx([fit.C for fit in within])


@pytest.mark.usefixtures("short_of_memory")
@pytest.mark.parametrize("head", ["knn", "mlp", "lda", "mlp-torch"])
def test_heads_that_need_the_rows_say_so(pair, head):
    with pytest.raises(ProtocolError, match="memory"):
        evaluate(pair, Settings(heads=(head,), per_class=(5,), repeats=1))


@pytest.mark.usefixtures("short_of_memory")
def test_rows_that_are_not_finite_are_named_though_they_are_not_kept(pair):
    pair.train.X[4, 1] = np.nan
    with pytest.raises(ProtocolError, match=r"rows 4\)"):
        evaluate(pair, Settings(per_class=("all",), near="off"))
