from __future__ import annotations

import errno
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from featx import atomic
from featx.atomic import part_of, replace_file

HALF = """
import sys, time
from pathlib import Path
from featx.atomic import part_of
with part_of(Path(sys.argv[1])) as part:
    part.write_bytes(b"half")
    print(part, flush=True)
    time.sleep(600)
"""
MANY = """
import sys
from pathlib import Path
from featx.atomic import replace_file
mine = sys.argv[2].encode() * 5000
for n in range(200):
    replace_file(Path(sys.argv[1]), lambda part: Path(part).write_bytes(mine))
"""


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "a.bin"
    replace_file(path, lambda part: Path(part).write_bytes(b"first"))
    replace_file(path, lambda part: Path(part).write_bytes(b"second"))
    assert path.read_bytes() == b"second"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.bin"]
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_what_was_there_stays_where_writing_fails(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")

    def fails(part):
        Path(part).write_bytes(b"half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        replace_file(path, fails)
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_what_a_killed_process_left_goes_and_what_another_writes_stays(tmp_path):
    path = tmp_path / "a[1].bin"
    strangers = [tmp_path / ".a[1].bin.x.part", tmp_path / ".a1.bin.abcdefgh.part"]
    for stranger in strangers:
        stranger.touch()
    process = subprocess.Popen(
        [sys.executable, "-c", HALF, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        left = Path(process.stdout.readline().strip())
        replace_file(path, lambda part: Path(part).write_bytes(b"mine"))
        assert left.read_bytes() == b"half"  # it is being written
    finally:
        process.kill()
        process.communicate()
    assert left.exists()
    with part_of(path) as part:
        assert not left.exists()
        with part_of(path) as second:  # another thread's
            second.write_bytes(b"second")
        part.write_bytes(b"first")
    assert path.read_bytes() == b"first"
    assert sorted(tmp_path.iterdir()) == sorted([path, *strangers])


def test_processes_that_write_the_same_file_do_not_take_each_others(tmp_path):
    path = tmp_path / "a.bin"
    command = [sys.executable, "-c", MANY, str(path)]
    processes = [subprocess.Popen([*command, letter]) for letter in "abc"]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert path.read_bytes() in [letter * 5000 for letter in (b"a", b"b", b"c")]
    assert list(tmp_path.iterdir()) == [path]


def test_without_locks_nothing_of_others_is_removed(tmp_path, monkeypatch):
    def no_locks(fd, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(atomic.fcntl, "flock", no_locks)
    path, part = tmp_path / "a.bin", tmp_path / ".a.bin.abcdefgh.part"
    part.write_bytes(b"half")
    replace_file(path, lambda name: Path(name).write_bytes(b"mine"))
    assert (path.read_bytes(), part.read_bytes()) == (b"mine", b"half")
