from __future__ import annotations

import pytest

from featx.extract import StageTimes


def test_the_busiest_stage_is_the_bottleneck(monkeypatch):
    now = [5.0]
    monkeypatch.setattr("featx.extract.times.time.perf_counter", lambda: now[0])
    times = StageTimes(2)
    times.add(8, {"decode": 9.0, "forward": 9.0})  # the first batch: the start
    for _ in range(4):
        now[0] += 0.02
        times.add(8, {"decode": 0.038, "forward": 0.005})
    times.finish()
    decode, forward, write = times.stages()
    assert [stage.name for stage in (decode, forward, write)] == ["decode", "forward", "write"]
    assert decode.n_images == 32
    assert decode.seconds == pytest.approx(4 * 0.038)
    assert decode.images_per_second == pytest.approx(32 * 2 / decode.seconds)
    assert (decode.share, forward.share, write.share) == pytest.approx((0.95, 0.25, 0))
    assert write.images_per_second == float("inf")
    assert "more --workers" in times.table()
    assert times.note() == "decode 95%, forward 25%, write 0%"


def test_writing_is_timed_behind_the_first_batch(monkeypatch):
    now = [5.0]
    monkeypatch.setattr("featx.extract.times.time.perf_counter", lambda: now[0])
    times = StageTimes(0)
    with times.writing():
        now[0] += 0.3
    times.add(1, {})
    times.add(1, {"forward": 0.001})
    with times.writing():
        now[0] += 0.02
    times.finish()
    write = times.stages()[2]
    assert write.seconds == pytest.approx(0.02)
    assert times.start_seconds is not None


def test_one_batch_says_nothing():
    times = StageTimes(1)
    times.add(4, {"decode": 1.0})
    assert times.stages() == []
    assert times.note() == ""
    assert "fewer than two" in times.table()
    assert times.images_per_second != times.images_per_second
