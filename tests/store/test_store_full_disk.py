"""A disk that is full, or fills: an error with figures, never a crash, and a resume."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_helpers import make_rows, make_spec, write_missing

from featx.errors import CacheError
from featx.store import CacheWriter, disk, find_partials, verify_file

CHILD = Path(__file__).with_name("store_child.py")


def run(target: Path, n_rows: int, n_features: int, before: str = "") -> tuple[int, str]:
    """Fill a cache in a process of its own; its exit code, and what it said."""
    words = ["exec", sys.executable, "-W error", CHILD, target, n_rows, n_features]
    command = ["/bin/sh", "-c", before + " ".join(map(str, words))]
    done = subprocess.run(command, check=False, capture_output=True, text=True, input="\n")
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """4 MiB of tmpfs."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "featx-test", str(folder)]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip(f"may not mount a small tmpfs: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_limit_on_file_size_is_noticed_before_the_first_row(tmp_path: Path) -> None:
    code, text = run(tmp_path / "a.h5", 1000, 5000, before="ulimit -f 2000; ")
    assert code == 1
    assert re.search(r"needs 10\.\d+ MB .* at most \d.* raise the limit \(ulimit -f\)", text)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_noticed_before_the_first_row(small_disk: Path) -> None:
    code, text = run(small_disk / "a.h5", 1000, 5000)
    assert code == 1
    assert re.search(r"needs 10\.\d+ MB \(10,\d+,\d+ bytes\), but .* has 4\.\d+ MB", text)
    assert "free some space, choose another folder" in text
    assert list(small_disk.iterdir()) == []


def test_allocation_finds_what_the_free_space_hid(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "require_space", lambda *_: None)
    with pytest.raises(CacheError, match=r"needs 10\.\d+ MB .* free: free some space"):
        CacheWriter.open(small_disk / "a.h5", make_spec(1000, 5000))
    assert list(small_disk.iterdir()) == []


def eat(folder: Path) -> Path:
    """Fill a disk to the last byte."""
    glutton = folder / "glutton"
    with glutton.open("wb", buffering=0) as stream:
        for n_bytes in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    stream.write(b"x" * n_bytes)
            except OSError:
                continue
    return glutton


def test_a_disk_that_fills_later_stops_the_run_cleanly(small_disk: Path) -> None:
    spec = make_spec(900, 1000)
    rows = make_rows(spec)
    target = small_disk / "a.h5"
    with pytest.raises(CacheError, match=r"No space left .* run the same command again") as caught:
        fill_while_eaten(target, spec, rows)
    n_safe = int(re.search(r"\(([\d,]+) rows are safe\)", str(caught.value))[1].replace(",", ""))
    assert 80 <= n_safe < 900
    (small_disk / "glutton").unlink()
    with CacheWriter.open(target, spec) as writer:
        assert (~writer.missing()).sum() == n_safe
        write_missing(writer, rows)
        writer.finish()
    assert verify_file(target) == []


def fill_while_eaten(target: Path, spec, rows) -> None:
    with CacheWriter.open(target, spec) as writer:
        write_missing(writer, rows, n_batches=10)
        eat(target.parent)
        # The rows' space was taken up front; the journal's line is what finds no room.
        write_missing(writer, rows, batch=1)


def test_a_disk_that_is_full_at_the_end(small_disk: Path) -> None:
    spec = make_spec(900, 1000)
    rows = make_rows(spec)
    target = small_disk / "a.h5"
    reasons = {row: f"{row} {'x' * 300}" for row in range(100)}  # more than the file has room for

    def finish_while_eaten() -> None:
        with CacheWriter.open(target, spec) as writer:
            write_missing(writer, rows, failed=reasons)
            eat(target.parent)
            writer.finish()

    with pytest.raises(CacheError, match=r"No space left .* run the same command again"):
        finish_while_eaten()
    assert not target.exists()
    (small_disk / "glutton").unlink()
    with CacheWriter.open(target, spec) as writer:
        assert not writer.missing().any()
        writer.finish()
    assert verify_file(target) == []


def test_a_child_on_a_full_disk_is_not_ended_by_a_signal(small_disk: Path) -> None:
    target = small_disk / "a.h5"
    child = subprocess.Popen(
        [sys.executable, "-W", "error", CHILD, target, "800", "1000"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "open\n"
    glutton = eat(small_disk)
    _, text = child.communicate("\n", timeout=100)
    assert child.returncode == 1
    assert "No space left" in text
    assert "Traceback" not in text
    glutton.unlink()
    assert run(target, 800, 1000) == (0, "")
    assert verify_file(target) == []
    assert find_partials(target) == []


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
def test_a_folder_that_may_not_be_written() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        child = os.fork()
        if child == 0:  # pragma: no cover
            os.setuid(65534)
            try:
                CacheWriter.open(Path(folder) / "a.h5", make_spec())
            except CacheError as error:
                is_right = "Permission denied: choose a folder that you may write to" in str(error)
                os._exit(0 if is_right else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert list(Path(folder).iterdir()) == []
