"""A line of the journal is believed whole or not at all; when rows are made durable."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from store_helpers import SEED, check_partial, fill, make_rows, make_spec, stored, write_missing

from featx.errors import CacheError
from featx.store import CacheWriter, find_partials, journal
from featx.store.journal import (
    Journal,
    JournalHeader,
    Range,
    RowStates,
    journal_path,
    read_journal,
)

HEADER = JournalHeader("f" * 64, "c" * 64, 100, 7, 14, "float16", 4096, 9000, {"a": "\udcff"})
RANGES = [
    Range(10, 20, 1, {12: "bad \udcff"}, "r"),
    Range(0, 5, 2, {}, "r"),
    Range(20, 21, 3, {}, "s"),
]


def write(path: Path) -> None:
    written = Journal.create(path, HEADER, RANGES[:1])
    written.append(RANGES[1:])
    written.close()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "j")
    assert read_journal(tmp_path / "j") == (HEADER, RANGES, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["j"]


def test_a_draft_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "j.new").symlink_to(tmp_path / "mine.txt")
    write(tmp_path / "j")
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert read_journal(tmp_path / "j") == (HEADER, RANGES, 0)


def test_a_torn_line_is_dropped_at_every_length(tmp_path: Path) -> None:
    write(tmp_path / "j")
    content = (tmp_path / "j").read_bytes()
    first = content.index(b"\n") + 1
    for n_bytes in range(first, len(content)):
        (tmp_path / "j").write_bytes(content[:n_bytes])
        _, ranges, n_dropped = read_journal(tmp_path / "j")
        assert ranges == RANGES[: len(ranges)]
        assert len(ranges) + n_dropped <= 3
    for n_bytes in range(first - 1):
        (tmp_path / "j").write_bytes(content[:n_bytes])
        with pytest.raises(CacheError, match="first line"):
            read_journal(tmp_path / "j")


def test_every_single_bit_flip_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "j")
    content = (tmp_path / "j").read_bytes()
    first = content.index(b"\n")
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "j").write_bytes(flipped)
        if bit // 8 <= first:
            with pytest.raises(CacheError):
                read_journal(tmp_path / "j")
        else:
            header, ranges, n_dropped = read_journal(tmp_path / "j")
            # The very last newline ends a line that stands as well without it.
            assert header == HEADER
            assert n_dropped or bit // 8 == len(content) - 1
            assert all(item in RANGES for item in ranges)


@pytest.mark.parametrize(
    "item",
    [
        Range(5, 5, 0),
        Range(-1, 3, 0),
        Range(99, 101, 0),
        Range(0, 3, 0, {7: "x"}),
        Range(12, 30, 0),
    ],
)
def test_impossible_and_overlapping_ranges_are_dropped(tmp_path: Path, item: Range) -> None:
    Journal.create(tmp_path / "j", HEADER, [RANGES[0], item]).close()
    assert read_journal(tmp_path / "j") == (HEADER, RANGES[:1], 1)


def test_other_versions_are_refused(tmp_path: Path) -> None:
    Journal.create(tmp_path / "j", JournalHeader(**{**vars(HEADER), "version": 2})).close()
    with pytest.raises(CacheError, match="another version"):
        read_journal(tmp_path / "j")


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    spec = make_spec()
    with CacheWriter.open(tmp_path / "a.h5", spec) as writer:
        write_missing(writer, make_rows(spec), n_batches=4)
    fill(tmp_path / "whole.h5", spec, make_rows(spec))
    return find_partials(tmp_path / "a.h5")[0]


def resume(partial: Path) -> list[str]:
    spec = make_spec()
    rows = make_rows(spec)
    target = partial.with_name("a.h5")
    writer = fill(target, spec, rows)
    assert target.read_bytes() == partial.with_name("whole.h5").read_bytes()
    return writer.notices


def test_damaged_lines_are_computed_again(partial: Path) -> None:
    content = bytearray(journal_path(partial).read_bytes())
    second = content.index(b"\n", content.index(b"\n") + 1) + 1
    content[second + 30] ^= 4
    journal_path(partial).write_bytes(content)
    assert "24 of 40 rows" in resume(partial)[0]


def test_rows_that_changed_are_computed_again(partial: Path) -> None:
    header, _, _ = read_journal(journal_path(partial))
    rng = np.random.default_rng(SEED)
    with partial.open("r+b") as stream:
        offset = header.features_offset + 9 * header.row_bytes + int(rng.integers(14))
        byte = os.pread(stream.fileno(), 1, offset)[0]
        os.pwrite(stream.fileno(), bytes([byte ^ 16]), offset)
    notices = resume(partial)
    assert "24 of 40 rows" in notices[0]
    assert "1 ranges of rows that changed" in notices[1]


def test_the_rest_of_a_partial_is_made_anew(partial: Path) -> None:
    header, _, _ = read_journal(journal_path(partial))
    with partial.open("r+b") as stream:
        for offset in (0, 4096, header.features_offset + 40 * header.row_bytes, -1):
            stream.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
            stream.write(b"\xff")
    resume(partial)


def test_partials_that_cannot_be_read_are_left_alone(partial: Path) -> None:
    content = journal_path(partial).read_bytes()
    journal_path(partial).write_bytes(b"x" + content)
    notices = resume(partial)
    assert "first line of its journal is damaged" in notices[0]
    assert partial.exists()


def test_a_partial_that_was_cut_is_left_alone(partial: Path) -> None:
    header, _, _ = read_journal(journal_path(partial))
    os.truncate(partial, header.features_offset + 500)
    assert "shorter than its journal says" in resume(partial)[0]


def test_leftovers_of_stopped_runs_are_removed(partial: Path) -> None:
    journal_path(partial).unlink()
    (partial.parent / (partial.name + ".journal.new")).write_bytes(b"")
    orphan = partial.with_name("a.h5.123.partial")
    journal_path(orphan).write_bytes(b"old")
    assert "stopped before its first row" in resume(partial)[0]
    assert sorted(p.name for p in partial.parent.iterdir()) == ["a.h5", "whole.h5"]


def test_the_fullest_partial_is_resumed(partial: Path) -> None:
    spec = make_spec()
    copy = partial.with_name("a.h5.fewer.partial")
    copy.write_bytes(partial.read_bytes())
    header, ranges, _ = read_journal(journal_path(partial))
    Journal.create(journal_path(copy), header, ranges[:2]).close()
    with CacheWriter.open(partial.with_name("a.h5"), spec) as writer:
        assert (~writer.missing()).sum() == 32
    assert check_partial(partial, stored(spec, make_rows(spec))) == 32


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
