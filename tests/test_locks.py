"""Locks that all writers share, and file systems that have none."""

from __future__ import annotations

import errno
import fcntl
import tarfile
import threading

import numpy as np
import pytest
from PIL import Image

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
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
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
