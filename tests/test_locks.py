"""Locks that all writers share, and file systems that have none."""

from __future__ import annotations

import errno
import fcntl
import tarfile
import threading

import pytest
from small_photos import make_photos

import featx
from featx.atomic import locked
from featx.cli import main

EXTRACT = ["extract", "--backbone", "squeezenet1_1", "--weights", "random", "--input-size", "32"]


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def no_locks(request, monkeypatch):
    def refuse(fd, how):
        raise OSError(request.param, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    make_photos(tmp_path / "pets", {"cat": (20, 20), "dog": (20, 20)}, n=6)
    with tarfile.open(tmp_path / "pets.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "pets", "pets")
    monkeypatch.setenv("FEATX_DATA", str(tmp_path / "downloads"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_locks_everything_works_and_says_so(no_locks, folder, capsys):
    said = "has no file locks: let one process at a time write there"
    assert main([*EXTRACT, "-j", "0", "--data", "pets.tar.gz"]) == 0
    err = capsys.readouterr().err
    for place in ("downloads/unpacked", "cache"):
        assert f"{place} {said}" in err
    assert main(["fit", "--per-class", "2", "--repeats", "2"]) == 0
    assert capsys.readouterr().err.count(f"reports {said}") == 1


def test_without_locks_rows_are_remembered(no_locks, folder):
    images = sorted(str(path) for path in (folder / "pets").rglob("*.png"))
    made = [
        featx.FeatureExtractor("squeezenet1_1", weights="random", memory=folder / "rows")
        .fit(images)
        .transform(images)
        for _ in range(2)
    ]
    assert made[0].tobytes() == made[1].tobytes()


def test_a_lock_is_waited_for_and_given_back(tmp_path):
    events = []

    def second():
        with locked(tmp_path / "lock", print):
            events.append("second")

    with locked(tmp_path / "lock", print):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        events.append("first")
    thread.join(10)
    assert events == ["first", "second"]
