"""When the rows of a run are made durable."""

from __future__ import annotations

import pytest

from featx.store import journal
from featx.store.journal import Range, RowStates

MB = 1 << 20


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(journal.time, "monotonic", lambda: now[0])
    return now


def test_a_group_is_128_mb_or_a_second(clock):
    rows = RowStates(100)
    rows.queue(Range(0, 10, 0, {}, "r"), 64 * MB)
    clock[0] += 0.99
    assert not rows.is_due
    rows.queue(Range(10, 20, 0, {}, "r"), 64 * MB)
    assert rows.is_due  # it is bounded by bytes, however fast they come
    assert [(item.start, item.stop) for item in rows.take_group()] == [(0, 20)]
    rows.queue(Range(20, 21, 0, {}, "r"), 1)
    assert not rows.is_due
    clock[0] += 1
    assert rows.is_due
