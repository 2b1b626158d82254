from __future__ import annotations

import io

import pytest

from featx import progress
from featx.progress import SILENT, Reporter


class Terminal(io.StringIO):
    def isatty(self):
        return True


def work(reporter, n=5, initial=0):
    with reporter.bar(n, "extracting", initial=initial) as bar:
        for _ in range(n - initial):
            bar.update(1, note="decode")


def test_a_file_gets_one_plain_line_at_the_end():
    stream = io.StringIO()
    work(Reporter(stream=stream))
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("extracting: 5/5, ")
    assert "image/s" in line
    assert line.endswith("(decode)")
    assert "\r" not in stream.getvalue()


def test_long_work_prints_a_line_now_and_then(monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    stream = io.StringIO()
    work(Reporter(stream=stream))
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [f"extracting: {i}/5" for i in (1, 2, 3, 4, 5)]
    assert "s left" in lines[0]


def test_a_terminal_gets_a_bar_with_rate_and_estimate():
    stream = Terminal()
    work(Reporter(stream=stream))
    last = stream.getvalue().split("\r")[-1]
    assert "extracting: 100%" in last
    assert "5/5" in last
    assert "image/s" in last


def test_what_was_done_before_does_not_count_in_the_rate(monkeypatch):
    now = iter([0.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    stream = io.StringIO()
    with Reporter(stream=stream).bar(100, "x", initial=90) as bar:
        bar.update(10)
    assert stream.getvalue().startswith("x: 100/100, 5.0 image/s")


def test_slow_units_are_told_by_the_time_of_one_and_an_early_end_has_nothing_left(monkeypatch):
    now = iter([0.0, 20.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    stream = io.StringIO()
    with Reporter(stream=stream).bar(10, "training", "epoch") as bar:
        bar.done = 4
    assert stream.getvalue() == "training: 4/10, 5.0 s/epoch, 20.0 s\n"


def test_quiet_prints_warnings_only():
    stream = io.StringIO()
    reporter = Reporter(quiet=True, stream=stream)
    work(reporter)
    reporter.say("nothing")
    reporter.warn("something")
    assert stream.getvalue() == "warning: something\n"


def test_the_default_of_library_calls_prints_nothing(capsys):
    work(SILENT)
    SILENT.warn("something")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_a_failure_does_not_claim_to_be_done():
    stream = io.StringIO()
    with pytest.raises(KeyError), Reporter(stream=stream).bar(5, "x"):
        raise KeyError
    assert stream.getvalue() == ""
