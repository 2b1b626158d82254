from __future__ import annotations

import stat
from pathlib import Path

import pytest

from featx.replacing import replace_file


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
