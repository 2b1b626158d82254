"""Hashes are remembered, and never trusted for a file that may have changed."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest

from featx.sources import open_folder
from featx.sources.folder import FolderSource
from featx.sources.places import Remembered, stamp_file


@pytest.fixture
def digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEATX_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "digests"


@pytest.fixture
def old_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files made by a test are as old as files that a person has."""
    later = time.time_ns() + 60_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(300):
        path = tmp_path / "photos" / f"class{i % 3}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"image {i}".encode())
    return tmp_path / "photos"


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    read = FolderSource.read

    def noted(self: FolderSource, row: int) -> bytes:
        seen.append(self.paths[row])
        return read(self, row)

    monkeypatch.setattr(FolderSource, "read", noted)
    return seen


def expected(folder: Path, paths: tuple[str, ...]) -> np.ndarray:
    digests = [hashlib.sha256((folder / path).read_bytes()).digest() for path in paths]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


def source_of(folder: Path) -> FolderSource:
    source = open_folder(folder)["all"]
    assert isinstance(source, FolderSource)
    return source


@pytest.mark.usefixtures("digests", "old_clock")
def test_only_changed_files_are_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(folder)
    seen = count_reads(monkeypatch)
    np.testing.assert_array_equal(source.image_digests(), expected(folder, source.paths))
    assert sorted(seen) == sorted(source.paths)
    seen.clear()
    np.testing.assert_array_equal(source.image_digests(), expected(folder, source.paths))
    assert seen == []
    (folder / "class1" / "1.jpg").write_bytes(b"another")
    (folder / "class1" / "new.jpg").write_bytes(b"new")
    (folder / "class2" / "2.jpg").unlink()
    source = source_of(folder)
    np.testing.assert_array_equal(source.image_digests(), expected(folder, source.paths))
    assert sorted(seen) == ["class1/1.jpg", "class1/new.jpg"]


@pytest.mark.usefixtures("digests", "old_clock")
def test_an_edit_that_keeps_size_and_modification_time_shows(folder: Path) -> None:
    source = source_of(folder)
    before = source.image_digests()
    path = folder / source.paths[0]
    status = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    after = source.image_digests()
    assert (before[0] != after[0]).any()
    np.testing.assert_array_equal(after, expected(folder, source.paths))


def test_files_of_this_moment_are_not_remembered(
    folder: Path, digests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(folder)
    source.image_digests()
    assert not digests.exists()
    seen = count_reads(monkeypatch)
    source.image_digests()
    assert len(seen) == len(source)


@pytest.mark.usefixtures("old_clock")
@pytest.mark.parametrize("damage", ["flip", "cut", "version", "empty"])
def test_a_damaged_memory_is_forgotten(
    damage: str, folder: Path, digests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(folder)
    source.image_digests()
    [file] = digests.iterdir()
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
    elif damage == "version":
        data[14:15] = b"2"
    file.write_bytes({"cut": data[:-90], "empty": b""}.get(damage, data))
    seen = count_reads(monkeypatch)
    np.testing.assert_array_equal(source.image_digests(), expected(folder, source.paths))
    assert len(seen) == len(source)


@pytest.mark.usefixtures("old_clock")
def test_a_folder_that_cannot_be_written_is_no_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("FEATX_DATA", str(tmp_path / "file"))
    source = source_of(folder)
    np.testing.assert_array_equal(source.image_digests(), expected(folder, source.paths))


@pytest.mark.usefixtures("digests", "old_clock")
def test_places_do_not_share_what_they_know(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"a")
    stamp = stamp_file(path)
    one = Remembered("/one")
    one.add("a.jpg", stamp, b"1" * 32)
    one.save()
    assert Remembered("/one").find("a.jpg", stamp) == b"1" * 32
    assert Remembered("/two").find("a.jpg", stamp) is None
    assert Remembered("/one").find("b.jpg", stamp) is None
    assert Remembered("/one").find("a.jpg", None) is None
    assert stamp_file(tmp_path / "missing") is None
